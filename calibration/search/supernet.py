"""A dense graph whose weights are inputs: every way to cut it runs in one session.

Units that go are columns of zeros in the weights that read them, and the columns that stay are
fitted to what is left, as in Tyr-the-Pruner. All inputs of the fits are those of the dense model,
where the published code takes those behind layers of the expected sparsity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import inputs_of, observe, with_outputs
from secateur.calibration.allocation import best
from secateur.calibration.compensation.refit import without_bias
from secateur.calibration.compensation.writing import laid_out
from secateur.calibration.importance.core import Scores
from secateur.calibration.search.evolution import STAGES
from secateur.calibration.statistics.gathering import BY_KERNEL, gather
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.places import Place, all_places, places_of
from secateur.errors import BadInputError, PreconditionError
from secateur.export.onnx_file import save
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Analysis, Group
from secateur.graph_passes.names import node_name
from secateur.runtime.backends.onnxruntime import OnnxRuntime

Batch = Mapping[str, NDArray[Any]]
Weights = dict[str, NDArray[Any]]


class Supernet:
    """One session over all cuts of a model; use it in a ``with`` block."""

    def __init__(
        self, analysis: Analysis, scores: Mapping[str, Scores], data: Iterable[Batch], measure: str
    ) -> None:
        """Gather the products of what every cut weight reads, and the dense model's answers.

        Raises:
            BadInputError: no data, or data that cannot be used.
            PreconditionError: units that a convolution in groups reads.
        """
        self._analysis, self._measure = analysis, measure
        self._scores = dict(scores)
        groups = [analysis.group(name) for name in scores]
        known = all_places(analysis)
        self._places = {group.name: places_of(group, known) for group in groups}
        self._check()
        self._batches = list(data)
        self._sums = {place: Gram() for found in self._places.values() for place in found}
        gather(analysis.model, list(self._sums.items()), self._batches, BY_KERNEL)
        output = str(analysis.model.graph.outputs[0].name)
        self._wanted = [
            seen[output] for _, seen in observe(analysis.model, [output], self._batches)
        ]
        self._fitted: dict[tuple[str, int], Weights] = {}
        self._folder: TemporaryDirectory[str] | None = None
        self._session: Any = None

    def __enter__(self) -> Self:
        """Open the session."""
        model = self._analysis.model.clone()
        nodes = {node_name(node): node for node in model.graph}
        for place in self._sums:
            old = constant_tensor(place.weight_value)
            assert old is not None
            value = ir.Value(
                name=_input_name(place),
                shape=ir.Shape(old.shape.numpy()),
                type=ir.TensorType(old.dtype),
            )
            model.graph.inputs.append(value)
            nodes[node_name(place.node)].replace_input_with(place.weight_slot, value)
        self._folder = TemporaryDirectory(prefix="secateur-")
        path = Path(self._folder.name) / "supernet.onnx"
        save(with_outputs(model, [str(model.graph.outputs[0].name)]), path)
        self._session = OnnxRuntime().session(path)
        self._run = self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self._session.__exit__(kind, error, trace)
        assert self._folder is not None
        self._folder.cleanup()

    def loss(self, kept: Mapping[str, int], stage: int) -> float:
        """How far the answers move where each group keeps so many of its best units."""
        weights: Weights = {}
        for name, count in kept.items():
            weights |= self._weights(name, count)
        n_batches = max(len(self._batches) >> (STAGES - 1 - stage), 1)
        moved = total = 0.0
        for batch, want in zip(self._batches[:n_batches], self._wanted, strict=False):
            (got,) = self._run({**inputs_of(batch), **weights}).values()
            one, all_of_it = _distance(got, want, self._measure)
            moved, total = moved + one, total + all_of_it
        loss = moved / max(total, np.finfo(np.float64).tiny)
        if not np.isfinite(loss):
            raise BadInputError("a cut model gives NaN or infinities", where=str(dict(kept)))
        return float(loss)

    def _weights(self, name: str, count: int) -> Weights:
        if (name, count) not in self._fitted:
            units = best(self._scores[name], count)
            group = self._analysis.group(name)
            self._fitted[name, count] = {
                _input_name(place): laid_out(place, self._fit(place, group, units))
                for place in self._places[name]
            }
        return self._fitted[name, count]

    def _fit(self, place: Place, group: Group, units: Sequence[int]) -> NDArray[np.float64]:
        owners = place.owners(group.atom)
        stays = np.isin(owners, units) | (owners < 0)
        weight = place.matrix()
        return weight if stays.all() else without_bias(weight, stays, self._sums[place]).weight

    def _check(self) -> None:
        seen: dict[tuple[str, int], str] = {}
        for name, places in self._places.items():
            for place in places:
                if place.node.attributes.get_int("group", 1) != 1:
                    raise PreconditionError(
                        "a convolution in groups is not fitted", where=place.parameter
                    )
                key = (node_name(place.node), place.weight_slot)
                if seen.setdefault(key, name) != name:
                    raise PreconditionError(
                        "one weight reads units of two groups",
                        where=place.parameter,
                        got=f"{seen[key]}, {name}",
                    )


def _input_name(place: Place) -> str:
    return f"{node_name(place.node)}.{place.weight_slot}.weight"


def _distance(got: NDArray[Any], want: NDArray[Any], measure: str) -> tuple[float, float]:
    """What was lost, and of how much."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (got, want))
    if measure == "error":
        return float(np.square(a - b).sum()), float(np.square(b).sum())
    log_a, log_b = (x - x.max(-1, keepdims=True) for x in (a, b))
    log_a, log_b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_a, log_b))
    return float((np.exp(log_b) * (log_b - log_a)).sum()), float(b[..., 0].size)


__all__ = ["Supernet"]
