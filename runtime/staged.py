"""Run a graph in stages, and regroup samples by their counts in between.

A batch that is pruned sample by sample is as long as its longest sample. Between two stages the
counts of all samples in the queue are known, so samples of similar count go on together. They are
regrouped by permuting everything that crosses; the output of a sample stays what it is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError

Array = NDArray[Any]
Arrays = dict[str, Array]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that crosses a boundary."""

    name: str
    rows: int
    """Rows per sample along its first axis, blocks of a batch one after the other; 0: the value
    is the same for all samples."""
    dims: tuple[str, ...] = ()
    """Names of the axes behind the first; empty where an axis has one size."""
    positions: bool = False
    """It holds positions of tokens: filling continues them."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """What is between two stages."""

    kept: str
    """Value with the counts that the next stage keeps."""
    available: str
    """Value with the tokens that samples have, position 0 not counted."""
    axis: str
    """Name of the axis of these tokens."""
    crossing: tuple[Crossing, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """Stages, one more than boundaries."""

    stages: Sequence[Run]
    boundaries: Sequence[Boundary]

    def __post_init__(self) -> None:
        if len(self.stages) != len(self.boundaries) + 1:
            raise BadInputError(
                "stages and boundaries do not fit",
                got=f"{len(self.stages)} stages, {len(self.boundaries)} boundaries",
                wanted="one stage more than boundaries",
            )

    def run(
        self,
        queue: Mapping[str, Array],
        batch: int,
        *,
        shared: Sequence[str] = (),
        tokens: int = 0,
    ) -> Arrays:
        """Run all samples of a queue; results are in its order.

        Args:
            queue: inputs of the first stage, samples along the first axis.
            batch: largest number of samples that run together.
            shared: inputs that are the same for all samples, such as a temperature.
            tokens: behind the first stage more samples than ``batch`` run together as long as
                they keep no more tokens than this, e.g. those of a whole batch before pruning.

        Raises:
            BadInputError: a batch below 1, or inputs with different numbers of samples.
        """
        count = _samples(queue, batch, shared)
        groups = [np.arange(count)[at : at + batch] for at in range(0, count, batch)]
        values = dict(queue)
        inputs = tuple(Crossing(name, int(name not in shared)) for name in queue)
        for i, stage in enumerate(self.stages):
            lengths = self._lengths(values, i)
            taken = [_taken(values, inputs, group, lengths) for group in groups]
            made = [given | dict(stage(given)) for given in taken]
            if i == len(self.boundaries):
                return _in_order(made, groups, [name for name in made[0] if name not in taken[0]])
            inputs = self.boundaries[i].crossing
            values = _gathered(made, inputs, groups)
            groups = _groups(_longest(values, self.boundaries[i]), batch, tokens)
        raise AssertionError  # the last stage returns

    def _lengths(self, values: Arrays, stage: int) -> tuple[str, Array] | None:
        """The axis that the cut before a stage acts on, and each sample's tokens along it."""
        if stage == 0:
            return None
        boundary = self.boundaries[stage - 1]
        return boundary.axis, 1 + values[boundary.available].max(axis=1)


def _samples(queue: Mapping[str, Array], batch: int, shared: Sequence[str]) -> int:
    sizes = {name: len(array) for name, array in queue.items() if name not in shared}
    if batch < 1 or len(set(sizes.values())) != 1:
        raise BadInputError(
            "the queue cannot be cut into batches",
            got=f"batches of {batch}, samples {sizes}",
            wanted="a batch of 1 or more, and the same number of samples in every input",
        )
    return next(iter(sizes.values()))


def _groups(longest: Array, batch: int, tokens: int) -> list[Array]:
    """Samples of similar length together: ``batch`` of them, more where few tokens are left."""
    order = np.argsort(longest, kind="stable")
    groups, start = [], 0
    while start < len(order):
        # the last sample of a group is its longest
        room = np.arange(1, len(order) - start + 1) * (1 + longest[order[start:]]) <= tokens
        size = max(batch, int(room.sum()))
        groups.append(order[start : start + size])
        start += size
    return groups


def _longest(values: Arrays, boundary: Boundary) -> Array:
    """What decides how long a group becomes: the sample's largest count."""
    kept, available = values[boundary.kept], values[boundary.available]
    length: Array = (kept + (kept < available)).max(axis=1)
    return length


def _taken(
    values: Arrays,
    crossing: Sequence[Crossing],
    group: Array,
    lengths: tuple[str, Array] | None,
) -> Arrays:
    """The samples of a group as a stage takes them, no longer than the longest needs."""
    taken = {}
    for value in crossing:
        array = values[value.name]
        if value.rows and lengths is not None:
            array = array[group]
            axis, tokens = lengths
            for i, dim in enumerate(value.dims):
                if dim == axis:
                    array = array.take(range(int(tokens[group].max())), axis=2 + i)
            array = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        elif value.rows:
            array = array[group]
        taken[value.name] = np.ascontiguousarray(array)
    return taken


def _gathered(
    made: Sequence[Mapping[str, Array]], crossing: Sequence[Crossing], groups: Sequence[Array]
) -> Arrays:
    """Everything that crosses, (samples, rows, ...), in the order of the queue."""
    values: Arrays = {}
    for value in crossing:
        if not value.rows:
            values[value.name] = made[0][value.name]
            continue
        parts = [
            result[value.name].reshape(value.rows, len(group), *result[value.name].shape[1:])
            for result, group in zip(made, groups, strict=True)
        ]
        rest = [max(sizes) for sizes in zip(*(part.shape[2:] for part in parts), strict=True)]
        total = sum(len(group) for group in groups)
        whole = np.zeros((total, value.rows, *rest), dtype=parts[0].dtype)
        if value.positions:
            whole += np.arange(rest[0])
        for part, group in zip(parts, groups, strict=True):
            index: Any = (group, slice(None), *(slice(size) for size in part.shape[2:]))
            whole[index] = part.swapaxes(0, 1)
        values[value.name] = whole
    return values


def _in_order(
    made: Sequence[Mapping[str, Array]], groups: Sequence[Array], names: Sequence[str]
) -> Arrays:
    back = np.argsort(np.concatenate(groups))
    return {name: np.concatenate([result[name] for result in made])[back] for name in names}


__all__ = ["Boundary", "Crossing", "Run", "Staged"]
