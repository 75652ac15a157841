"""To and from ``onnx_graphsurgeon.Graph``, so that a GraphSurgeon script can call our passes.

GraphSurgeon has no place for three things that a model may carry: its metadata (parameter names,
token sites), the metadata of its nodes (module paths), and initialisers that are inputs with a
default (score biases). They travel beside the graph, in one attribute of it, and are put back on
the way out. ``Graph.copy()`` and ``export_onnx`` do not know the attribute: a script that wants
them back ends with :func:`from_graphsurgeon`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

import onnx_ir as ir

from secateur.errors import BadInputError, MissingDependencyError

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Rewrite = Callable[[ir.Model], "ir.Model | ir.passes.PassResult"]
"""A pass of either form: a function that returns a model, or an ``onnx_ir`` pass object."""

_ATTRIBUTE = "secateur_carried"


@dataclass(frozen=True, slots=True)
class _Carried:
    """What a GraphSurgeon graph cannot hold."""

    model: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the model."""
    nodes: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    """Metadata of a node, by its operator and the name of its first output."""
    defaults: tuple[str, ...] = ()
    """Initialisers that are graph inputs too, in the order of the inputs."""


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """Convert a model; it is not changed, and the graph owns copies of the weights.

    Raises:
        MissingDependencyError: onnx-graphsurgeon is not installed.
    """
    loaded = ir.external_data.load_to_model(model.clone())
    graph = _library().import_onnx(ir.to_proto(loaded))
    setattr(graph, _ATTRIBUTE, _carried(model))
    return graph


def from_graphsurgeon(graph: gs.Graph) -> ir.Model:
    """Convert a graph, in the order its edges ask for; it is not changed.

    A node keeps its metadata as long as its operator and the name of its first output stay. A
    graph that did not come from :func:`to_graphsurgeon` is as good, it only carries no metadata.

    Raises:
        BadInputError: the graph has a cycle, or an input or output without a data type.
        MissingDependencyError: onnx-graphsurgeon is not installed.
    """
    library = _library()
    try:
        proto = library.export_onnx(graph.copy().toposort())
    except library.OnnxGraphSurgeonException as error:
        raise BadInputError(
            "the GraphSurgeon graph cannot be exported",
            where=graph.name,
            got=str(error).splitlines()[0],
            next_step="break the cycle, or give every graph input and output a dtype",
        ) from error
    model: ir.Model = ir.from_proto(proto)
    _put_back(model, getattr(graph, _ATTRIBUTE, _Carried()))
    return model


def on_graphsurgeon(rewrite: Rewrite, graph: gs.Graph) -> gs.Graph:
    """Apply a pass to a GraphSurgeon graph and return the new graph; the old one stays.

    Args:
        rewrite: an ``onnx_ir`` pass, or a function from model to model; bind further arguments
            first, as in ``on_graphsurgeon(lambda model: remove(model, plan), graph)``.
        graph: any GraphSurgeon graph, imported by either library.
    """
    result = rewrite(from_graphsurgeon(graph))
    return to_graphsurgeon(result.model if isinstance(result, ir.passes.PassResult) else result)


def _library() -> ModuleType:
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        raise MissingDependencyError(
            "onnx-graphsurgeon is not installed",
            next_step="pip install 'secateur[build]'",
        ) from error
    library: ModuleType = onnx_graphsurgeon
    return library


def _key(node: ir.Node) -> tuple[str, str]:
    return node.op_type, (node.outputs[0].name or "") if node.outputs else ""


def _carried(model: ir.Model) -> _Carried:
    nodes = {_key(n): dict(n.metadata_props) for n in model.graph.all_nodes() if n.metadata_props}
    defaults = (value.name or "" for value in model.graph.inputs if value.is_initializer())
    return _Carried(dict(model.metadata_props), nodes, tuple(defaults))


def _put_back(model: ir.Model, carried: _Carried) -> None:
    """Restore metadata where it still fits; initialisers that a script dropped stay dropped."""
    model.metadata_props.update(carried.model)
    for node in model.graph.all_nodes():
        node.metadata_props.update(carried.nodes.get(_key(node), {}))
    present = {value.name for value in model.graph.inputs}
    for name in carried.defaults:
        if name in model.graph.initializers and name not in present:
            model.graph.inputs.append(model.graph.initializers[name])


__all__ = ["Rewrite", "from_graphsurgeon", "on_graphsurgeon", "to_graphsurgeon"]
