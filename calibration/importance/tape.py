"""A graph run step by step with torch, every value kept: for criteria that walk back over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.export.torch_ops import Step, Value

    Values: TypeAlias = dict[str, Value | None]
    Leaves: TypeAlias = Mapping[tuple[str, int], Tensor]
    """Stand in for the input of a step, by the step's first output and the slot."""

LINEAR = frozenset({"Conv", "Gemm", "MatMul"})
"""Products with one weight."""
POOLING = frozenset(
    {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceSum"}
)
LAYOUT = frozenset(
    {
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice"),
        *("Pad", "Gather", "Expand"),
    }
)
PASSING = frozenset({"Relu", "Clip", "Identity", "Dropout", "Cast"})


class Tape:
    """The steps of a graph, in order."""

    def __init__(self, model: ir.Model) -> None:
        """Translate a graph.

        Raises:
            PreconditionError: an op that cannot be run with torch, named with its node.
        """
        from secateur.export.to_torch import GraphModule, to_torch

        module = to_torch(model)
        assert isinstance(module, GraphModule)
        self._module = module
        self.steps: tuple[Step, ...] = self._module.program.steps
        self.output = str(model.graph.outputs[0].name)
        """Name of the first output."""

    def forward(self, feeds: Mapping[str, Tensor], leaves: Leaves | None = None) -> Values:
        """Run every step; all values by name."""
        values: Values = dict(feeds)
        for step in self.steps:
            results = self.run(step, self.inputs(step, values, leaves or {}))
            values.update(zip(step.outputs, results, strict=False))
        return values

    def inputs(
        self, step: Step, values: Mapping[str, Value | None], leaves: Leaves
    ) -> tuple[Value | None, ...]:
        """What a step reads."""
        from secateur.export.torch_ops import Weight

        found: list[Value | None] = []
        for slot, source in enumerate(step.inputs):
            if (step.outputs[0], slot) in leaves:
                found.append(leaves[step.outputs[0], slot])
            elif isinstance(source, str):
                found.append(values[source])
            elif isinstance(source, Weight):
                found.append(self._module.weight(source))
            else:
                found.append(source)
        return tuple(found)

    def run(self, step: Step, inputs: tuple[Value | None, ...]) -> tuple[Value | None, ...]:
        """Compute a step's outputs."""
        import torch

        from secateur.export.to_torch import execute
        from secateur.export.torch_ops import Call

        return tuple(execute(Call(step, inputs, False, torch.device("cpu"))))

    def weights(self, step: Step) -> dict[int, Tensor]:
        """Floating-point tensors that a step reads from the file, by slot."""
        from secateur.export.torch_ops import Weight

        found = {
            slot: self._module.weight(source).detach()
            for slot, source in enumerate(step.inputs)
            if isinstance(source, Weight)
        }
        return {slot: tensor for slot, tensor in found.items() if tensor.is_floating_point()}


def as_tensors(batch: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors of the same types."""
    import torch

    return {name: torch.from_numpy(array) for name, array in batch.items()}


__all__ = ["LAYOUT", "LINEAR", "PASSING", "POOLING", "Leaves", "Tape", "Values", "as_tensors"]
