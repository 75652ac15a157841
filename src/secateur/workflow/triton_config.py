"""The text of a Triton ``config.pbtxt``.

*Source: model_config.proto of Triton's common repository.*
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secateur.errors import BadInputError
from secateur.runtime.signature import TensorInfo

MARK = "# Written by secateur triton."
"""First line of every configuration that this module writes."""

_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16",
    "float32": "FP32", "float64": "FP64", "bfloat16": "BF16", "object": "STRING",
}  # fmt: skip
_NOT_OF_ONNXRUNTIME = {"bfloat16"}  # as of Triton's ONNX Runtime backend of 2026


@dataclass(frozen=True, slots=True)
class WarmUp:
    """One warm-up request: shapes without the batch axis, and a file of bytes or zeros.

    ``files`` names a file below ``warmup/`` for the inputs that have one.
    """

    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A served model.

    ``max_batch`` 0 means that requests carry whole batches; else the tensors' first axis is
    Triton's own and is not listed. ``shape_inputs`` are read by a TensorRT engine on the host,
    and ``n_profiles`` is how many profiles it has.
    """

    name: str
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_batch: int = 0
    preferred: tuple[int, ...] = ()
    shape_inputs: frozenset[str] = frozenset()
    warm_up: WarmUp | None = None
    graph_level: int = 0
    instances: str = "KIND_AUTO"
    n_profiles: int = 0

    def to_text(self) -> str:
        """The content of ``config.pbtxt``; BadInputError for a type that Triton lacks."""
        lines = [
            MARK,
            f"name: {_quoted(self.name)}",
            f'platform: "{self.platform}"',
            f"max_batch_size: {self.max_batch}",
            *(line for info in self.inputs for line in self._tensor("input", info)),
            *(line for info in self.outputs for line in self._tensor("output", info)),
            "version_policy { latest { num_versions: 1 } }",
            *self._instances(),
        ]
        if self.graph_level:
            lines.append(f"optimization {{ graph {{ level: {self.graph_level} }} }}")
        if self.max_batch:
            sizes = "".join(f" preferred_batch_size: {size}" for size in self.preferred)
            lines.append(f"dynamic_batching {{{sizes} }}")
        return "\n".join([*lines, *self._warm_up()]) + "\n"

    def _tensor(self, kind: str, info: TensorInfo) -> list[str]:
        shape = info.shape[1:] if self.max_batch else info.shape
        dims = [size if isinstance(size, int) else -1 for size in shape]
        lines = [f"  name: {_quoted(info.name)}", f"  data_type: {self._type(info)}"]
        lines += _repeated("dims", dims or [1])
        if not dims:  # a shape may not be empty, but it may be reshaped to be
            lines.append("  reshape { shape: [] }")
        if kind == "input" and info.optional:
            lines.append("  optional: true")
        if info.name in self.shape_inputs:
            lines.append("  is_shape_tensor: true")
        return [f"{kind} {{", *lines, "}"]

    def _type(self, info: TensorInfo) -> str:
        lacks = _NOT_OF_ONNXRUNTIME if self.platform == "onnxruntime_onnx" else set[str]()
        known = [name for name in _TYPES if name not in lacks]
        if info.dtype in known:
            return f"TYPE_{_TYPES[info.dtype]}"
        raise BadInputError(
            f"Triton serves no such type on {self.platform}",
            where=f"tensor {info.name!r}",
            got=info.describe(),
            wanted="one of " + ", ".join(known),
            next_step="cast it inside the graph",
        )

    def _instances(self) -> list[str]:
        profile = "".join(f' profile: "{place}"' for place in range(self.n_profiles))
        return [f"instance_group {{ kind: {self.instances} count: 1{profile} }}"]

    def _warm_up(self) -> list[str]:
        if self.warm_up is None:
            return []
        lines = ["model_warmup {", '  name: "usual shapes"', f"  batch_size: {self.warm_up.batch}"]
        for info in self.inputs:
            file = self.warm_up.files.get(info.name)
            data = f"input_data_file: {_quoted(file)}" if file else "zero_data: true"
            dims = "".join(f" dims: {size}" for size in self.warm_up.shapes[info.name])
            value = f"data_type: {self._type(info)}{dims} {data}"
            lines.append(f"  inputs {{ key: {_quoted(info.name)} value {{ {value} }} }}")
        return [*lines, "}"]


def _repeated(field: str, values: Iterable[int]) -> list[str]:
    return [f"  {field}: {value}" for value in values]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


__all__ = ["MARK", "ModelConfig", "WarmUp"]
