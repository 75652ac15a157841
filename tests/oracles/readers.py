"""Graphs around vectors: weights that read units, with what the units are as the input.

Every reader is ``x -> x I -> split into units -> w``: what the input holds is what the weight
reads, and the product with I makes the units, so that they can be ranked and removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import network

from secateur.graph_passes.groups import Analysis, Group, analyse


@dataclass(frozen=True)
class Reader:
    """A weight (out, in), and how wide each unit of its input is."""

    weight: np.ndarray
    width: int = 1
    role: str = "ffn"


def readers(of: Mapping[str, Reader]) -> tuple[Analysis, tuple[Group, ...]]:
    """One graph with an input ``<name>_in`` and an output ``<name>_out`` for each reader.

    Returns:
        The analysis, and a group per reader, with its role.
    """
    inputs, outputs, nodes, constants = [], [], [], {}
    for name, one in of.items():
        out, into = one.weight.shape
        inputs.append(f"float[batch, tokens, {into}] {name}_in")
        outputs.append(f"float[batch, tokens, {out}] {name}_out")
        nodes += [
            f"{name}_a = MatMul({name}_in, {name}_make)",
            f"{name}_b = Reshape({name}_a, {name}_split)",
            f"{name}_c = Identity({name}_b)",
            f"{name}_d = Reshape({name}_c, {name}_merge)",
            f"{name}_out = MatMul({name}_d, {name}_read)",
        ]
        constants |= {
            f"{name}_make": np.eye(into, dtype=np.float32),
            f"{name}_split": np.array([0, 0, into // one.width, one.width]),
            f"{name}_merge": np.array([0, 0, into]),
            f"{name}_read": np.ascontiguousarray(one.weight.T.astype(np.float32)),
        }
    lines = "\n    ".join(nodes)
    text = f"readers ({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n    {lines}\n}}"
    model: ir.Model = network(text, {}, constants)
    analysis = analyse(model)
    return analysis, tuple(_group(analysis, name, one) for name, one in of.items())


def _group(analysis: Analysis, name: str, reader: Reader) -> Group:
    size = reader.weight.shape[1] // reader.width
    for group in analysis.groups:
        parameters = {use.parameter for use in group.weights}
        if f"{name}_make" in parameters and f"{name}_read" in parameters and group.size == size:
            return replace(group, role=reader.role)
    raise AssertionError(f"no units of {name}: {analysis.groups}")


__all__ = ["Reader", "readers"]
