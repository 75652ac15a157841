"""MADTP's task models as graphs: what goes around their two towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.export.madtp_assembly import Assembly, Place, Traces, Values
from secateur.export.madtp_graph import Tower, Traceable, add_stack, check_form
from secateur.export.madtp_parts import Form, How, PairedPixels, Pixels, Words
from secateur.models.madtp import blocks
from secateur.models.madtp.concepts import Concepts
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
    knobs_of = {IMAGES: net.vision, TEXT: net.text}
    to = Assembly([pixels, *_text_inputs(), *_knob_inputs(knobs_of, form)], traces=traces)
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


def vision_graph(
    vision: nn.Module,
    concepts: Concepts,
    form: Form = "decoupled",
    *,
    traces: Traces | None = None,
) -> ir.Model:
    """A ``BlipVisionModel`` by itself as one graph, with a dynamic batch.

    Inputs: ``pixel_values`` (B, 3, H, W), and ``temperature`` () or ``image_counts`` (layers,)
    int64. Outputs: ``hidden`` (B, K, D) and, decoupled, ``mask`` (B, K) of the slots that hold
    tokens.

    Args:
        vision: the model.
        concepts: of its width.
        form: whose counts.
        traces: shared by the exports of models that have the same sizes.

    Raises:
        BadInputError: an unknown form.
    """
    check_form(form)
    config = cast("Any", vision).config
    pixels = _input("pixel_values", ir.DataType.FLOAT, ["batch", 3, *[config.image_size] * 2])
    knob = _knob_inputs({IMAGES: vision}, form)
    to = Assembly([pixels, *knob], traces=traces)
    tensors = named_tensors(vision).items()
    state = {f"vision.{n}": t for n, t in tensors} | {"concepts.weight": concepts.weight}
    seen = _embedded(to, vision, ("pixel", Pixels), state, form=form)
    done = _seen(to, vision, (concepts.weight, How(blocks.BLIP_VISION, form)), (seen, state))
    return to.finished(done)


def named_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that no checkpoint holds."""
    everything = [*net.named_parameters(), *net.named_buffers()]
    return {name: tensor.detach() for name, tensor in everything}


def _paired_images(
    to: Assembly, net: BlipNlvr, how: tuple[Form, Rule], state: dict[str, Tensor]
) -> Values:
    form, rule = how
    seen = _embedded(to, net.vision, ("pixels", PairedPixels), state, form=form)
    how_seen = (net.concepts.weight, How(blocks.BLIP_VISION, form, rule))
    done = _seen(to, net.vision, how_seen, (seen, state), batch="2*batch")
    names = ("image0", "image1")
    values = dict(zip(names, _halves(to, "images", done["hidden"]), strict=True))
    if "mask" in done:
        names = ("image_mask0", "image_mask1")
        values |= dict(zip(names, _halves(to, "image_masks", done["mask"]), strict=True))
    return values


def _embedded(
    to: Assembly,
    vision: nn.Module,
    part: tuple[str, type[Pixels | PairedPixels]],
    state: dict[str, Tensor],
    *,
    form: Form,
) -> Values:
    """Patches, and a mask of them where samples may differ in how many they keep."""
    name, kind = part
    made = to.add(
        to.traced(name, lambda: _pixels(vision, kind)),
        {"pixel_values": to.inputs["pixel_values"]},
        Place("vision.embeddings", lambda parameter: f"vision.{parameter}"),
        state,
    )
    if form != "decoupled":
        del made["mask"]
    return made


def _seen(
    to: Assembly,
    vision: nn.Module,
    how: tuple[Tensor, How],
    start: tuple[Values, dict[str, Tensor]],
    batch: str = "batch",
) -> Values:
    """The layers of a vision tower and the norm behind them."""
    concepts, chosen = how
    seen, state = start
    layers, prefix = cast("Any", vision).encoder.layers, "vision.encoder.layers"
    tower = Tower(layers, prefix, concepts, chosen, batch=batch)
    done = add_stack(to, tower, seen, knobs(to, chosen.form, IMAGES), state)
    norm = to.traced("norm", lambda: _norm(cast("Any", vision).post_layernorm))
    dims = {"batch": batch, "tokens": "image_tokens"}
    place = Place("vision.post_layernorm", lambda n: f"vision.{n}", dims)
    normed = to.add(norm, {"hidden": done["hidden"]}, place, state)["hidden_out"]
    return {"hidden": normed} | ({"mask": done["mask"]} if "mask" in done else {})


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


def _knob_inputs(towers: dict[str, nn.Module], form: Form) -> list[ir.Value]:
    if form == "dense":
        return []
    if form != "schedule":
        return [_input("temperature", ir.DataType.FLOAT, [])]
    depths = {name: cast("Any", tower).config.num_hidden_layers for name, tower in towers.items()}
    return [_input(f"{n}_counts", ir.DataType.INT64, [depth]) for n, depth in depths.items()]


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


def _pixels(vision: nn.Module, kind: type[Pixels | PairedPixels]) -> Traceable:
    size = cast("Any", vision).config.image_size
    shape = (3, 2, 3, size, size) if kind is PairedPixels else (3, 3, size, size)
    return kind(vision), {"pixel_values": torch.randn(shape)}, {"pixel_values": _BATCH}


def _words(text: nn.Module) -> Traceable:
    inputs = {"input_ids": torch.randint(1, 5, (3, 4)), "attention_mask": torch.ones(3, 4).long()}
    return Words(text), inputs, dict.fromkeys(inputs, _TOKENS)


def _norm(norm: nn.Module) -> Traceable:
    width = cast("Any", norm).normalized_shape[0]
    return _Norm(norm), {"hidden": torch.randn(3, 4, width)}, {"hidden": _TOKENS}


def _head(head: nn.Module, width: int) -> Traceable:
    return _Head(head), {"hidden": torch.randn(3, 4, width)}, {"hidden": _TOKENS}


__all__ = ["nlvr_graph", "vision_graph"]
