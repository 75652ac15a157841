"""One pass over the data: run the graph, hand every place its rows, keep only sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import observe
from secateur.calibration.statistics.padding import Padding
from secateur.calibration.statistics.places import Place
from secateur.calibration.statistics.rows import Weights, patches_of, samples_of, weights_of
from secateur.errors import BadInputError

Batch = Mapping[str, NDArray[Any]]


class Accumulator(Protocol):
    """Sums that samples are added to."""

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (tokens, features) each, and how much each token counts."""


class Scaling(Protocol):
    """Weights of tokens."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Values that have to be looked at besides the activations."""

    def weights(
        self,
        place: Place,
        samples: Sequence[NDArray[Any]],
        seen: Batch,
        real: NDArray[np.bool_] | None,
    ) -> Weights:
        """How much each row counts."""


@dataclass(frozen=True, slots=True)
class How:
    """How the rows of an activation are seen."""

    patches: bool = False
    """Take a convolution's input by what its kernel covers, not by channel."""
    at_least: int = 1
    """Samples that the sums need."""
    scaling: Scaling | None = None
    """How much each token counts; a convolution's patches count the same."""


BY_FEATURE = How()
BY_KERNEL = How(patches=True)
"""As the columns of ``Place.matrix`` are."""


def gather(
    model: ir.Model,
    sums: Sequence[tuple[Place, Accumulator]],
    data: Iterable[Batch],
    how: How = BY_FEATURE,
) -> None:
    """Run the data through the graph and add what flows into each place.

    Tokens that ``attention_mask`` leaves out are not counted, and behind a token selection only
    those that it kept are. An array ``TOKEN_WEIGHTS`` in a batch says how much each token counts.

    Args:
        model: also one that drops tokens.
        sums: places with what to add their rows to; places may share a sum.
        data: batches; read once, one in memory at a time.
        how: rows are seen.

    Raises:
        BadInputError: no data, too little of it, the same sample again and again, inputs that
            do not fit, or an activation that is NaN or infinite (named with its weight).
    """
    padding = Padding(model)
    names = sorted(
        {place.value for place, _ in sums}
        | set(padding.outputs)
        | set(how.scaling.outputs if how.scaling else ())
    )
    watch = _Watch(how.at_least)
    for batch, seen in observe(model, names, watch.over(data)):
        for place, total in sums:
            array = seen[place.value]
            _check_finite(array, place)
            if how.patches and any(size > 1 for size in place.kernel):
                total.add(patches_of(array, place))
                continue
            real, counts = _rows_of(padding, place, array.shape, (batch, seen))
            rows = samples_of(array, place.axis, real)
            weights = weights_of(counts, real, rows)
            if how.scaling:
                weights = _both(weights, how.scaling.weights(place, rows, seen, real))
            total.add(rows, weights)
    watch.check()


def _rows_of(
    padding: Padding, place: Place, shape: tuple[int, ...], run: tuple[Batch, Batch]
) -> tuple[NDArray[np.bool_] | None, NDArray[np.float64] | None]:
    """Which rows of an activation are there, (B, N), and how much each counts."""
    if place.axis <= 1 and len(shape) != 2:
        return None, None
    real = padding.rows(place.value, shape, *run)
    counts = padding.counts(place.value, shape, *run)
    if counts is None:
        return real, None
    there = counts > 0
    return there if real is None else real & there, counts


def _both(one: Weights, other: Weights) -> Weights:
    """Products of two weights."""
    if one is None or other is None:
        return other if one is None else one
    return [a * b for a, b in zip(one, other, strict=True)]


def _check_finite(array: NDArray[Any], place: Place) -> None:
    """One reduction: the sum of squares is finite where every number is (and none overflows)."""
    flat = array.reshape(-1)
    if np.isfinite(np.dot(flat, flat)) or np.isfinite(array).all():
        return
    bad = "NaN" if np.isnan(array).any() else "infinities"
    raise BadInputError(
        f"an activation holds {bad}",
        where=f"{place.value}, read by {place.parameter}",
        got=f"{int((~np.isfinite(array)).sum())} of {array.size} numbers",
        next_step="`secateur parity --bisect` names the first layer where they appear",
    )


class _Watch:
    """Counts samples, and notices when all of them are the same."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self._count = 0
        self._first: dict[str, NDArray[Any]] = {}
        self._differs = False

    def over(self, data: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches as they are."""
        for batch in data:
            self._look(batch)
            yield batch

    def _look(self, batch: Batch) -> None:
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        sizes = [len(array) for array in arrays.values() if array.ndim]
        self._count += sizes[0] if sizes else 1
        if self._differs:
            return
        if not self._first:
            self._first = {name: array[:1].copy() for name, array in arrays.items() if array.ndim}
        for name, first in self._first.items():
            array = arrays.get(name, first)
            same_shape = array.shape[1:] == first.shape[1:]
            if not same_shape or not np.array_equal(array, np.broadcast_to(first, array.shape)):
                self._differs = True

    def check(self) -> None:
        """Raise BadInputError where the data says too little."""
        if not self._count:
            raise BadInputError(
                "this criterion needs data, and there is none",
                wanted="batches of input arrays",
                next_step="give data, or rank by weights: l1, l2",
            )
        if self._count < self._at_least:
            raise BadInputError(
                "there are too few samples",
                got=str(self._count),
                wanted=f"at least {self._at_least}",
            )
        if self._count > 1 and not self._differs:
            raise BadInputError(
                "every sample of the data is the same",
                got=f"{self._count} samples",
                wanted="samples as the model will see them",
            )


__all__ = ["BY_FEATURE", "BY_KERNEL", "Accumulator", "How", "Scaling", "gather"]
