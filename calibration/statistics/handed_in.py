"""Arrays that training hands in by parameter name, found again in the layout of the graph.

``NAME`` is a gradient, ``NAME@hessian`` the Hessian times the gradient, ``NAME@fisher`` a mean of
squared gradients, ``NAME@samples`` one gradient per sample. Shapes are torch's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.graph_passes.groups import WeightUse
from secateur.graph_passes.names import module_path

Arrays = Mapping[str, NDArray[Any]]

_RECORDS = "secateur.parameters"


class HandedIn:
    """Arrays by parameter name, for the weights of one model."""

    def __init__(self, model: ir.Model, arrays: Arrays) -> None:
        self._arrays = arrays
        self._records: dict[str, dict[str, Any]] = json.loads(
            model.metadata_props.get(_RECORDS, "{}")
        )

    def find(self, use: WeightUse, kind: str = "") -> NDArray[np.float64]:
        """Return the array of a weight, laid out as the weight is in the graph.

        Args:
            use: of the weight.
            kind: ``""`` for the gradient, or ``hessian``, ``fisher``, ``samples``, whose first
                axis are the samples, or any other name that the file uses.

        Raises:
            BadInputError: no such array, another shape, NaN or infinities.
        """
        name = self._name(use) + (f"@{kind}" if kind else "")
        if name not in self._arrays:
            raise BadInputError(
                f"no array {name!r} was handed in",
                got=", ".join(list(self._arrays)[:5]) or "no arrays at all",
                wanted="one for every weight that is ranked, by parameter name",
                next_step="write them with numpy.savez and name the file: arrays, --arrays",
            )
        array = np.asarray(self._arrays[name], dtype=np.float64)
        laid_out = self._turned(array, use, n_leading=int(kind == "samples"))
        if not np.isfinite(laid_out).all():
            raise BadInputError("a handed-in array holds NaN or infinities", where=name)
        return laid_out

    def is_transposed(self, use: WeightUse) -> bool:
        """Whether the graph holds the transpose of the parameter."""
        return self._records.get(use.initialiser, {}).get("transpose") is not None

    def _name(self, use: WeightUse) -> str:
        """The parameter's name; of several of equal value, that of the module that reads it."""
        names = self._records.get(use.initialiser, {}).get("names", [use.parameter])
        path = module_path(use.node)
        return next((n for n in names if path and n.startswith(f"{path}.")), str(names[0]))

    def _turned(
        self, array: NDArray[np.float64], use: WeightUse, n_leading: int
    ) -> NDArray[np.float64]:
        order = self._records.get(use.initialiser, {}).get("transpose")
        if order is not None and array.ndim == len(order) + n_leading:
            array = array.transpose(*range(n_leading), *(axis + n_leading for axis in order))
        if array.shape[n_leading:] != use.shape:
            raise BadInputError(
                "a handed-in array has another shape than its parameter",
                where=use.parameter,
                got=str(array.shape),
                wanted=str(use.shape),
            )
        return array


__all__ = ["Arrays", "HandedIn"]
