"""What each product loses when it alone is rounded, and whether it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import observe
from secateur.calibration.quantisation.graph import choose, quantise
from secateur.calibration.quantisation.scheme import Scheme
from secateur.calibration.statistics.places import all_places
from secateur.graph_passes.groups import analyse

Batch = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """One weight, what rounding its product alone does, and what to do."""

    layer: str
    error: float
    """Largest relative error over the float outputs: max |a - b| / max |b|."""
    verdict: str
    """``quantise`` or ``keep``."""


def sensitivity(
    model: ir.Model, scheme: Scheme, data: Sequence[Batch], *, bound: float
) -> tuple[LayerVerdict, ...]:
    """Round one weight's products at a time and compare the outputs, worst layer first.

    Args:
        model: stays as it is.
        scheme: what is rounded to what.
        data: batches, for ranges and for the comparison.
        bound: largest error of a layer that is still rounded.

    Returns:
        A verdict per weight; patterns for ``quantise(keep=...)`` are the names of those to keep.
        Where every verdict is ``keep``, the model is to stay in the precision that it has.
    """
    chosen, _ = choose(all_places(analyse(model)), scheme, (), model)
    layers = tuple(dict.fromkeys(place.parameter for place in chosen))
    wanted = _outputs(model, data)
    found = []
    for layer in layers:
        others = [name for name in layers if not fnmatchcase(name, layer)]
        rounded = quantise(model, scheme, data, keep=others)
        pairs = zip(_outputs(rounded, data), wanted, strict=True)
        error = max(_error(got, want) for got, want in pairs)
        found.append(LayerVerdict(layer, error, "quantise" if error <= bound else "keep"))
    return tuple(sorted(found, key=lambda one: -one.error))


def _outputs(model: ir.Model, data: Sequence[Batch]) -> list[NDArray[Any]]:
    outputs = model.graph.outputs
    names = [str(v.name) for v in outputs if v.dtype is None or v.dtype.is_floating_point()]
    return [seen[name] for _, seen in observe(model, names, data) for name in names]


def _error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    if got.shape != wanted.shape:  # another token was kept
        return float("inf")
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))


__all__ = ["LayerVerdict", "sensitivity"]
