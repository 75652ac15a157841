"""Run a graph in stages, and regroup samples by their counts in between.

A batch that is pruned sample by sample is as long as its longest sample. Between two stages the
counts of all samples in the queue are known, so samples of similar count go on together. They are
regrouped by permuting everything that crosses; the output of a sample stays what it is alone. A
stage that reads nothing but several rows of each sample, such as its images, takes them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    read: bool = True
    """The next stage takes it; else it passes that stage by."""


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

    @property
    def rows(self) -> int:
        """Rows of a sample that the next stage can take one by one; 1: samples stay whole.

        They do where all that it reads of a sample has these rows, e.g. its two images.
        """
        found = {value.rows for value in self.crossing if value.read and value.rows}
        return found.pop() if len(found) == 1 else 1


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
                they keep no more tokens than this in one row of each, e.g. those of a whole
                batch before pruning. Where rows go one by one, ``batch`` and this are of samples
                still: twice as many images as samples.

        Raises:
            BadInputError: a batch below 1, or inputs with different numbers of samples.
        """
        count = _samples(queue, batch, shared)
        inputs = tuple(Crossing(name, int(name not in shared)) for name in queue)
        groups = [np.arange(count)[at : at + batch] for at in range(0, count, batch)]
        taken = [_taken(queue, inputs, group, None) for group in groups]
        values: Arrays = dict(queue)
        rows = 1
        for stage, boundary in zip(self.stages, self.boundaries, strict=False):
            made = [stage(given) for given in taken]
            values |= _gathered(made, boundary.crossing, groups, rows)
            # what leaves the last stage belongs to samples
            rows = 1 if boundary is self.boundaries[-1] else boundary.rows
            items = {v.name: _divided(values[v.name], v, rows) for v in boundary.crossing}
            groups = _groups(_longest(items, boundary), batch * rows, tokens * rows)
            read = [
                replace(value, rows=value.rows // rows) for value in boundary.crossing if value.read
            ]
            lengths = boundary.axis, 1 + items[boundary.available].max(axis=1)
            taken = [_taken(items, read, group, lengths) for group in groups]
        made = [self.stages[-1](given) for given in taken]
        return _in_order(made, groups, [name for name in made[0] if name not in taken[0]])


def _samples(queue: Mapping[str, Array], batch: int, shared: Sequence[str]) -> int:
    sizes = {name: len(array) for name, array in queue.items() if name not in shared}
    if batch < 1 or len(set(sizes.values())) != 1:
        raise BadInputError(
            "the queue cannot be cut into batches",
            got=f"batches of {batch}, samples {sizes}",
            wanted="a batch of 1 or more, and the same number of samples in every input",
        )
    return next(iter(sizes.values()))


def _divided(array: Array, value: Crossing, rows: int) -> Array:
    """(samples, rows of a sample, ...) as (items, rows of an item, ...)."""
    if rows == 1 or value.rows < rows:
        return array
    return array.reshape(len(array) * rows, value.rows // rows, *array.shape[2:])


def _groups(longest: Array, batch: int, tokens: int) -> list[Array]:
    """Items of similar length together: ``batch`` of them, more where few tokens are left."""
    order = np.argsort(longest, kind="stable")
    groups, start = [], 0
    while start < len(order):
        # the last item of a group is its longest
        room = np.arange(1, len(order) - start + 1) * (1 + longest[order[start:]]) <= tokens
        size = max(batch, int(room.sum()))
        groups.append(order[start : start + size])
        start += size
    return groups


def _longest(values: Arrays, boundary: Boundary) -> Array:
    """What decides how long a group becomes: the item's largest count."""
    kept, available = values[boundary.kept], values[boundary.available]
    length: Array = (kept + (kept < available)).max(axis=1)
    return length


def _taken(
    values: Mapping[str, Array],
    crossing: Sequence[Crossing],
    group: Array,
    lengths: tuple[str, Array] | None,
) -> Arrays:
    """The items of a group as a stage takes them, no longer than the longest needs."""
    taken = {}
    for value in crossing:
        array = values[value.name]
        if value.rows and lengths is not None:
            axis, tokens = lengths
            whole = slice(None)
            short = slice(int(tokens[group].max()))
            parts: Any = (whole, whole, *(short if dim == axis else whole for dim in value.dims))
            array = array[parts][group]
            array = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        elif value.rows:
            array = array[group]
        taken[value.name] = np.ascontiguousarray(array)
    return taken


def _gathered(
    made: Sequence[Mapping[str, Array]],
    crossing: Sequence[Crossing],
    groups: Sequence[Array],
    divided: int,
) -> Arrays:
    """What a stage made of all groups, (samples, rows, ...), in the order of the queue."""
    values: Arrays = {}
    total = sum(len(group) for group in groups)
    for value in crossing:
        if value.name not in made[0]:
            continue
        if not value.rows:
            values[value.name] = made[0][value.name]
            continue
        rows = value.rows // divided
        parts = [
            result[value.name].reshape(rows, len(group), *result[value.name].shape[1:])
            for result, group in zip(made, groups, strict=True)
        ]
        rest = [max(sizes) for sizes in zip(*(part.shape[2:] for part in parts), strict=True)]
        whole = np.zeros((total, rows, *rest), dtype=parts[0].dtype)
        if value.positions:
            whole += np.arange(rest[0])
        for part, group in zip(parts, groups, strict=True):
            index: Any = (group, slice(None), *(slice(size) for size in part.shape[2:]))
            whole[index] = part.swapaxes(0, 1)
        values[value.name] = whole.reshape(total // divided, value.rows, *rest)
    return values


def _in_order(
    made: Sequence[Mapping[str, Array]], groups: Sequence[Array], names: Sequence[str]
) -> Arrays:
    back = np.argsort(np.concatenate(groups))
    return {name: np.concatenate([result[name] for result in made])[back] for name in names}


__all__ = ["Boundary", "Crossing", "Run", "Staged"]
