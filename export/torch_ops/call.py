"""What an op sees when it is run with torch: its inputs, its attributes, the mode of the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from secateur.errors import PreconditionError
from secateur.registry import Registry

Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | np.ndarray


@dataclass(frozen=True, slots=True)
class Integers:
    """A tensor of whole numbers that is known on the host: sizes, axes, positions.

    Kept as Python numbers so that shape arithmetic neither waits for a device nor is lost to
    ``torch.export``, in which an entry may be a symbol.
    """

    values: tuple[int, ...]
    is_scalar: bool = False
    dtype: torch.dtype = torch.int64

    def tensor(self, device: torch.device) -> Tensor:
        """Return the numbers as a tensor of rank 0 or 1."""
        if all(type(v) in {int, bool} for v in self.values):
            values = self.values[0] if self.is_scalar else list(self.values)
            return torch.tensor(values, dtype=self.dtype, device=device)
        entries = [torch.scalar_tensor(v, dtype=self.dtype, device=device) for v in self.values]
        return entries[0] if self.is_scalar else torch.stack(entries)


Value = Tensor | Integers


@dataclass(frozen=True, slots=True)
class Weight:
    """An initialiser as it is read by one use: where it is stored, and how it is turned.

    ``key`` is a name in the state dict; ``permutation`` turns the stored tensor into the one
    that the graph reads, None where they are the same.
    """

    key: str
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One node, free of the graph it came from.

    An input is the name of a computed value, a stored weight, known integers, or None where
    an optional input is left out. ``numbers`` holds the inputs that are constants of one
    element, ``dead`` the values that nothing reads later.
    """

    op: str
    node: str
    inputs: tuple[str | Weight | Integers | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    numbers: Mapping[int, float]
    opset: int
    dead: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A step with its inputs at hand."""

    step: Step
    inputs: tuple[Value | None, ...]
    training: bool
    device: torch.device

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def opset(self) -> int:
        """Version of the op's domain."""
        return self.step.opset

    def has(self, slot: int) -> bool:
        """Whether an optional input is given."""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def is_stored(self, slot: int) -> bool:
        """Whether an input is a weight of the module, not a computed value."""
        return slot < len(self.inputs) and isinstance(self.step.inputs[slot], Weight)

    def wants(self, output: int) -> bool:
        """Whether an optional output is read."""
        return output < len(self.step.outputs) and bool(self.step.outputs[output])

    def tensor(self, slot: int) -> Tensor:
        """Return an input as a tensor."""
        value = self.inputs[slot]
        if value is None:
            raise self.refuse(f"input {slot} is missing")
        return value.tensor(self.device) if isinstance(value, Integers) else value

    def optional(self, slot: int) -> Tensor | None:
        """Return an input as a tensor, None where it is left out."""
        return self.tensor(slot) if self.has(slot) else None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all inputs as tensors."""
        return tuple(self.tensor(slot) for slot in range(len(self)))

    def ints(self, slot: int) -> tuple[int, ...]:
        """Return an input's entries as whole numbers; a tensor on a device is waited for."""
        value = self.inputs[slot]
        if isinstance(value, Integers):
            return value.values
        return tuple(int(v) for v in self.tensor(slot).reshape(-1).tolist())

    def number(self, slot: int, default: float) -> float:
        """Return an input of one element as a Python number."""
        if not self.has(slot):
            return default
        known = self.step.numbers.get(slot)
        return float(self.tensor(slot).item()) if known is None else known

    def get_int(self, name: str, default: int) -> int:
        """Return an attribute that is a whole number."""
        value = self.step.attributes.get(name, default)
        assert isinstance(value, int)
        return value

    def get_float(self, name: str, default: float) -> float:
        """Return an attribute that is a number."""
        value = self.step.attributes.get(name, default)
        assert isinstance(value, (int, float))
        return value

    def get_str(self, name: str, default: str) -> str:
        """Return an attribute that is a word."""
        value = self.step.attributes.get(name, default)
        assert isinstance(value, str)
        return value

    def get_ints(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute that is a list of whole numbers, None where it is left out."""
        value = self.step.attributes.get(name)
        return None if value is None else tuple(int(v) for v in value)  # type: ignore[union-attr]

    def refuse(self, reason: str) -> PreconditionError:
        """Return the error that says which node cannot be run, and why."""
        return PreconditionError(
            f"cannot run {self.step.op} with torch",
            where=f"node {self.step.node!r}",
            got=reason,
            next_step="run the ONNX model with ONNX Runtime, or add the case in export/torch_ops",
        )


Result = Value | tuple[Value | None, ...]
"""Of an op with one output the value, of one with several a tuple of them."""
TorchOp = Callable[[Call], Result]

TORCH_OPS: Registry[TorchOp] = Registry("torch op")
"""The one place that says what an op computes; keys as in ``op_key``."""


def op_key(node: ir.Node) -> str:
    """Return ``MatMul`` for an op of ONNX, ``com.microsoft:Gelu`` for one of another domain."""
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type


DTYPES: dict[int, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}
"""The element types that can be run, by their number in ONNX."""

__all__ = [
    "DTYPES",
    "TORCH_OPS",
    "Attribute",
    "Call",
    "Integers",
    "Result",
    "Step",
    "TorchOp",
    "Value",
    "Weight",
    "op_key",
]
