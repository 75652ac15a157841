"""Split a decoupled MADTP graph at cuts, for a runtime that regroups samples between stages.

A stage ends where a cut knows its counts and has not yet made its length of them. What crosses
there, and nothing else, is handed on: every value that a later stage reads. Sizes are no such
values; each stage reads them from the tensors that it gets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx.utils import Extractor

from secateur.errors import BadInputError
from secateur.export.madtp_assembly import CUTS_KEY
from secateur.runtime.staged import Boundary, Crossing


@dataclass(frozen=True, slots=True)
class Stages:
    """Graphs in the order they run, and what crosses between each and the next."""

    models: tuple[onnx.ModelProto, ...]
    boundaries: tuple[Boundary, ...]


def split(model: ir.Model, sites: Sequence[str]) -> Stages:
    """Split at the cuts of ``sites`` (names of layers), in the order of the graph.

    Raises:
        BadInputError: no such cut, or a graph without per-sample counts.
    """
    cuts = {cut["site"]: cut for cut in json.loads(model.metadata_props.get(CUTS_KEY, "[]"))}
    unknown = [site for site in sites if site not in cuts]
    if unknown or not sites:
        raise BadInputError(
            "no such cut", got=", ".join(unknown) or "none", wanted=", ".join(cuts) or "a cut"
        )
    chosen = [cuts[site] for site in cuts if site in sites]
    stage = _stages(model, cuts, [cut["site"] for cut in chosen])
    crossing = [_crossing(model, stage, i, cut) for i, cut in enumerate(chosen)]
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    extractor = Extractor(proto)
    ends = [str(value.name) for value in model.graph.outputs]
    inputs = [str(value.name) for value in model.graph.inputs]
    models = []
    for i in range(len(chosen) + 1):
        given = [str(v.name) for v in crossing[i - 1]] if i else inputs
        wanted = [str(v.name) for v in crossing[i]] if i < len(chosen) else ends
        # what passes a stage by is handed on by the runtime
        made = [name for name in wanted if name not in given]
        models.append(_without_idle_inputs(extractor.extract_model(given, made)))
    boundaries = [
        Boundary(
            cut["kept"],
            cut["available"],
            cut["axis"],
            tuple(_described(value, behind) for value in values),
        )
        for cut, values, behind in zip(chosen, crossing, models[1:], strict=True)
    ]
    return Stages(tuple(models), tuple(boundaries))


def _without_idle_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    read = {name for node in model.graph.node for name in node.input}
    used = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(used)
    return model


def _stages(
    model: ir.Model, cuts: dict[str, dict[str, str]], sites: list[str]
) -> dict[ir.Node, int]:
    """The stage of every node; sizes have none, they are computed wherever they are read."""
    made: dict[ir.Node, int] = {}
    for node in model.graph:
        producers = [value.producer() for value in node.inputs if value is not None]
        known = [made[p] for p in producers if p is not None and p in made]
        if node.op_type == "Shape" or (not known and producers and not _reads_input(node)):
            continue
        here = max(known, default=0)
        made[node] = max(here, _least(node.name or "", list(cuts), sites))
    return made


def _least(name: str, order: list[str], sites: list[str]) -> int:
    """The stage of a node by its layer: no layer starts before the cuts of those before it."""
    for at, site in enumerate(order):
        if name.startswith((f"{site}/", f"{site}.cut/")):
            done = sum(other in sites for other in order[:at])
            return done + (name.startswith(f"{site}.cut/") and site in sites)
    return 0


def _reads_input(node: ir.Node) -> bool:
    return any(value is not None and value.is_graph_input() for value in node.inputs)


def _crossing(
    model: ir.Model, stage: dict[ir.Node, int], boundary: int, cut: dict[str, str]
) -> list[ir.Value]:
    """Values from up to this boundary that are read behind it, by a size or by a node."""
    behind = [value for node, at in stage.items() if at > boundary for value in node.inputs]
    waiting = [*behind, *model.graph.outputs]
    counts = {cut["kept"], cut["available"]}
    found: dict[ir.Value, None] = {
        value: None for node in model.graph for value in node.outputs if value.name in counts
    }
    while waiting:
        value = waiting.pop(0)
        producer = None if value is None else value.producer()
        if value is None or value.is_initializer() or value in found:
            continue
        if producer is None or stage.get(producer, boundary + 1) <= boundary:
            found[value] = None
        elif producer not in stage:  # a size: what it is read from crosses
            waiting += producer.inputs
    return list(found)


def _described(value: ir.Value, behind: onnx.ModelProto) -> Crossing:
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
    rows = {"batch": 1, "2*batch": 2}.get(str(shape[0]) if shape else "", 0)
    named = tuple(dim if isinstance(dim, str) else "" for dim in shape[1:])
    name = str(value.name)
    return Crossing(
        name,
        rows,
        named,
        positions=name.endswith("/ranking"),
        read=any(name == given.name for given in behind.graph.input),
    )


__all__ = ["Stages", "split"]
