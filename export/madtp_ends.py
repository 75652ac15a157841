"""What goes around the towers of a MADTP graph: its inputs, embeddings, norms and heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.export.madtp_assembly import Assembly, Place, Values
from secateur.export.madtp_graph import Tower, Traceable, add_stack
from secateur.export.madtp_parts import Form, How, PairedPixels, Pixels, Words

IMAGES, TEXT = "image", "text"
_BATCH = {0: "batch"}
_TOKENS = {0: "batch", 1: "tokens"}
_HIDDEN = (3, 4)
"""Samples and tokens while tracing."""

State = dict[str, Tensor]
Knob = Callable[[int], ir.Value]


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower on its way into a graph."""

    model: nn.Module
    """``BlipVisionModel``, or what is inside ``CLIPVisionModel``."""
    concepts: Tensor
    how: How
    queries: tuple[nn.Module, ...] = ()
    """``image_queries`` of CLIP."""
    batch: str = "batch"
    """Its rows, in terms of the model's batch."""


def graph_input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    """An input of the graph."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def pixel_input(vision: nn.Module, *images: int) -> ir.Value:
    """``pixel_values`` (B, [images,] 3, H, W)."""
    size = int(cast("Any", vision).config.image_size)
    return graph_input("pixel_values", ir.DataType.FLOAT, ["batch", *images, 3, size, size])


def text_input(name: str, tokens: str = "tokens") -> ir.Value:
    """Ids, or a mask of them, (B, tokens) int64."""
    return graph_input(name, ir.DataType.INT64, ["batch", tokens])


def knob_inputs(towers: dict[str, nn.Module], form: Form) -> list[ir.Value]:
    """What says how much is pruned: nothing, ``temperature``, or the counts of every tower."""
    if form == "dense":
        return []
    if form != "schedule":
        return [graph_input("temperature", ir.DataType.FLOAT, [])]
    depths = {name: cast("Any", tower).config.num_hidden_layers for name, tower in towers.items()}
    return [graph_input(f"{n}_counts", ir.DataType.INT64, [depth]) for n, depth in depths.items()]


def knobs(to: Assembly, form: Form, branch: str) -> Knob:
    """What each layer of a branch is given: the temperature, or its count."""
    if form != "schedule":
        return lambda _: to.inputs["temperature"]  # not asked for where nothing is pruned
    made: dict[int, ir.Value] = {}

    def count(layer: int) -> ir.Value:
        if layer not in made:
            at = to.integers(f"layer_{layer}", layer)
            name = f"{branch}_count_{layer}"
            made[layer] = to.op("Gather", name, to.inputs[f"{branch}_counts"], at, axis=0)
        return made[layer]

    return count


def add_vision(to: Assembly, vision: Vision, state: State) -> Values:
    """Append a vision tower; ``hidden``, and ``mask`` where samples differ in what they keep."""
    kind = Pixels if vision.batch == "batch" else PairedPixels
    seen = to.add(
        to.traced(kind.__name__, lambda: _pixels(vision.model, kind)),
        {"pixel_values": to.inputs["pixel_values"]},
        Place("vision.embeddings", lambda parameter: f"vision.{parameter}"),
        state,
    )
    if vision.how.form != "decoupled":
        del seen["mask"]
    tower = Tower(
        cast("Any", vision.model).encoder.layers,
        "vision.encoder.layers",
        vision.concepts,
        vision.how,
        batch=vision.batch,
        queries=vision.queries,
        query_prefix="image_queries",
    )
    done = add_stack(to, tower, seen, knobs(to, vision.how.form, IMAGES), state)
    norm = to.traced("norm", lambda: _norm(cast("Any", vision.model).post_layernorm))
    dims = {"batch": vision.batch, "tokens": "image_tokens"}
    place = Place("vision.post_layernorm", lambda n: f"vision.{n}", dims)
    normed = to.add(norm, {"hidden": done["hidden"]}, place, state)["hidden_out"]
    return {"hidden": normed} | ({"mask": done["mask"]} if "mask" in done else {})


def add_words(to: Assembly, text: nn.Module, state: State) -> Values:
    """Append the embeddings of BLIP's texts: ``hidden`` and ``mask``."""
    names = ("input_ids", "attention_mask")
    return to.add(
        to.traced("words", lambda: _words(text)),
        {name: to.inputs[name] for name in names},
        Place("text.embeddings", lambda name: f"text.{name}", {"tokens": "tokens"}),
        state,
    )


def add_head(to: Assembly, head: nn.Module, hidden: ir.Value, where: tuple[str, State]) -> ir.Value:
    """Append a head that reads position 0; ``where`` has its name in the model, and the state."""
    name, state = where
    part = to.traced(f"head {name}", lambda: _at_first(_Head(head), head))
    rename = _below(name, "head")
    return to.add(part, {"hidden": hidden}, Place(name, rename), state)["made"]


def add_embedding(
    to: Assembly, projection: nn.Module, hidden: ir.Value, where: tuple[str, State]
) -> ir.Value:
    """Append a projection of position 0 to unit length; ``where`` as in ``add_head``."""
    name, state = where
    part = to.traced(f"embedding {name}", lambda: _at_first(_Embedding(projection), projection))
    return to.add(part, {"hidden": hidden}, Place(name, _below(name, "head")), state)["made"]


def named_tensors(net: nn.Module) -> State:
    """Parameters and buffers, also tied ones and those that no checkpoint holds."""
    everything = [*net.named_parameters(remove_duplicate=False), *net.named_buffers()]
    return {name: tensor.detach() for name, tensor in everything}


def _below(name: str, mine: str) -> Callable[[str], str]:
    """Give what is called ``mine`` in a part its name in the model."""

    def rename(found: str) -> str:
        inside = found == mine or found.startswith(f"{mine}.")
        return f"{name}{found.removeprefix(mine)}" if inside else found

    return rename


class _Norm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.post_layernorm = norm

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"hidden_out": self.post_layernorm(hidden)}


class _Head(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"made": self.head(hidden[:, 0])}


class _Embedding(_Head):
    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"made": F.normalize(self.head(hidden[:, 0]), dim=-1)}


def _pixels(vision: nn.Module, kind: type[Pixels | PairedPixels]) -> Traceable:
    size = cast("Any", vision).config.image_size
    shape = (3, 2, 3, size, size) if kind is PairedPixels else (3, 3, size, size)
    return kind(vision), {"pixel_values": torch.randn(shape)}, {"pixel_values": _BATCH}


def _words(text: nn.Module) -> Traceable:
    inputs = {
        "input_ids": torch.randint(1, 5, _HIDDEN),
        "attention_mask": torch.ones(_HIDDEN).long(),
    }
    return Words(text), inputs, dict.fromkeys(inputs, _TOKENS)


def _norm(norm: nn.Module) -> Traceable:
    width = cast("Any", norm).normalized_shape[0]
    return _Norm(norm), {"hidden": torch.randn(*_HIDDEN, width)}, {"hidden": _TOKENS}


def _at_first(net: nn.Module, head: nn.Module) -> Traceable:
    first = next(part for part in head.modules() if isinstance(part, nn.Linear))
    return net, {"hidden": torch.randn(*_HIDDEN, first.in_features)}, {"hidden": _TOKENS}


__all__ = [
    "IMAGES",
    "TEXT",
    "Vision",
    "add_embedding",
    "add_head",
    "add_vision",
    "add_words",
    "graph_input",
    "knob_inputs",
    "knobs",
    "named_tensors",
    "pixel_input",
    "text_input",
]
