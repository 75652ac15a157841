"""ONNX back to PyTorch: a module that runs the graph op by op and can be trained.

Our own interpreter, because no library serves. On the zoo's 77 exported graphs (opset 20)
onnx2torch 1.5.15 (Apache-2.0, of 2024) converts and matches 2: it has no Gelu, nor the Reshape,
Cast, Split, Pad and ReduceMean of opset 18 and above; weights become anonymous buffers.
onnx2pytorch 0.6 (Apache-2.0) names parameters after nodes. Neither knows which torch parameter a
transposed, merged or tied initialiser was, which fine-tuning and loading a state dict need.
"""

from __future__ import annotations

import inspect
import keyword
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MethodType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from secateur.errors import BadInputError, PreconditionError
from secateur.export.torch_ops import (
    INTEGER_OPS,
    TORCH_OPS,
    Attribute,
    Call,
    Integers,
    Step,
    Value,
    Weight,
    op_key,
)
from secateur.export.torch_ops.weights import Use, WeightTable, records, uses_of_initialisers

logger = logging.getLogger(__name__)

_MOST_INTEGERS = 64
"""A longer list of whole numbers is data, not a shape, and stays a tensor."""

Source = str | Weight | Integers | None
Outputs = Tensor | dict[str, Tensor]


def to_torch(model: ir.Model) -> nn.Module:
    """Turn a graph into a module with the parameters of the model it was exported from.

    The state dict has the original names and torch's shapes: Linear weights are (out, in) even
    where the graph stores them transposed, a tied weight is one parameter under all its names,
    and weights of equal value that the exporter merged are parameters of their own again.
    Batch statistics are buffers; constants of the graph are no part of the state dict. In a
    file without recorded names, parameters are called after their initialisers.

    The module comes in evaluation mode. In training mode BatchNormalization uses and updates
    batch statistics and Dropout drops; what the exporter folded away (dropout, and a batch norm
    folded into its convolution unless exported ``for_training``) does not come back.

    Inputs go by position or by name (``a.b`` also as ``a_b``), of any batch and length that the
    graph takes; an input that has a default value keeps it. One output is returned as a
    tensor, several as a dict by name.

    Raises:
        PreconditionError: an op that has no entry in ``TORCH_OPS``, named with its node.
    """
    copy = model.clone()
    if copy.functions:
        common.InlinePass()(copy)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    common.TopologicalSortPass()(copy)
    _check_ops(copy.graph)
    module = GraphModule()
    places = _place_weights(copy, module)
    module.set_program(_program(copy, places))
    module.eval()
    n_parameters = sum(p.numel() for p in module.parameters())
    logger.info("a module of %d nodes and %d parameters", len(copy.graph), n_parameters)
    return module


@dataclass(frozen=True, slots=True)
class Program:
    """The graph without its weights: inputs, steps in order, where the outputs come from."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: Mapping[str, Source]


class GraphModule(nn.Module):
    """Runs the steps of a graph; its parameters are wherever their original names say."""

    def __init__(self) -> None:
        super().__init__()
        self._program = Program((), (), {})

    def set_program(self, program: Program) -> None:
        """Give the module what it runs; its forward takes the program's inputs by name."""
        self._program = program

    @property
    def program(self) -> Program:
        """What the module runs, for walks that look at every step."""
        return self._program

    def weight(self, source: Weight) -> Tensor:
        """Return a stored tensor as a step reads it."""
        tensor: Tensor = attrgetter(source.key)(self)
        return tensor if source.permutation is None else tensor.permute(source.permutation)

    @property
    def forward(self) -> Callable[..., Outputs]:  # type: ignore[override]
        """``module(images)`` and ``module(images=images)``, with a signature for tools to read.

        A method with a signature of its own: torch.export asks it which inputs there are. Made
        anew each time, so that copies and pickles of the module need not know of it.
        """

        def forward(self: GraphModule, *args: Tensor, **kwargs: Tensor) -> Outputs:
            return self.run(_feeds(self._program.inputs, args, kwargs))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = ("self", *map(_argument, self._program.inputs))
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        return MethodType(forward, self)

    def run(self, feeds: dict[str, Tensor]) -> Outputs:
        """Compute the outputs: a tensor where there is one, else a dict by name."""
        device = next((x.device for x in feeds.values()), torch.device("cpu"))
        values: dict[str, Value | None] = dict(feeds)
        for step in self._program.steps:
            inputs = tuple(self._read(source, values) for source in step.inputs)
            results = execute(Call(step, inputs, self.training, device))
            values.update(zip(step.outputs, results, strict=False))
            for name in step.dead:
                values.pop(name, None)
        found = {n: self._read(s, values) for n, s in self._program.outputs.items()}
        outputs = {
            name: value.tensor(device) if isinstance(value, Integers) else value
            for name, value in found.items()
            if value is not None
        }
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _read(self, source: Source, values: Mapping[str, Value | None]) -> Value | None:
        if isinstance(source, str):
            return values[source]
        return self.weight(source) if isinstance(source, Weight) else source


def _argument(name: str) -> str:
    """Spell an input's name as Python can: ``layer.0.permille`` is ``layer_0_permille``."""
    spelt = re.sub(r"\W", "_", name)
    is_taken = keyword.iskeyword(spelt) or spelt == "self" or not spelt.isidentifier()
    return f"_{spelt}" if is_taken else spelt


def _feeds(
    names: Sequence[str], args: Sequence[Tensor], kwargs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Name the positional inputs; every input has to be given once."""
    own = {_argument(name): name for name in names}
    by_name = {own.get(name, name): tensor for name, tensor in kwargs.items()}
    by_position = dict(zip(names, args, strict=False))
    feeds = {**by_position, **by_name}
    if len(args) > len(names) or by_position.keys() & by_name.keys() or set(feeds) != set(names):
        raise BadInputError(
            "the inputs do not fit the graph's",
            got=f"{len(args)} by position, {', '.join(kwargs) or 'none'} by name",
            wanted=", ".join(names),
        )
    return feeds


def execute(call: Call) -> Sequence[Value | None]:
    """Run one step: on whole numbers where all inputs are, with torch otherwise."""
    known = [value for value in call.inputs if isinstance(value, Integers)]
    result: Any = None
    if known and len(known) == sum(value is not None for value in call.inputs):
        function = INTEGER_OPS.find(call.step.op)
        result = function(call, tuple(known)) if function else None
    if result is None:
        result = TORCH_OPS[call.step.op](call)
    return result if isinstance(result, tuple) else (result,)


def _check_ops(graph: ir.Graph) -> None:
    for node in graph:
        if op_key(node) not in TORCH_OPS:
            raise PreconditionError(
                f"{op_key(node)} cannot be run with torch yet",
                where=f"node {node.name!r}",
                wanted="one of " + ", ".join(sorted(TORCH_OPS)),
                next_step="add an entry to TORCH_OPS in a file of export/torch_ops",
            )


def _place_weights(model: ir.Model, module: nn.Module) -> dict[Use, Weight | Integers]:
    """Store every initialiser in the module; short lists of whole numbers stay out of it."""
    graph = model.graph
    for i, output in enumerate(graph.outputs):
        if output.is_initializer():
            node = ir.node("Identity", [output])
            graph.append(node)
            graph.outputs[i], node.outputs[0].name = node.outputs[0], f"{output.name}_out"
    recorded = records(model)
    table = WeightTable(module, recorded, graph.initializers)
    places: dict[Use, Weight | Integers] = {}
    for value, uses in uses_of_initialisers(graph).items():
        known = None if value.name in recorded else _integers(value)
        places |= dict.fromkeys(uses, known) if known else table.place(value, uses)
    table.tie()
    return places


def _integers(value: ir.Value) -> Integers | None:
    tensor = value.const_value
    dtypes = {ir.DataType.INT64: torch.int64, ir.DataType.INT32: torch.int32}
    if tensor is None or tensor.dtype not in dtypes or len(tensor.shape) > 1:
        return None
    array = tensor.numpy()
    if array.size > _MOST_INTEGERS:
        return None
    return Integers(tuple(array.reshape(-1).tolist()), array.ndim == 0, dtypes[tensor.dtype])


def _program(model: ir.Model, places: Mapping[Use, Weight | Integers]) -> Program:
    graph = model.graph
    steps = [_step(node, places, model.opset_imports) for node in graph]
    inputs = [value for value in graph.inputs if value.const_value is None]
    outputs: dict[str, Source] = {}
    for value in graph.outputs:
        outputs[str(value.name)] = str(value.name)
    return Program(
        tuple(str(value.name) for value in inputs),
        tuple(_with_dead(steps, set(outputs))),
        outputs,
    )


def _step(
    node: ir.Node, places: Mapping[Use, Weight | Integers], opsets: Mapping[str, int]
) -> Step:
    sources: list[Source] = []
    numbers = {}
    for slot, value in enumerate(node.inputs):
        sources.append(places.get((node, slot), None if value is None else str(value.name)))
        constant = None if value is None else value.const_value
        if (node, slot) in places and constant is not None and constant.size == 1:
            numbers[slot] = float(constant.numpy().reshape(-1)[0])
    version = node.version or opsets.get(node.domain, 1)
    return Step(
        op=op_key(node),
        node=node.name or f"{node.op_type} before {node.outputs[0].name}",
        inputs=tuple(sources),
        outputs=tuple(value.name or "" for value in node.outputs),
        attributes={name: _attribute(node, attr) for name, attr in node.attributes.items()},
        numbers=numbers,
        opset=version,
    )


def _attribute(node: ir.Node, attribute: ir.Attr) -> Attribute:
    readers: dict[ir.AttributeType, Callable[[], Attribute]] = {
        ir.AttributeType.INT: attribute.as_int,
        ir.AttributeType.FLOAT: attribute.as_float,
        ir.AttributeType.STRING: attribute.as_string,
        ir.AttributeType.INTS: lambda: tuple(attribute.as_ints()),
        ir.AttributeType.FLOATS: lambda: tuple(attribute.as_floats()),
        ir.AttributeType.STRINGS: lambda: tuple(attribute.as_strings()),
        ir.AttributeType.TENSOR: lambda: np.array(attribute.as_tensor().numpy()),
    }
    if attribute.type not in readers:
        raise PreconditionError(
            f"attribute {attribute.name!r} cannot be read",
            where=f"node {node.name!r}",
            got=str(attribute.type),
        )
    return readers[attribute.type]()


def _with_dead(steps: list[Step], outputs: set[str]) -> list[Step]:
    """Note at every step which values are read for the last time there."""
    seen, noted = set(outputs), []
    for step in reversed(steps):
        names = {name for name in (*step.inputs, *step.outputs) if isinstance(name, str)}
        noted.append(replace(step, dead=tuple(sorted(names - seen))))
        seen |= names
    return noted[::-1]


__all__ = ["GraphModule", "Outputs", "Program", "execute", "to_torch"]
