"""FLOPs of a model on given inputs, counted on the shapes that ONNX Runtime sees."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from secateur.graph_passes.flops import count, observed, shapes_from
from secateur.graph_passes.names import module_path
from secateur.runtime.backend import Arrays
from secateur.workflow.model_session import open_model


@dataclass(frozen=True, slots=True)
class FlopCount:
    """FLOPs of one forward pass; a multiplication and an addition count as two."""

    by_node: dict[str, int]
    by_module: dict[str, int]
    """By path of the module that made the node, "" where nothing tells."""

    @property
    def total(self) -> int:
        """Of all products, convolutions and attentions."""
        return sum(self.by_node.values())


def count_flops(model: ir.Model, inputs: Arrays) -> FlopCount:
    """Run a model once on ``inputs`` and count on the shapes that were seen."""
    with open_model(observed(model)) as run:
        by_node = count(model, shapes_from(run(inputs)))
    paths = {node.name or node.outputs[0].name: module_path(node) for node in model.graph}
    by_module: dict[str, int] = {}
    for name, flops in by_node.items():
        by_module[paths[name]] = by_module.get(paths[name], 0) + flops
    return FlopCount(by_node, by_module)


__all__ = ["FlopCount", "count_flops"]
