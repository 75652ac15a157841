"""The model a command works on, from wherever it comes, as a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.export.marker_translation import without_markers
from secateur.export.source import LoadedModel, load
from secateur.graph_passes.lowering import has_markers
from secateur.runtime.backend import Array
from secateur.workflow.random_inputs import required_inputs

if TYPE_CHECKING:
    from torch import nn

    from secateur.models.families import Tokenizer


@dataclass(frozen=True, slots=True)
class Source:
    """A trained model, and the dense graph of it.

    ``net`` is the PyTorch module, which is the reference of every parity check; None for a
    model that came as ONNX, whose dense graph is the reference then.
    """

    spec: str
    net: nn.Module | None
    graph: ir.Model
    marked: ir.Model | None
    """The same with the markers of a model that selects tokens in its own forward."""
    tokenizer: Tokenizer | None
    examples: dict[str, Array]
    prepare: Callable[[list[object]], dict[str, Array]] | None = None
    """Turns pictures or texts into input arrays, where the model's family knows how."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that a run must be given."""
        return tuple(str(value.name) for value in required_inputs(self.graph))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(str(value.name) for value in self.graph.graph.outputs)


def load_model(
    spec: str, *, opset: int = 20, dynamic: Mapping[str, dict[int, str]] | None = None
) -> Source:
    """Load a model and export it where it is not ONNX already.

    Args:
        spec: a folder or hub name, ``package:NAME/PATH``, ``pkg.module:function``, or .onnx.
        opset: to export with; an .onnx file keeps its own.
        dynamic: axes that vary, by input; empty takes what the model's family says.

    Raises:
        BadInputError: nothing there, or nothing that can be loaded or exported.
        MissingDependencyError: a package that loading needs.
        ParityError: the exported graph is not the module.
    """
    loaded = load(spec)
    if loaded.model is not None:
        return _source(spec, loaded, loaded.model, {})
    from secateur.export.torch_export import from_torch

    if loaded.net is None:
        raise BadInputError("the source gives neither a module nor a graph", where=spec)
    net = loaded.net.eval()
    axes = dict(dynamic) if dynamic else loaded.dynamic
    graph = from_torch(net, loaded.inputs, axes, opset=opset)
    examples = {name: tensor.detach().cpu().numpy() for name, tensor in loaded.inputs.items()}
    return _source(spec, loaded, graph, examples)


def _source(spec: str, loaded: LoadedModel, graph: ir.Model, examples: dict[str, Array]) -> Source:
    """Tell the dense graph and the one with markers apart."""
    marked = graph if has_markers(graph) else None
    dense, tokenizer = without_markers(graph), loaded.tokenizer
    return Source(spec, loaded.net, dense, marked, tokenizer, examples, loaded.prepare)


__all__ = ["Source", "load_model"]
