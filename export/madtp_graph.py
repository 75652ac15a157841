"""A MADTP model as one ONNX graph, no host code inside, assembled from one trace per kind of layer.

Three forms: ``decoupled`` (every sample its own count and a validity mask, the default),
``faithful`` (the batch's largest count, as published), ``schedule`` (counts are an input).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.export.dimension_names import Dynamic
from secateur.export.madtp_assembly import Assembly, Place, Values
from secateur.export.madtp_parts import Back, Form, Front, How, Whole, stand_in

Traceable = tuple[nn.Module, dict[str, Tensor], Dynamic]

_ROWS, _TOKENS, _SLOTS, _IMAGE_TOKENS = 3, 9, 5, 7
"""Sizes while tracing; all different, none of them 1."""

_PER_TOKEN, _PER_SAMPLE = {0: "batch", 1: "tokens"}, {0: "batch"}
_PER_IMAGE_TOKEN = {0: "batch", 1: "image_tokens"}
_PLANNED = {
    "stream": _PER_TOKEN,
    "ranking": _PER_TOKEN,
    "merged": _PER_SAMPLE,
    "kept": _PER_SAMPLE,
    "available": _PER_SAMPLE,
}


@dataclass(frozen=True, slots=True)
class Tower:
    """A stack of layers on its way into a graph."""

    layers: Sequence[nn.Module]
    prefix: str
    """Of the layers in the model, e.g. ``vision.encoder.layers``."""
    concepts: Tensor
    how: How
    batch: str = "batch"
    """Its rows, in terms of the model's batch."""
    queries: Sequence[nn.Module] = ()
    query_prefix: str = ""
    name: str = ""
    """Of this run of the layers, where a model runs them more than once."""

    @property
    def width(self) -> int:
        """D."""
        first = cast("Any", self.layers[0])
        norm = getattr(first, "layer_norm1", None)
        if norm is None:
            norm = first.attention.output.LayerNorm
        return int(norm.normalized_shape[0])


def add_stack(
    to: Assembly,
    tower: Tower,
    start: Values,
    knob: Callable[[int], ir.Value],
    state: dict[str, Tensor],
) -> Values:
    """Append all layers of a tower.

    Args:
        to: the graph.
        tower: the layers.
        start: ``hidden``, and where there are any ``mask``, ``end``, ``floor``, and of other
            branches ``image0``, ``image_mask0`` and so on.
        knob: the temperature, or the count, of a layer.
        state: parameters of the whole model.

    Returns:
        ``hidden``, ``mask`` and ``end`` behind the last layer.
    """
    at = dict(start)
    images = {name: value for name, value in start.items() if name.startswith("image")}
    run = f"{tower.name}.{tower.prefix}" if tower.name else tower.prefix
    tokens = f"{run}.tokens"
    for i in range(len(tower.layers)):
        site = f"{run}.{i}"
        dims = {"batch": tower.batch, "tokens": _word(tokens), "length": _word(f"{site}.tokens")}
        dims["image_tokens"] = "image_tokens"
        place = Place(site, _renaming(tower, i), dims)
        if tower.how.form == "dense":
            at["hidden"] = _add_whole(to, tower, at, (place, i), state)
            continue
        given = {n: v for n, v in at.items() if n in {"hidden", "mask", "end", "floor"}}
        front = to.traced(_key(tower, "front", given), lambda g=given: _front(tower, g))  # type: ignore[misc]
        planned = to.add(front, given | {"knob": knob(i)}, place, state)
        slot = _slots(to, tower, site, planned, knob(i))
        moved = {n: v for n, v in at.items() if n in {"mask", "end"}} | images
        key = _key(tower, "back", moved, merges=_merges(tower.layers[i]))
        back = to.traced(key, lambda g=moved, layer=tower.layers[i]: _back(tower, layer, g))  # type: ignore[misc]
        made = to.add(back, planned | moved | {"slot": slot}, _behind(place), state)
        # export calls an output that is also an input <name>_out
        now = {name.removesuffix("_out"): value for name, value in made.items()}
        at = {n: v for n, v in at.items() if n == "floor"} | now
        tokens = f"{site}.tokens"
    return {name: value for name, value in at.items() if name != "floor"}


def _add_whole(
    to: Assembly, tower: Tower, at: Values, where: tuple[Place, int], state: dict[str, Tensor]
) -> ir.Value:
    place, i = where
    layer = tower.layers[i]
    key = _key(tower, "whole", at, merges=_merges(layer))
    return to.add(to.traced(key, lambda: _whole(tower, layer, at)), at, place, state)["hidden_out"]


def _whole(tower: Tower, layer: nn.Module, given: Values) -> Traceable:
    inputs = {
        "hidden": torch.randn(_ROWS, _TOKENS, tower.width),
        "mask": torch.arange(_TOKENS)[None] < torch.tensor([[9], [7], [8]]),
    }
    axes = {"hidden": _PER_TOKEN, "mask": _PER_TOKEN}
    for name in given:
        if name.startswith("image"):
            inputs[name], axes[name] = _shown(name, layer), _PER_IMAGE_TOKEN
    net = Whole(stand_in(layer), tower.how).eval()
    return net, {n: inputs[n] for n in given}, {n: axes[n] for n in given}


def _behind(place: Place) -> Place:
    return replace(place, name=f"{place.name}.cut")


def _word(path: str) -> str:
    return path.replace(".", "_")


def _renaming(tower: Tower, layer: int) -> Callable[[str], str]:
    def rename(name: str) -> str:
        if name == "decision.concepts":
            return "concepts.weight"
        if name == "decision":
            return f"{tower.prefix}.{layer}.decision"
        for mine, theirs in (("layer", tower.prefix), ("query", tower.query_prefix)):
            if name == mine or name.startswith(f"{mine}."):
                return f"{theirs}.{layer}{name.removeprefix(mine)}"
        return name

    return rename


def _merges(layer: nn.Module) -> bool:
    cross = getattr(layer, "crossattention", None)
    return cross is not None and getattr(cross.output, "merge_layer", None) is not None


def _key(tower: Tower, half: str, given: Values, **more: object) -> tuple[object, ...]:
    # what prunes is decided in the first half; all rules share the others
    how = tower.how if half == "front" else replace(tower.how, rule="madtp")
    return (tower.prefix, how, half, *sorted(given), *more.items())


def _slots(to: Assembly, tower: Tower, site: str, planned: Values, knob: ir.Value) -> ir.Value:
    """(K,) int64, 0 to K - 1: the length of what stays, known only while it runs.

    A TopK of positions makes them: TensorRT has no Range that ends where data says. It has to see
    a bound of what data says (the minimum), or it asks for memory for the largest number there is.
    """
    zero = to.integers("zero", 0)
    length = to.op("Shape", f"{site}.cut/before", planned["ranking"], start=1, end=2)
    if tower.how.form == "schedule":
        longest = to.op("Add", f"{site}.cut/k", knob, to.integers("two", 2))
    else:
        prunes = to.op("Less", f"{site}.cut/prunes", planned["kept"], planned["available"])
        extra = to.op("Cast", f"{site}.cut/extra", prunes, to=ir.DataType.INT64.value)
        rest = to.op("Add", f"{site}.cut/rest", planned["kept"], extra)
        own = to.op("Add", f"{site}.cut/own", rest, to.integers("one", 1))
        longest = to.op("ReduceMax", f"{site}.cut/longest", own, zero, keepdims=1)
    most = to.op("Min", f"{site}.cut/most", longest, length)
    to.cuts.append(
        {
            "site": site,
            "batch": tower.batch,
            "kept": str(planned["kept"].name),
            "available": str(planned["available"].name),
            "length": str(most.name),
            "axis": str(cast("ir.Shape", planned["ranking"].shape)[1]),
        }
    )
    start = to.integers("start", 0, scalar=True)
    step = to.integers("step", 1, scalar=True)
    end = to.op("Squeeze", f"{site}.cut/end", length, zero)
    places = to.op("Range", f"{site}.cut/places", start, end, step)
    ranked = to.op("Cast", f"{site}.cut/ranked", places, to=ir.DataType.FLOAT.value)
    names = (f"{site}.cut/first", f"{site}.cut/slot")
    slot = to.ops("TopK", names, ranked, most, axis=0, largest=0, sorted=1)[1]
    slot.shape = ir.Shape([_word(f"{site}.tokens")])
    slot.dtype = ir.DataType.INT64
    return slot


def _front(tower: Tower, given: Values) -> Traceable:
    query = stand_in(tower.queries[0]) if tower.queries else None
    layer = stand_in(tower.layers[0])
    net = Front(layer, torch.randn(tower.concepts.shape), query, tower.how)
    inputs = {"hidden": torch.randn(_ROWS, _TOKENS, tower.width), "knob": torch.tensor(1.5)}
    if tower.how.form == "schedule":
        inputs["knob"] = torch.tensor([4])
    examples = {
        "mask": torch.arange(_TOKENS)[None] < torch.tensor([[9], [7], [8]]),
        "end": torch.tensor([3, 5, 2]),
        "floor": torch.tensor([2, 3, 2]),
    }
    axes = {"hidden": _PER_TOKEN, "mask": _PER_TOKEN, "end": _PER_SAMPLE, "floor": _PER_SAMPLE}
    inputs |= {name: examples[name] for name in given if name != "hidden"}
    return net.eval(), inputs, {name: axes[name] for name in inputs if name != "knob"}


def _back(tower: Tower, layer: nn.Module, given: Values) -> Traceable:
    """Trace the second half; positions of 0 and 1 stay valid at every size it is checked at."""
    examples = {
        "stream": torch.randn(_ROWS, _TOKENS, tower.width),
        "ranking": torch.arange(_ROWS * _TOKENS).reshape(_ROWS, _TOKENS) % 2,
        "merged": torch.randn(_ROWS, 1, tower.width),
        "kept": torch.tensor([3, 2, 6]),
        "available": torch.tensor([8, 6, 6]),
        "slot": torch.arange(_SLOTS) % 2,
        "mask": torch.ones(_ROWS, _TOKENS, dtype=torch.bool),
        "end": torch.tensor([1, 0, 1]),
    }
    axes = _PLANNED | {"slot": {0: "length"}, "mask": _PER_TOKEN, "end": _PER_SAMPLE}
    for name in given:
        if name.startswith("image"):
            examples[name], axes[name] = _shown(name, layer), _PER_IMAGE_TOKEN
    wanted = [*_PLANNED, "slot", *given]
    net = Back(stand_in(layer), tower.how).eval()
    return net, {n: examples[n] for n in wanted}, {n: axes[n] for n in wanted}


def _shown(name: str, layer: nn.Module) -> Tensor:
    """Tokens of an image that a layer looks at, or their mask."""
    if "mask" in name:
        return torch.arange(_IMAGE_TOKENS)[None] < torch.tensor([[7], [4], [6]])
    return torch.randn(_ROWS, _IMAGE_TOKENS, _context_width(layer))


def _context_width(layer: nn.Module) -> int:
    cross = cast("Any", layer).crossattention
    attention = cross.self0 if hasattr(cross, "self0") else cross.self
    return int(attention.key.in_features)


def check_form(form: str) -> None:
    """Refuse an unknown form.

    Raises:
        BadInputError: with the forms that exist.
    """
    forms = get_args(Form)
    if form not in forms:
        raise BadInputError("unknown form of a graph", got=form, wanted=", ".join(forms))


__all__ = ["Tower", "add_stack", "check_form"]
