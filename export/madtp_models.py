"""MADTP's task models as graphs, one of each, and a vision tower by itself."""

from __future__ import annotations

from typing import Any, cast

import onnx_ir as ir
from torch import Tensor, nn

from secateur.export.madtp_assembly import Assembly, Traces, Values
from secateur.export.madtp_ends import (
    IMAGES,
    TEXT,
    Vision,
    add_embedding,
    add_head,
    add_vision,
    add_words,
    knob_inputs,
    knobs,
    named_tensors,
    pixel_input,
    text_input,
)
from secateur.export.madtp_graph import Tower, add_stack, check_form
from secateur.export.madtp_parts import Form, How
from secateur.export.madtp_texts import add_clip_text, add_decoder
from secateur.models.madtp import blocks
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.rules import Rule
from secateur.models.madtp.tasks import (
    BlipCaption,
    BlipNlvr,
    BlipRetrieval,
    BlipVqa,
    ClipRetrieval,
)

_TEXT = ("input_ids", "attention_mask")


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
    knob = knob_inputs({IMAGES: net.vision, TEXT: net.text}, form)
    inputs = [pixel_input(net.vision, 2), *map(text_input, _TEXT), *knob]
    to, state = Assembly(inputs, traces=traces), named_tensors(net)
    how = How(blocks.BLIP_VISION, form, rule)
    seen = add_vision(to, Vision(net.vision, net.concepts.weight, how, batch="2*batch"), state)
    context = {
        f"{_CONTEXT[name]}{i}": half
        for name, value in seen.items()
        for i, half in enumerate(_halves(to, f"image_{name}", value))
    }
    tower = _text_tower(net.text, net.concepts.weight, How(blocks.BLIP_TEXT, form, rule))
    words = add_words(to, net.text, state)
    told = add_stack(to, tower, words | context, knobs(to, form, TEXT), state)
    return to.finished({"logits": add_head(to, net.cls_head, told["hidden"], ("cls_head", state))})


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
    to = Assembly([pixel_input(vision), *knob_inputs({IMAGES: vision}, form)], traces=traces)
    tensors = named_tensors(vision).items()
    state = {f"vision.{n}": t for n, t in tensors} | {"concepts.weight": concepts.weight}
    how = How(blocks.BLIP_VISION, form)
    return to.finished(add_vision(to, Vision(vision, concepts.weight, how), state))


def retrieval_graph(
    net: BlipRetrieval, form: Form = "decoupled", *, traces: Traces | None = None
) -> ir.Model:
    """``BlipRetrieval`` as one graph; the text is read alone and, again, with the image.

    Inputs: ``pixel_values`` (B, 3, H, W), ``input_ids`` and ``attention_mask`` (B, N), and
    ``temperature`` (), or with a schedule ``image_counts`` and ``text_counts`` (layers,) int64.
    Outputs: ``itm_logits`` (B, 2), ``image_embeds`` and ``text_embeds`` (B, P).

    Args:
        net: the model.
        form: whose counts.
        traces: shared by the exports of models that have the same sizes.

    Raises:
        BadInputError: an unknown form.
    """
    check_form(form)
    knob = knob_inputs({IMAGES: net.vision, TEXT: net.text}, form)
    inputs = [pixel_input(net.vision), *map(text_input, _TEXT), *knob]
    to, state = Assembly(inputs, traces=traces), named_tensors(net)
    concepts, how = net.concepts.weight, How(blocks.BLIP_TEXT, form)
    image = Vision(net.vision, concepts, How(blocks.BLIP_VISION, form))
    seen = add_vision(to, image, state)
    words, counts = add_words(to, net.text, state), knobs(to, form, TEXT)
    alone = add_stack(to, _text_tower(net.text, concepts, how, "alone"), words, counts, state)
    tower = _text_tower(net.text, concepts, how)
    fused = add_stack(to, tower, words | _context(seen), counts, state)
    projected = {
        "image_embeds": (net.vision_proj, seen["hidden"], "vision_proj"),
        "text_embeds": (net.text_proj, alone["hidden"], "text_proj"),
    }
    return to.finished(
        {"itm_logits": add_head(to, net.itm_head, fused["hidden"], ("itm_head", state))}
        | {
            output: add_embedding(to, projection, hidden, (name, state))
            for output, (projection, hidden, name) in projected.items()
        }
    )


def vqa_graph(net: BlipVqa, form: Form = "decoupled", *, traces: Traces | None = None) -> ir.Model:
    """``BlipVqa`` as one graph; the decoder of answers is not pruned.

    Inputs: those of ``retrieval_graph``, and ``decoder_input_ids`` (B, M).
    Output: ``logits`` (B, M, vocabulary).

    Args:
        net: the model.
        form: whose counts.
        traces: shared by the exports of models that have the same sizes.

    Raises:
        BadInputError: an unknown form.
    """
    check_form(form)
    knob = knob_inputs({IMAGES: net.vision, TEXT: net.text}, form)
    answer = text_input("decoder_input_ids", "answer_tokens")
    inputs = [pixel_input(net.vision), *map(text_input, _TEXT), answer, *knob]
    to, state = Assembly(inputs, traces=traces), named_tensors(net)
    concepts = net.concepts.weight
    image = Vision(net.vision, concepts, How(blocks.BLIP_VISION, form))
    context = _context(add_vision(to, image, state))
    tower = _text_tower(net.text, concepts, How(blocks.BLIP_TEXT, form))
    words = add_words(to, net.text, state)
    asked = add_stack(to, tower, words | context, knobs(to, form, TEXT), state)
    return to.finished({"logits": add_decoder(to, net.text_decoder, (answer, asked), state)})


def caption_graph(
    net: BlipCaption, form: Form = "decoupled", *, traces: Traces | None = None
) -> ir.Model:
    """``BlipCaption`` as one graph; the decoder is not pruned.

    Inputs: ``pixel_values`` (B, 3, H, W), ``input_ids`` (B, N) of the caption so far, and
    ``temperature`` (), or with a schedule ``image_counts`` (layers,) int64.
    Output: ``logits`` (B, N, vocabulary).

    Args:
        net: the model.
        form: whose counts.
        traces: shared by the exports of models that have the same sizes.

    Raises:
        BadInputError: an unknown form.
    """
    check_form(form)
    written = text_input("input_ids")
    inputs = [pixel_input(net.vision), written, *knob_inputs({IMAGES: net.vision}, form)]
    to, state = Assembly(inputs, traces=traces), named_tensors(net)
    image = Vision(net.vision, net.concepts.weight, How(blocks.BLIP_VISION, form))
    seen = add_vision(to, image, state)
    return to.finished({"logits": add_decoder(to, net.text_decoder, (written, seen), state)})


def clip_graph(
    net: ClipRetrieval, form: Form = "decoupled", *, traces: Traces | None = None
) -> ir.Model:
    """``ClipRetrieval`` as one graph; padding of texts counts as tokens, as CLIP trains it.

    Inputs: ``pixel_values`` (B, 3, H, W), ``input_ids`` (B, N), and ``temperature`` (), or with
    a schedule ``image_counts`` and ``text_counts`` (layers,) int64.
    Outputs: ``image_embeds`` and ``text_embeds`` (B, P).

    Args:
        net: the model.
        form: whose counts.
        traces: shared by the exports of models that have the same sizes.

    Raises:
        BadInputError: an unknown form.
    """
    check_form(form)
    knob = knob_inputs({IMAGES: net.vision, TEXT: net.text}, form)
    inputs = [pixel_input(net.vision), text_input("input_ids"), *knob]
    to, state = Assembly(inputs, traces=traces), named_tensors(net)
    how = How(blocks.CLIP_VISION, form)
    image = Vision(net.vision, net.concepts.weight, how, tuple(net.image_queries))
    seen = add_vision(to, image, state)
    told = add_clip_text(to, net, form, state)
    where = ("visual_projection", state)
    embedded = add_embedding(to, net.visual_projection, seen["hidden"], where)
    return to.finished({"image_embeds": embedded, "text_embeds": told})


_CONTEXT = {"hidden": "image", "mask": "image_mask"}


def _context(seen: Values) -> Values:
    """What one image is called where a text looks at it."""
    return {f"{_CONTEXT[name]}0": value for name, value in seen.items()}


def _text_tower(text: nn.Module, concepts: Tensor, how: How, name: str = "") -> Tower:
    layers = cast("Any", text).encoder.layer
    return Tower(layers, "text.encoder.layer", concepts, how, name=name)


def _halves(to: Assembly, name: str, value: ir.Value) -> tuple[ir.Value, ...]:
    """First images, second images."""
    halves = to.ops("Split", (f"{name}_0", f"{name}_1"), value, axis=0, num_outputs=2)
    for half in halves:
        half.shape = ir.Shape(["batch", *list(value.shape or ())[1:]])
        half.type = value.type
    return halves


__all__ = [
    "caption_graph",
    "clip_graph",
    "nlvr_graph",
    "retrieval_graph",
    "vision_graph",
    "vqa_graph",
]
