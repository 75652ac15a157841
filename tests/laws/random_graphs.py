"""Random small networks: a bag of values, to which random ops are applied one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

BATCH = 2
"""What the dynamic batch is at run time."""
NAMES = ("batch", "tokens", "rows", "columns")


@dataclass(frozen=True)
class Value:
    """A tensor of known shape; axis 0 is the batch while ``has_batch``."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Graph:
    """A network under construction."""

    random: Random
    opset: int = 20
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    ids: dict[str, tuple[Value, int]] = field(default_factory=dict)
    """Integer inputs, with how many rows they are read from."""

    def node(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], **attributes: object
    ) -> Value:
        return self.split(op, inputs, [tuple(shape)], **attributes)[0]

    def split(
        self, op: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], **attributes: object
    ) -> list[Value]:
        domain, _, kind = op.rpartition(":")
        number = len(self.nodes)
        names = [f"v{number}_{i}" for i in range(len(shapes))]
        node = helper.make_node(kind, inputs, names, f"{kind}_{number}", domain=domain)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        made = [Value(name, tuple(shape)) for name, shape in zip(names, shapes, strict=True)]
        self.values += made
        return made

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        """A constant of a scale that keeps activations near 1."""
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale = 1.5 / math.sqrt(max(fan_in, 1)) if (low, high) == (-1.0, 1.0) else 1.0
        drawn = self.rng().uniform(low, high, shape) * scale
        return self.constant(drawn.astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def ids_below(self, rows: int, shape: Sequence[int]) -> str:
        """A graph input of integers, each an id of one of the rows."""
        name = f"ids{len(self.ids)}"
        self.ids[name] = Value(name, tuple(shape)), rows
        return name

    def constant(self, array: NDArray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.random.randrange(2**32))

    def pick(self, accept: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """A value that fits, more often a recent one."""
        fitting = [v for v in self.values if accept(v)]
        if not fitting:
            return None
        return fitting[-1 - min(int(self.random.expovariate(0.7)), len(fitting) - 1)]

    def model(self, n_inputs: int, outputs: Sequence[Value]) -> onnx.ModelProto:
        """The network so far; axes of inputs may have names, also where weights fix them."""
        named = [self.random.random() < share for share in (0.6, 0.15, 0.2, 0.2)]

        def info(value: Value, dtype: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
            called = NAMES if dtype == onnx.TensorProto.FLOAT else (NAMES[0], value.name)
            names = zip(value.shape, called, named, strict=False)
            shape = [name if is_named else size for size, name, is_named in names]
            return helper.make_tensor_value_info(value.name, dtype, shape)

        declared = [
            helper.make_tensor_value_info(v.name, onnx.TensorProto.FLOAT, [None] * v.rank)
            for v in outputs
        ]
        constants = [numpy_helper.from_array(array, n) for n, array in self.weights.items()]
        read = {name for node in self.nodes for name in node.input}
        ids = {name: pair for name, pair in self.ids.items() if name in read}
        inputs = [info(v) for v in self.values[:n_inputs]]
        inputs += [info(value, onnx.TensorProto.INT64) for value, _ in ids.values()]
        graph = helper.make_graph(self.nodes, "random", inputs, declared, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        lengths = {v.name: " ".join(map(str, v.shape)) for v in self.values[:n_inputs]}
        lengths |= {name: " ".join(map(str, v.shape)) for name, (v, _) in ids.items()}
        lengths |= {f"rows.{name}": str(rows) for name, (_, rows) in ids.items()}
        helper.set_model_props(model, lengths)
        return model


Step = Callable[[Graph], object]
STEPS: dict[str, Step] = {}
"""Every step by name; a step adds a few nodes, or none where no value fits."""


def step(function: Step) -> Step:
    """Enter a step."""
    STEPS[function.__name__.strip("_")] = function
    return function
