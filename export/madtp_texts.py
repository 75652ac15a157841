"""The texts of a MADTP graph that are not BLIP's encoder: its decoder, and CLIP's text tower."""

from __future__ import annotations

from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.export.madtp_assembly import Assembly, Place, Values
from secateur.export.madtp_ends import TEXT, knobs
from secateur.export.madtp_graph import Tower, Traceable, add_stack
from secateur.export.madtp_parts import Form, How
from secateur.models.madtp import blocks
from secateur.models.madtp.tasks import ClipRetrieval
from secateur.models.madtp.towers import end_of_text

_GIVEN: dict[Form, tuple[str, ...]] = {
    "decoupled": ("hidden", "mask", "end", "floor"),
    "faithful": ("hidden", "floor"),
    "schedule": ("hidden", "end"),
    "dense": ("hidden",),
}
"""What CLIP's text layers are told. The published code does not follow the end of the text."""

_TOKENS = {0: "batch", 1: "tokens"}
_SIZES = (3, 4)
"""Samples and tokens while tracing."""


def add_decoder(
    to: Assembly, decoder: nn.Module, reads: tuple[ir.Value, Values], state: dict[str, Tensor]
) -> ir.Value:
    """Append a ``BlipTextLMHeadModel``, dense, that looks at what another tower left.

    Args:
        to: the graph.
        decoder: the model, called ``text_decoder`` in the whole.
        reads: its ids, and ``hidden`` and perhaps ``mask`` of the other tower.
        state: parameters of the whole model.
    """
    ids, source = reads
    dims = {"tokens": "answer_tokens"}
    place = Place("text_decoder.embeddings", _renamed, dims)
    part = to.traced("decoder words", lambda: _words(decoder))
    written = to.add(part, {"input_ids": ids}, place, state)
    context = {"image0": source["hidden"]}
    if "mask" in source:
        context["image_mask0"] = source["mask"]
    bert = cast("Any", decoder).bert
    how = How(blocks.BLIP_DECODER, "dense")
    prefix = "text_decoder.bert.encoder.layer"
    tower = Tower(bert.encoder.layer, prefix, torch.empty(0), how)
    done = add_stack(to, tower, written | context, lambda _: ids, state)
    said = to.traced("decoder head", lambda: _said(decoder))
    place = Place("text_decoder.cls", _renamed, dims)
    return to.add(said, {"hidden": done["hidden"]}, place, state)["made"]


def add_clip_text(
    to: Assembly, net: ClipRetrieval, form: Form, state: dict[str, Tensor]
) -> ir.Value:
    """Append CLIP's text tower and its projection, (B, P); the end of the text is followed."""
    place = Place("text.embeddings", lambda name: f"text.{name}", {"tokens": "tokens"})
    part = to.traced("clip words", lambda: _clip_words(net))
    words = to.add(part, {"input_ids": to.inputs["input_ids"]}, place, state)
    start = {name: words[name] for name in _GIVEN[form]}
    tower = Tower(
        cast("Any", net.text).encoder.layers,
        "text.encoder.layers",
        net.concepts.weight,
        How(blocks.CLIP_TEXT, form, order="position"),
        queries=tuple(net.text_queries),
        query_prefix="text_queries",
    )
    told = words | add_stack(to, tower, start, knobs(to, form, TEXT), state)
    head = to.traced("clip head", lambda: _clip_head(net))
    given = {name: told[name] for name in ("hidden", "end")}
    place = Place(
        "text_projection", lambda n: n.replace("final_layer_norm", "text.final_layer_norm")
    )
    return to.add(head, given, place, state)["made"]


def _renamed(name: str) -> str:
    return f"text_decoder.{name}"


class _DecoderWords(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.bert = nn.ModuleDict({"embeddings": cast("Any", decoder).bert.embeddings})

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.bert["embeddings"](input_ids=input_ids)}


class _DecoderHead(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.cls = cast("Any", decoder).cls

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"made": self.cls(hidden)}


class _ClipWords(nn.Module):
    """Embeddings, where the text ends, and how many tokens it has at least to keep."""

    def __init__(self, net: ClipRetrieval) -> None:
        super().__init__()
        text = cast("Any", net.text)
        self.embeddings, self.token = text.embeddings, int(text.config.eos_token_id)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        end = end_of_text(input_ids, self.token)
        hidden = self.embeddings(input_ids=input_ids)
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return {"hidden": hidden, "mask": mask, "end": end, "floor": end + 2}


class _ClipHead(nn.Module):
    def __init__(self, net: ClipRetrieval) -> None:
        super().__init__()
        self.final_layer_norm = cast("Any", net.text).final_layer_norm
        self.text_projection = net.text_projection

    def forward(self, hidden: Tensor, end: Tensor) -> dict[str, Tensor]:
        at = end[:, None, None].expand(-1, 1, hidden.shape[2])
        last = self.final_layer_norm(hidden).gather(1, at).squeeze(1)
        return {"made": F.normalize(self.text_projection(last), dim=-1)}


def _words(decoder: nn.Module) -> Traceable:
    inputs = {"input_ids": torch.randint(1, 5, _SIZES)}
    return _DecoderWords(decoder), inputs, {"input_ids": _TOKENS}


def _said(decoder: nn.Module) -> Traceable:
    width = int(cast("Any", decoder).bert.config.hidden_size)
    return _DecoderHead(decoder), {"hidden": torch.randn(*_SIZES, width)}, {"hidden": _TOKENS}


def _clip_words(net: ClipRetrieval) -> Traceable:
    inputs = {"input_ids": torch.randint(1, 5, _SIZES)}
    return _ClipWords(net), inputs, {"input_ids": _TOKENS}


def _clip_head(net: ClipRetrieval) -> Traceable:
    width = int(cast("Any", net.text).final_layer_norm.normalized_shape[0])
    inputs = {"hidden": torch.randn(*_SIZES, width), "end": torch.tensor([1, 0, 1])}
    return _ClipHead(net), inputs, {"hidden": _TOKENS, "end": {0: "batch"}}


__all__ = ["add_clip_text", "add_decoder"]
