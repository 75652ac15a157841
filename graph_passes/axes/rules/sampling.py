"""Reading images at computed places: channels and samples are carried, space is not."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Blocks,
    Fresh,
    Frozen,
    Port,
    Relation,
    Same,
    carried,
)
from secateur.graph_passes.axes.sizes import divide
from secateur.graph_passes.axes.view import View

_SAMPLED = "it is sampled at computed places"
_PLACES = "it holds coordinates"


@AXIS_RULES.register("GridSample")
def grid_sample(view: View) -> Iterator[Relation]:
    """(B, C, *S), grid (B, *S', d) -> (B, C, *S'): the places S' are carried."""
    rank = view.rank(0) or 0
    yield Same((Port(0, 0), Port(1, 0), Port(OUT, 0)))
    yield carried(1)
    for axis in range(2, rank):
        yield Frozen(Port(0, axis), _SAMPLED)
        yield Same((Port(1, axis - 1), Port(OUT, axis)))
    yield Frozen(Port(1, rank - 1), _PLACES)


@AXIS_RULES.register("RoiAlign", "MaxRoiPool")
def regions(view: View) -> Iterator[Relation]:
    """(B, C, H, W), regions (R, 4 or 5), sample of each (R) -> (R, C, h, w): C is carried."""
    yield Frozen(Port(0, 0), "it is read at computed positions")
    yield carried(1)
    of_each = (Port(2, 0),) if view.has(2) else ()
    yield Same((Port(1, 0), *of_each, Port(OUT, 0)))
    yield Frozen(Port(1, 0), _PLACES)
    yield Frozen(Port(1, 1), _PLACES)
    pooled = view.attribute_ints("pooled_shape") or tuple(
        view.integer(name, 1) for name in ("output_height", "output_width")
    )
    for axis in (2, 3):
        yield Frozen(Port(0, axis), _SAMPLED)
        yield Fresh(Port(OUT, axis), pooled[axis - 2])
        yield Frozen(Port(OUT, axis), _SAMPLED)


@AXIS_RULES.register("Col2Im")
def columns_to_image(view: View) -> Iterator[Relation]:
    """(B, C*k, L), image (n), kernel (n) -> (B, C, *image): C blocks of k."""
    shape, kernel, image = view.shape(0), view.ints(2), view.ints(1)
    if shape is None or kernel is None or image is None:
        return
    channels = shape[1]
    for extent in kernel:
        whole = divide(channels, extent)
        if whole is None:
            return
        channels = whole
    yield carried(0)
    yield Blocks((Port(0, 1),), channels, ((),), (Port(OUT, 1),), fixed="it goes to space")
    yield Frozen(Port(0, 2), "it goes to space")
    for axis, length in enumerate(image):
        yield Fresh(Port(OUT, axis + 2), length)
        yield Frozen(Port(OUT, axis + 2), "it is made of a window")


@AXIS_RULES.register("CenterCropPad")
def center(view: View) -> Iterator[Relation]:
    """(A, ...), lengths -> (..., A', ...): the listed axes are cut or padded around the middle."""
    rank = view.rank(0) or 0
    listed = {axis % rank for axis in view.attribute_ints("axes") or range(rank)}
    for axis in range(rank):
        if axis not in listed:
            yield carried(axis)
            continue
        for port in (Port(0, axis), Port(OUT, axis)):
            if port.slot < 0:
                yield Fresh(port)
            yield Frozen(port, "it is padded from itself or cropped")


@AXIS_RULES.register("ReverseSequence")
def reverse_sequence(view: View) -> Iterator[Relation]:
    """(T, B, ...), lengths (B) -> (T, B, ...): time is turned round, so it stays."""
    time, batch = view.integer("time_axis", 0), view.integer("batch_axis", 1)
    for axis in range(view.rank(0) or 0):
        lengths = (Port(1, 0),) if axis == batch else ()
        yield Same((Port(0, axis), *lengths, Port(OUT, axis)))
        if axis == time:
            yield Frozen(Port(0, axis), "its order is turned round")


@AXIS_RULES.register("TensorScatter")
def write_cache(view: View) -> Iterator[Relation]:
    """Past (B, ..., T, ...), update (B, ..., N, ...), start (B) -> past: T and N stay."""
    rank = view.rank(0) or 0
    written = view.integer("axis", -2) % max(rank, 1)
    for axis in range(rank):
        if axis != written:
            start = (Port(2, 0),) if axis == 0 and view.has(2) else ()
            yield Same((Port(0, axis), Port(1, axis), *start, Port(OUT, axis)))
            continue
        yield carried(axis)
        yield Frozen(Port(0, axis), "it is written at computed positions")
        yield Frozen(Port(1, axis), "each of its positions is written somewhere")
