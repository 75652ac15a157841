"""Ops that move, merge or part axes without computing anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Blocks,
    Fresh,
    Frozen,
    Padded,
    Part,
    Port,
    Product,
    Relation,
    Same,
    Sum,
    by_units,
    carried,
)
from secateur.graph_passes.axes.sizes import Size, at_most, divide, product, static
from secateur.graph_passes.axes.view import View

_END = 2**31 - 1
_LENGTHS = "the lengths of the parts are computed"


@AXIS_RULES.register("Transpose")
@by_units
def transpose(view: View) -> Iterable[Relation]:
    """Axis ``perm[i]`` of the input is axis i of the output."""
    rank = view.rank(0) or 0
    perm = view.attribute_ints("perm") or tuple(reversed(range(rank)))
    return _permuted(tuple(perm))


@lru_cache(maxsize=1024)
def _permuted(perm: tuple[int, ...]) -> tuple[Relation, ...]:
    return tuple([Same((Port(0, axis), Port(OUT, out))) for out, axis in enumerate(perm)])


@AXIS_RULES.register("Reshape")
def reshape(view: View) -> Iterator[Relation]:
    """Runs of axes with equal products are related; row-major order is kept."""
    shape, target = view.shape(0), reshape_target(view)
    if shape is None or target is None:
        return
    yield from _regroup(shape, target)


@AXIS_RULES.register("Flatten")
def flatten(view: View) -> Iterator[Relation]:
    """(A, ..., B, ...) -> (A*..., B*...), parted at ``axis``."""
    shape = view.shape(0)
    if shape is None:
        return
    at = view.integer("axis", 1)
    at += len(shape) if at < 0 else 0
    yield from _regroup(shape, (product(shape[:at]), product(shape[at:])))


def reshape_target(view: View) -> tuple[Size, ...] | None:
    """Return the shape that a Reshape makes, with 0 and -1 worked out."""
    shape, spelled = view.shape(0), view.ints(1)
    if shape is None:
        return None
    if spelled is None:
        return view.shape(OUT)
    sizes: list[Size | None] = []
    for axis, entry in enumerate(spelled):
        if entry == 0 and not view.integer("allowzero", 0):
            sizes.append(shape[axis])
        else:
            sizes.append(None if entry == -1 else entry)
    if None in sizes:
        rest = divide(product(shape), product([s for s in sizes if s is not None]))
        declared = view.shape(OUT)
        at = sizes.index(None)
        if rest is None and declared is None:
            return None
        sizes[at] = rest if rest is not None else (declared or ())[at]
    return tuple(s for s in sizes if s is not None)


def _regroup(shape: tuple[Size, ...], target: tuple[Size, ...]) -> Iterator[Relation]:
    """Match runs of input axes with runs of output axes of the same product.

    Equal last axes are the same axes, also where nothing is known of the first ones.
    """
    while shape and target and shape[-1] == target[-1]:
        yield Same((Port(0, len(shape) - 1), Port(OUT, len(target) - 1)))
        shape, target = shape[:-1], target[:-1]
    i = j = 0
    while i < len(shape) or j < len(target):
        if j < len(target) and target[j] == 1:
            yield Fresh(Port(OUT, j), 1)
            j += 1
            continue
        if i < len(shape) and shape[i] == 1:
            i += 1
            continue
        run = _run(shape, target, i, j)
        left = tuple(Port(0, a) for a in range(i, run[0]))
        right = tuple(Port(OUT, b) for b in range(j, run[1]))
        if len(left) == 1 and len(right) == 1:
            yield Same((left[0], right[0]))
        elif left and right:
            if len(right) > 1:
                for port in right:
                    yield Fresh(port, target[port.axis])
            yield Product(left, right)
        else:
            reason = "the reshape could not be followed"
            yield from (Frozen(port, reason) for port in (*left, *right))
        i, j = run


def _run(shape: tuple[Size, ...], target: tuple[Size, ...], i: int, j: int) -> tuple[int, int]:
    """End of the shortest runs from i and j with equal products; all that is left if none."""
    left: Size = shape[i] if i < len(shape) else 1
    right: Size = target[j] if j < len(target) else 1
    i, j = min(i + 1, len(shape)), min(j + 1, len(target))
    while left != right:
        if i < len(shape) and (at_most(left, right) or j >= len(target)):
            left, i = left * shape[i], i + 1
        elif j < len(target):
            right, j = right * target[j], j + 1
        elif i < len(shape):
            left, i = left * shape[i], i + 1
        else:
            break
    return i, j


@AXIS_RULES.register("Squeeze", "Unsqueeze")
def squeeze(view: View) -> Iterator[Relation]:
    """Axes of size 1 come or go; the others keep their order."""
    rank = view.rank(0)
    if rank is None:
        return
    listed: tuple[int, ...] | None = None
    attribute, spelled = view.attribute_ints("axes"), view.ints(1)
    if attribute is not None:
        listed = tuple(attribute)
    elif view.has(1):
        if spelled is None:
            return
        listed = tuple(static(s) for s in spelled)
    if view.node.op_type == "Unsqueeze":
        total = rank + len(listed or ())
        added = {axis % total for axis in listed or ()}
        kept = iter(range(rank))
        for out in range(total):
            yield (
                Fresh(Port(OUT, out), 1)
                if out in added
                else Same((Port(0, next(kept)), Port(OUT, out)))
            )
        return
    shape = view.shape(0) or ()
    gone = (
        {a % rank for a in listed}
        if listed is not None
        else {i for i, s in enumerate(shape) if s == 1}
    )
    for out, axis in enumerate(a for a in range(rank) if a not in gone):
        yield Same((Port(0, axis), Port(OUT, out)))


@AXIS_RULES.register("Expand")
def expand(view: View) -> Iterator[Relation]:
    """An axis of size 1 that is repeated stands for itself in the output."""
    shape, spelled = view.shape(0), view.ints(1)
    target = spelled if spelled is not None else view.shape(OUT)
    if shape is None or target is None:
        return
    rank = max(len(shape), len(target))
    for out in range(rank):
        axis, wanted = out - rank + len(shape), out - rank + len(target)
        if axis >= 0 and shape[axis] != 1:
            yield Same((Port(0, axis), Port(OUT, out)))
        elif wanted >= 0:
            yield Fresh(Port(OUT, out), target[wanted])
        else:
            yield Fresh(Port(OUT, out), 1)


@AXIS_RULES.register("Concat")
def concat(view: View) -> Iterator[Relation]:
    """The joined axis is the sum of the parts; the others are carried."""
    rank = view.rank(0)
    if rank is None or any(view.rank(slot) != rank for slot in range(len(view))):
        return
    joined = view.integer("axis", 0) % rank
    for axis in range(rank):
        ports = tuple(Port(slot, axis) for slot in range(len(view)))
        if axis == joined:
            yield Sum(Port(OUT, axis), ports)
        else:
            yield Same((*ports, Port(OUT, axis)))


@AXIS_RULES.register("Split")
def split(view: View) -> Iterator[Relation]:
    """The parted axis is the sum of the outputs; the others are carried."""
    shape = view.shape(0)
    if shape is None:
        return
    parted = view.integer("axis", 0) % len(shape)
    n = len(view.node.outputs)
    lengths = split_lengths(view, shape[parted])
    for axis in range(len(shape)):
        if axis != parted:
            yield Same((Port(0, axis), *(Port(~i, axis) for i in range(n))))
            continue
        if lengths is None:
            yield Frozen(Port(0, axis), _LENGTHS)
            for i in range(n):
                yield Fresh(Port(~i, axis))
                yield Frozen(Port(~i, axis), _LENGTHS)
            continue
        start: Size = 0
        for i, length in enumerate(lengths):
            yield Part(Port(0, axis), Port(~i, axis), start, start + length)
            start = start + length


def split_lengths(view: View, total: Size) -> tuple[Size, ...] | None:
    """Return the lengths of the outputs of a Split, None where they are computed."""
    spelled = view.ints(1) if view.has(1) else view.attribute_ints("split")
    if spelled is not None:
        return tuple(spelled)
    n = len(view.node.outputs)
    if view.has(1):
        return None
    even = divide(total, n)
    if even is not None:
        return (even,) * n
    if not isinstance(total, int):
        return None
    chunk = -(-total // n)
    return (*(chunk,) * (n - 1), total - chunk * (n - 1))


@AXIS_RULES.register("Slice")
def slice_(view: View) -> Iterator[Relation]:
    """A run of an axis is a part of it; steps other than 1 freeze."""
    shape = view.shape(0)
    bounds = slice_bounds(view)
    if shape is None:
        return
    for axis, total in enumerate(shape):
        if bounds is None:
            yield Frozen(Port(0, axis), "the bounds of the slice are computed")
            continue
        if axis not in bounds:
            yield carried(axis)
            continue
        start, stop, step = bounds[axis]
        if step != 1:
            yield Frozen(Port(0, axis), f"every {step}th position is read")
            yield Fresh(Port(OUT, axis))
            yield Frozen(Port(OUT, axis), f"every {step}th position is read")
            continue
        yield Part(Port(0, axis), Port(OUT, axis), start, _within(stop, total))


def _within(stop: Size, total: Size) -> Size:
    return total if at_most(total, stop) else stop


def slice_bounds(view: View) -> dict[int, tuple[Size, Size, int]] | None:
    """Return (start, stop, step) per sliced axis, counted from 0; None where computed."""
    shape = view.shape(0)
    if shape is None:
        return None
    starts, stops = _bound(view, 1, "starts"), _bound(view, 2, "ends")
    if starts is None or stops is None:
        return None
    axes = _bound(view, 3, "axes") if view.has(3) or view.attribute_ints("axes") else None
    steps = _bound(view, 4, "steps") if view.has(4) else (1,) * len(starts)
    if steps is None or (view.has(3) and axes is None):
        return None
    found: dict[int, tuple[Size, Size, int]] = {}
    for i, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
        axis = static(axes[i]) % len(shape) if axes is not None else i
        if step != 1:
            found[axis] = (start, stop, step if isinstance(step, int) else 0)
            continue
        total = shape[axis]
        found[axis] = (_position(start, total), _position(stop, total), 1)
    return found


def _bound(view: View, slot: int, name: str) -> tuple[Size, ...] | None:
    if view.has(slot):
        return view.ints(slot)
    listed = view.attribute_ints(name)
    return None if listed is None else tuple(listed)


def _position(bound: Size, total: Size) -> Size:
    """Count from the front; ends beyond the axis stop at it."""
    if isinstance(bound, int):
        if bound >= _END:
            return total
        if bound <= -_END:
            return 0
        if bound < 0:
            moved = total + bound
            return max(moved, 0) if isinstance(moved, int) else moved
        return min(bound, total) if isinstance(total, int) else bound
    return bound


@AXIS_RULES.register("Pad")
def pad(view: View) -> Iterator[Relation]:
    """Constant padding stands before and after the axis; other modes freeze a padded axis."""
    rank = view.rank(0)
    pads = view.ints(1) if view.has(1) else view.attribute_ints("pads")
    if rank is None or pads is None or not all(isinstance(p, int) for p in pads):
        return
    listed = view.ints(3) if view.has(3) else tuple(range(rank))
    if listed is None:
        return
    around = {static(a) % rank: i for i, a in enumerate(listed)}
    for axis in range(rank):
        i = around.get(axis)
        before, after = (0, 0) if i is None else (static(pads[i]), int(str(pads[i + len(listed)])))
        if before == 0 and after == 0:
            yield carried(axis)
        elif min(before, after) < 0 or view.string("mode", "constant") != "constant":
            yield Frozen(Port(0, axis), "it is padded from itself or cropped")
            yield Fresh(Port(OUT, axis))
            yield Frozen(Port(OUT, axis), "it is padded from itself or cropped")
        else:
            yield Padded(Port(0, axis), Port(OUT, axis), before, after)


@AXIS_RULES.register("Tile")
def tile(view: View) -> Iterator[Relation]:
    """An axis repeated r times is r blocks, each the whole axis."""
    rank, repeats = view.rank(0), view.ints(1)
    if rank is None or repeats is None:
        return
    for axis, times in enumerate(repeats):
        if times == 1:
            yield carried(axis)
        else:
            yield Blocks(
                (Port(OUT, axis),), times, ((Port(0, axis),),), fixed_blocks="it is a repetition"
            )


@AXIS_RULES.register("DepthToSpace", "SpaceToDepth")
def depth_to_space(view: View) -> Iterator[Relation]:
    """Channels are b*b blocks of C (DCR, SpaceToDepth) or C blocks of b*b (CRD)."""
    shape, block = view.shape(0), view.integer("blocksize", 1)
    if shape is None:
        return
    yield carried(0)
    fixed = "the positions of a block go to space"
    if view.node.op_type == "SpaceToDepth":
        yield Blocks((Port(OUT, 1),), block * block, ((Port(0, 1),),), fixed_blocks=fixed)
    elif view.string("mode", "DCR") == "DCR":
        yield Blocks((Port(0, 1),), block * block, ((Port(OUT, 1),),), fixed_blocks=fixed)
    else:
        channels = divide(shape[1], block * block)
        if channels is None:
            return
        yield Blocks((Port(0, 1),), channels, ((),), (Port(OUT, 1),), fixed=fixed)
    for axis in (2, 3):
        yield Frozen(Port(0, axis), fixed)
        yield Fresh(Port(OUT, axis))
        yield Frozen(Port(OUT, axis), fixed)


@AXIS_RULES.register("Resize", "Upsample")
def resize(view: View) -> Iterator[Relation]:
    """An axis that keeps its size is carried, a resized one is frozen."""
    before, after = view.shape(0), view.shape(OUT)
    scales = view.constant(len(view) - 1 if view.node.op_type == "Upsample" else 2)
    for axis in range(len(before or ())):
        kept = axis < 2 if scales is None or scales.size == 0 else float(scales[axis]) == 1.0
        if before is not None and after is not None and axis >= 2:
            kept = kept and before[axis] == after[axis]
        if kept:
            yield carried(axis)
            continue
        yield Frozen(Port(0, axis), "it is resampled")
        yield Fresh(Port(OUT, axis))
        yield Frozen(Port(OUT, axis), "it is resampled")
