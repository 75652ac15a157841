"""Random networks from a seed, out of all the steps there are."""

from __future__ import annotations

import math
from random import Random

import onnx
from tests.laws import random_blocks, random_moves, random_steps
from tests.laws.random_graphs import STEPS, Graph, Value

STEP_FILES = (random_blocks, random_moves, random_steps)


def random_model(seed: int) -> onnx.ModelProto:
    """A network of 2 to 14 random steps behind a random first layer; small seeds are small."""
    random = Random(seed)
    graph = Graph(random, opset=random.choice((18, 20, 20, 23)))
    n_inputs = random_steps.begin(graph)
    wanted = len(graph.nodes) + 2 + seed % 13
    kinds = list(STEPS)
    for _ in range(60):
        if len(graph.nodes) >= wanted:
            break
        before = len(graph.nodes), len(graph.values)
        STEPS[random.choice(kinds)](graph)
        too_large = any(math.prod(v.shape) > 4096 for v in graph.values[before[1] :])
        if too_large:
            del graph.nodes[before[0] :], graph.values[before[1] :]
    unread = {v.name for v in graph.values} - {n for node in graph.nodes for n in node.input}
    ends = [v for v in graph.values[n_inputs:] if v.name in unread] or graph.values[-1:]
    return graph.model(n_inputs, [_closed(graph, value) for value in ends[-3:]])


def _closed(graph: Graph, value: Value) -> Value:
    """Mostly end in a layer of its own, so that not all that was made is an output axis."""
    if value.rank == 0 or graph.random.random() < 0.2:
        return value
    width = value.shape[-1]
    weight = graph.weight(width, graph.random.choice((1, 2, 3)))
    out = (
        (*value.shape[:-1], graph.weights[weight].shape[1])
        if value.rank > 1
        else (graph.weights[weight].shape[1],)
    )
    return graph.node("MatMul", [value.name, weight], out)
