"""What became of a model in its engine: which attentions were fused, by the user's module names.

*Source: NVIDIA TensorRT developer documentation, "Engine Inspector". The JSON names a layer, its
type and, in its metadata, the ONNX nodes that it came from; versions differ in what else.*
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.errors import BadInputError
from secateur.runtime.onnx_outline import ModelOutline, NodeOutline

# In the layer's metadata, before the name of each ONNX node.
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FUSED_ATTENTION = re.compile(r"mha|fmha|attention|flash", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer of an engine: its name, what runs it, and the ONNX nodes that it covers."""

    name: str
    kind: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """Into how many layers the attention of a module went, and whether one kernel does it."""

    module: str
    is_fused: bool
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """The layers that a token selection added, by kind."""

    site: str
    layers: Mapping[str, int]


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers of an inspector's JSON; BadInputError where it has no details."""
    try:
        layers = json.loads(text)["Layers"]
        return tuple(_layer(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            "the engine's inspector does not tell its layers",
            got=f"{type(error).__name__}: {error}",
            wanted="an engine built with detailed profiling verbosity",
        ) from error


def attention_reports(
    layers: Iterable[EngineLayer], outline: ModelOutline
) -> tuple[AttentionReport, ...]:
    """For each module with a softmax or an Attention node: how its engine layers look.

    Fused means that one layer covers the softmax and both products beside it (or the
    Attention node), or is named as an attention kernel.
    """
    layers = tuple(layers)
    found = []
    for softmax in outline.nodes:
        if softmax.operator not in {"Softmax", "Attention", "MultiHeadAttention"}:
            continue
        parts = {node.name for node in _parts(softmax, outline)}
        covering = [layer for layer in layers if parts & set(layer.nodes)]
        fused = [layer for layer in covering if _is_fused(layer, softmax.name, parts)]
        if covering and (len(parts) > 1 or softmax.operator != "Softmax"):
            names = tuple(f"{layer.name} ({layer.kind})" for layer in covering)
            found.append(AttentionReport(softmax.module or softmax.name, bool(fused), names))
    return tuple(found)


def selection_reports(
    layers: Iterable[EngineLayer], sites: Iterable[str]
) -> tuple[SelectionReport, ...]:
    """For each site the engine layers that came from its selection, counted by kind."""
    layers = tuple(layers)
    found = []
    for site in sites:
        counts: dict[str, int] = {}
        for layer in layers:
            if any(node.startswith(f"{site}/selection/") for node in layer.nodes):
                counts[layer.kind] = counts.get(layer.kind, 0) + 1
        found.append(SelectionReport(site, counts))
    return tuple(found)


def report_lines(
    attentions: Iterable[AttentionReport], selections: Iterable[SelectionReport]
) -> list[str]:
    """The reports as a person reads them."""
    lines = [
        f"{one.module}: attention {'fused' if one.is_fused else 'NOT fused'}, "
        f"{len(one.layers)} layer{'s' if len(one.layers) > 1 else ''}: {', '.join(one.layers[:4])}"
        for one in attentions
    ]
    for one in selections:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(one.layers.items()))
        lines.append(f"{one.site}: selection runs in {kinds or 'no layer of its own'}")
    return lines


def _layer(layer: Any) -> EngineLayer:  # noqa: ANN401 (any JSON value)
    if isinstance(layer, str):
        raise TypeError("layers are names only")
    told = " ".join(str(layer.get(key, "")) for key in ("Metadata", "Name"))
    nodes = _NODE.findall(told)
    return EngineLayer(
        name=str(layer["Name"]),
        kind=str(layer.get("LayerType", "unknown")),
        nodes=tuple(dict.fromkeys(nodes)),
    )


def _parts(softmax: NodeOutline, outline: ModelOutline) -> list[NodeOutline]:
    """The softmax, and the nearest products before and after it in its own module."""
    if softmax.operator != "Softmax":
        return [softmax]
    makers = {name: node for node in outline.nodes for name in node.outputs}
    before, values = softmax, list(softmax.inputs[:1])
    for _ in range(_REACH):
        makes = [makers[name] for name in values if name in makers]
        products = [node for node in makes if node.operator == "MatMul"]
        if products:
            before = products[0]
            break
        values = [name for node in makes for name in node.inputs]
    after, reached = softmax, set(softmax.outputs)
    for node in outline.nodes:
        if reached & set(node.inputs):
            if node.operator == "MatMul":
                after = node
                break
            reached |= set(node.outputs)
    return list(dict.fromkeys([before, softmax, after]))


_REACH = 6


def _is_fused(layer: EngineLayer, softmax: str, parts: set[str]) -> bool:
    if softmax not in layer.nodes:
        return False
    return parts <= set(layer.nodes) or bool(_FUSED_ATTENTION.search(f"{layer.name} {layer.kind}"))


__all__ = [
    "AttentionReport",
    "EngineLayer",
    "SelectionReport",
    "attention_reports",
    "read_layers",
    "report_lines",
    "selection_reports",
]
