"""Put traced parts together to one graph, every copy with weights of its own."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.export.dimension_names import Dynamic
from secateur.export.madtp_parts import DECISIONS
from secateur.export.parameter_names import METADATA_KEY as PARAMETERS_KEY
from secateur.export.torch_export import DIMENSIONS_KEY, from_torch

CUTS_KEY = "secateur.madtp"
"""Metadata entry: JSON list of the cuts, see ``Assembly.cut``."""

FLOAT32_KEY = "secateur.float32"
"""Metadata entry: JSON list of patterns of modules that no lowering of precision touches."""

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_WORD = re.compile(r"[A-Za-z_]\w*")

Values = dict[str, ir.Value]
Traces = dict[object, ir.Model]
"""Parts that were traced, by what they depend on; models of the same sizes may share them."""
Rename = Callable[[str], str]
"""From a parameter of the traced part to that of the model."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a copy of a part goes."""

    name: str
    """Of the copy; starts the names of its nodes and values."""
    rename: Rename
    dims: Mapping[str, str] = field(default_factory=dict)
    """Names of dimensions in the part, and what they are called in the model."""


class Assembly:
    """A graph that grows part by part."""

    def __init__(
        self, inputs: list[ir.Value], opset: int = 20, traces: Traces | None = None
    ) -> None:
        self.inputs: Values = {str(value.name): value for value in inputs}
        self.graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": opset}, name="madtp")
        self.opset = opset
        self.cuts: list[dict[str, str]] = []
        self._parts = {} if traces is None else traces
        self._weights: dict[tuple[str, str], ir.Value] = {}
        self._recorded: dict[str, dict[str, object]] = {}

    def traced(
        self, key: object, make: Callable[[], tuple[nn.Module, dict[str, Tensor], Dynamic]]
    ) -> ir.Model:
        """Trace a part once per key."""
        if key not in self._parts:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net, inputs, dynamic = make()
                self._parts[key] = from_torch(net, inputs, dynamic, opset=self.opset)
        return self._parts[key]

    def add(
        self, part: ir.Model, given: Mapping[str, ir.Value], place: Place, state: dict[str, Tensor]
    ) -> Values:
        """Copy a part in.

        Args:
            part: the traced graph.
            given: its inputs by name.
            place: what the copy and its dimensions are called.
            state: parameters of the model by name.

        Returns:
            the outputs of the part by name.
        """
        recorded = json.loads(part.metadata_props[PARAMETERS_KEY])
        copy = part.clone().graph
        results = {str(value.name): value for value in copy.outputs}
        known: dict[ir.Value, ir.Value] = {v: given[str(v.name)] for v in copy.inputs}
        for name, value in copy.initializers.items():
            entry = recorded.get(name)
            known[value] = (
                self._constant(f"{place.name}/{name}", value)
                if entry is None
                else self._weight(place.rename(entry["name"]), entry["transpose"], state)
            )
        for node in tuple(copy):
            for i, read in enumerate(node.inputs):
                if read in known:
                    node.replace_input_with(i, known[read])
        copy.outputs.clear()
        for node in tuple(copy):
            copy.remove(node)
            _label(node, place)
            self.graph.append(node)
        return results

    def op(self, kind: str, name: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Append a node with one output called ``name``."""
        return self.ops(kind, (name,), *inputs, **attributes)[0]

    def ops(
        self, kind: str, names: tuple[str, ...], *inputs: ir.Value, **attributes: object
    ) -> tuple[ir.Value, ...]:
        """Append a node; the names are those of its outputs."""
        node = ir.node(
            kind,
            list(inputs),
            attributes,  # type: ignore[arg-type]
            num_outputs=len(names),
            name=f"{names[0]}/{kind}",
        )
        for value, name in zip(node.outputs, names, strict=True):
            value.name = name
        self.graph.append(node)
        return tuple(node.outputs)

    def integers(self, name: str, *values: int, scalar: bool = False) -> ir.Value:
        """A constant of int64, (n,) or (), shared by name."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(torch.tensor(values[0] if scalar else values).numpy(), name=name)
            value = ir.Value(name=name, const_value=tensor, shape=_shape(tensor))
            value.dtype = tensor.dtype
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def finished(self, outputs: Mapping[str, ir.Value]) -> ir.Model:
        """The model, with what export records of every model."""
        for name, value in outputs.items():
            value.name = name
            self.graph.outputs.append(value)
        model = ir.Model(self.graph, ir_version=10, producer_name="secateur")
        model.metadata_props[PARAMETERS_KEY] = json.dumps(self._recorded, sort_keys=True)
        model.metadata_props[DIMENSIONS_KEY] = json.dumps({"batch": [1, None]})
        model.metadata_props[CUTS_KEY] = json.dumps(self.cuts)
        if self.cuts:
            model.metadata_props[FLOAT32_KEY] = json.dumps([DECISIONS])
        return model

    def _constant(self, name: str, value: ir.Value) -> ir.Value:
        made = ir.Value(name=name, const_value=value.const_value, shape=value.shape)
        if value.dtype is not None:
            made.dtype = value.dtype
        self.graph.register_initializer(made)
        return made

    def _weight(self, name: str, transpose: list[int] | None, state: dict[str, Tensor]) -> ir.Value:
        key = (name, str(transpose))
        if key not in self._weights:
            tensor = state[name].detach()
            if transpose is not None:
                tensor = tensor.permute(transpose)
            taken = name if name not in self.graph.initializers else f"{name}.transposed"
            array = ir.tensor(tensor.contiguous().numpy(), name=taken)
            value = ir.Value(name=taken, const_value=array, shape=_shape(array))
            value.dtype = array.dtype
            self.graph.register_initializer(value)
            self._weights[key] = value
            self._recorded[taken] = {"name": name, "transpose": transpose}
        return self._weights[key]


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(tuple(tensor.numpy().shape))


def _label(node: ir.Node, place: Place) -> None:
    """Names, scopes and dimensions of the model instead of the part's."""
    node.name = f"{place.name}/{node.name}"
    scopes = node.metadata_props.get(_SCOPES_KEY)
    if scopes is not None:
        *modules, operator = ast.literal_eval(scopes)
        renamed = [place.rename(module) if module else module for module in modules]
        node.metadata_props[_SCOPES_KEY] = repr([*renamed, operator])
    for value in node.outputs:
        value.name = f"{place.name}/{value.name}"
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, place.dims) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return ir.SymbolicDim(_WORD.sub(lambda word: names.get(word[0], word[0]), str(dim.value)))


__all__ = ["CUTS_KEY", "FLOAT32_KEY", "Assembly", "Place", "Traces", "Values"]
