"""MADTP's task models as graphs: what goes around their two towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.export.madtp_assembly import Assembly, Place, Traces, Values
from secateur.export.madtp_graph import Tower, Traceable, add_stack, check_form
from secateur.export.madtp_parts import Form, How, PairedPixels, Words
from secateur.models.madtp import blocks
from secateur.models.madtp.rules import Rule
from secateur.models.madtp.tasks import BlipNlvr

IMAGES, TEXT = "image", "text"
_BATCH = {0: "batch"}
_TOKENS = {0: "batch", 1: "tokens"}


def nlvr_graph(
    net: BlipNlvr,
    form: Form = "decoupled",
    *,
    rule: Rule = "madtp",
    traces: Traces | None = None,
) -> ir.Model:
    """``BlipNlvr`` as one graph, with dynamic batch and text tokens.

    Inputs: ``pixel_values`` (B, 2, 3, H, W), ``input_ids`` and ``attention_mask`` (B, N), and
    ``temperature`` (), or with a schedule ``image_counts`` and ``text_counts`` (layers,) int64.
    Output: ``logits`` (B, 2).

    Args:
        net: the model.
        form: whose counts.
        rule: what prunes; its strength is then what ``temperature`` gives.
        traces: shared by the exports of models that have the same sizes.

    Raises:
        BadInputError: an unknown form.
    """
    check_form(form)
    size = cast("Any", net.vision).config.image_size
    pixels = _input("pixel_values", ir.DataType.FLOAT, ["batch", 2, 3, size, size])
    to = Assembly([pixels, *_text_inputs(), *_knob_inputs(net, form)], traces=traces)
    state = named_tensors(net)
    images = _paired_images(to, net, (form, rule), state)
    words = to.add(
        to.traced("words", lambda: _words(net.text)),
        {name: to.inputs[name] for name in ("input_ids", "attention_mask")},
        Place("text.embeddings", lambda name: f"text.{name}", {"tokens": "tokens"}),
        state,
    )
    tower = Tower(
        cast("Any", net.text).encoder.layer,
        "text.encoder.layer",
        net.concepts.weight,
        How(blocks.BLIP_TEXT, form, rule),
    )
    told = add_stack(to, tower, words | images, knobs(to, form, TEXT), state)
    head = to.traced("head", lambda: _head(net.cls_head, tower.width))
    place = Place("cls_head", lambda name: name)
    return to.finished(to.add(head, {"hidden": told["hidden"]}, place, state))


def named_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that no checkpoint holds."""
    everything = [*net.named_parameters(), *net.named_buffers()]
    return {name: tensor.detach() for name, tensor in everything}


def _paired_images(
    to: Assembly, net: BlipNlvr, how: tuple[Form, Rule], state: dict[str, Tensor]
) -> Values:
    form, rule = how
    seen = to.add(
        to.traced("pixels", lambda: _pairs(net.vision)),
        {"pixel_values": to.inputs["pixel_values"]},
        Place("vision.embeddings", lambda name: f"vision.{name}"),
        state,
    )
    if form != "decoupled":
        del seen["mask"]
    tower = Tower(
        cast("Any", net.vision).encoder.layers,
        "vision.encoder.layers",
        net.concepts.weight,
        How(blocks.BLIP_VISION, form, rule),
        batch="2*batch",
    )
    done = add_stack(to, tower, seen, knobs(to, form, IMAGES), state)
    norm = to.traced("norm", lambda: _norm(cast("Any", net.vision).post_layernorm))
    place = Place("vision.post_layernorm", lambda n: f"vision.{n}", {"batch": "2*batch"})
    normed = to.add(norm, {"hidden": done["hidden"]}, place, state)["hidden_out"]
    values = dict(zip(("image0", "image1"), _halves(to, "images", normed), strict=True))
    if "mask" in done:
        names = ("image_mask0", "image_mask1")
        values |= dict(zip(names, _halves(to, "image_masks", done["mask"]), strict=True))
    return values


def knobs(to: Assembly, form: Form, branch: str) -> Callable[[int], ir.Value]:
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


def _halves(to: Assembly, name: str, value: ir.Value) -> tuple[ir.Value, ...]:
    """First images, second images."""
    halves = to.ops("Split", (f"{name}_0", f"{name}_1"), value, axis=0, num_outputs=2)
    for half in halves:
        half.shape = ir.Shape(["batch", *list(value.shape or ())[1:]])
        half.type = value.type
    return halves


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _text_inputs() -> list[ir.Value]:
    names = ("input_ids", "attention_mask")
    return [_input(name, ir.DataType.INT64, ["batch", "tokens"]) for name in names]


def _knob_inputs(net: BlipNlvr, form: Form) -> list[ir.Value]:
    if form == "dense":
        return []
    if form != "schedule":
        return [_input("temperature", ir.DataType.FLOAT, [])]
    towers = cast("Any", ((IMAGES, net.vision), (TEXT, net.text)))
    return [
        _input(f"{name}_counts", ir.DataType.INT64, [tower.config.num_hidden_layers])
        for name, tower in towers
    ]


class _Norm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.post_layernorm = norm

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"hidden_out": self.post_layernorm(hidden)}


class _Head(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.cls_head = head

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"logits": self.cls_head(hidden[:, 0])}


def _pairs(vision: nn.Module) -> Traceable:
    config = cast("Any", vision).config
    size = config.image_size
    return PairedPixels(vision), {"pixel_values": torch.randn(3, 2, 3, size, size)}, _ONE


def _words(text: nn.Module) -> Traceable:
    inputs = {"input_ids": torch.randint(1, 5, (3, 4)), "attention_mask": torch.ones(3, 4).long()}
    return Words(text), inputs, dict.fromkeys(inputs, _TOKENS)


def _norm(norm: nn.Module) -> Traceable:
    width = cast("Any", norm).normalized_shape[0]
    return _Norm(norm), {"hidden": torch.randn(3, 4, width)}, {"hidden": _TOKENS}


def _head(head: nn.Module, width: int) -> Traceable:
    return _Head(head), {"hidden": torch.randn(3, 4, width)}, {"hidden": _TOKENS}


_ONE = {"pixel_values": _BATCH}

__all__ = ["knobs", "nlvr_graph"]
