"""Reads the outline of an ONNX file (inputs, nodes, external data) without the onnx package.

A target machine has NumPy and a backend only, and a file has to be checked before a backend
touches it. *Source: onnx.proto of the ONNX project, field numbers of ModelProto and below.*
"""

from __future__ import annotations

import ast
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secateur.errors import BadInputError
from secateur.runtime.files import inside
from secateur.runtime.signature import TensorInfo
from secateur.runtime.wire import Message, WireError, fields, integer, strings, text

_MODEL_WIRE_TYPES = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "object", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2",
    20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4_e2m1",
}  # fmt: skip

_CAST_TO = frozenset({"to", "output_dtype"})
"""Attributes of Cast, QuantizeLinear and DequantizeLinear that name a type."""


@dataclass(frozen=True, slots=True)
class NodeOutline:
    """One node, subgraph nodes included. ``module`` is the user's module path, or ""."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Bytes of one tensor in another file; ``length`` is -1 for "to the end"."""

    tensor: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """What the checks before a build need to know of an ONNX file.

    ``constants`` gives the dtype of every initialiser; an initialiser that is also an input
    is an optional input. ``dtypes`` holds every type that the file names: of tensors anywhere,
    of inputs and outputs, and of what nodes cast or quantise to.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[NodeOutline, ...]
    constants: Mapping[str, str]
    external: tuple[ExternalData, ...]
    opset: int
    metadata: Mapping[str, str]
    dtypes: frozenset[str] = frozenset()

    @property
    def operators(self) -> tuple[str, ...]:
        """Every operator once, sorted."""
        return tuple(sorted({node.operator for node in self.nodes}))

    def module_of(self, node_name: str) -> str:
        """The user's module path of a node, or "" when the file does not tell."""
        return next((node.module for node in self.nodes if node.name == node_name), "")


def read_outline(path: Path) -> ModelOutline:
    """Read and check a file: it is ONNX, whole, and its external data is there and inside.

    Raises BadInputError that says which of these fails. Weights are not read.
    """
    if not path.is_file():
        raise BadInputError(
            "the ONNX file does not exist",
            where=str(path),
            next_step="check the path; export or build the model first",
        )
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise _not_onnx(path, "the file is empty")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    graph = _graph(path, view)
    try:
        outline = _model(view, graph)
    except (WireError, UnicodeDecodeError) as error:
        raise _not_onnx(path, str(error)) from error
    if not outline.opset:
        raise _not_onnx(path, "it names no operator set; it may have been cut short")
    _check_external(path, outline.external)
    return outline


def _graph(path: Path, view: Message) -> Message:
    """The graph of the model; every top-level field is checked on the way."""
    graph: Message | None = None
    try:
        for number, wire_type, value in fields(view):
            if _MODEL_WIRE_TYPES.get(number) != wire_type:
                raise _not_onnx(path, f"field {number} is none of an ONNX model's")
            if number == 7 and isinstance(value, memoryview):
                graph = value
    except WireError as error:
        if _MODEL_WIRE_TYPES.get(error.number) != error.wire_type:
            raise _not_onnx(path, str(error)) from error
        raise BadInputError(
            "the ONNX file is cut short",
            where=str(path),
            got=f"{len(view)} bytes; {error}",
            next_step="copy or export the file again; its writer was probably killed",
        ) from error
    if graph is None:
        raise _not_onnx(path, "it holds no graph")
    return graph


def _not_onnx(path: Path, why: str) -> BadInputError:
    return BadInputError(
        "the file is not an ONNX model",
        where=str(path),
        got=why,
        wanted="a file written by an ONNX exporter",
        next_step="give the .onnx file itself, not a checkpoint, an engine or a Git LFS pointer",
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a walk over graphs collects."""

    nodes: list[NodeOutline]
    tensors: list[Message]
    casts: list[int] = field(default_factory=list)


def _model(view: Message, graph: Message) -> ModelOutline:
    parts = _Parts([], [])
    _walk_graph(graph, parts)
    for function in _messages(view, 25):
        for node in _messages(function, 7):
            _walk_node(node, parts)
    constants = dict(_constant(tensor) for tensor in _messages(graph, 5))
    inputs = tuple(_value_info(value, constants) for value in _messages(graph, 11))
    outputs = tuple(_value_info(value, {}) for value in _messages(graph, 12))
    numbers = {*(integer(tensor, 2) for tensor in parts.tensors), *parts.casts}
    named = {DTYPES.get(number, "unknown") for number in numbers}
    return ModelOutline(
        inputs=inputs,
        outputs=outputs,
        nodes=tuple(parts.nodes),
        constants=constants,
        external=tuple(data for tensor in parts.tensors for data in _external(tensor)),
        opset=_opset(view),
        metadata=_properties(view, 14),
        dtypes=frozenset(named | {info.dtype for info in (*inputs, *outputs)}),
    )


def _messages(message: Message, wanted: int) -> Iterator[Message]:
    for number, _, value in fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _opset(view: Message) -> int:
    """Version of the default operator set, or 0."""
    found = (integer(o, 2) for o in _messages(view, 8) if text(o, 1) in {"", "ai.onnx"})
    return max(found, default=0)


def _walk_graph(graph: Message, parts: _Parts) -> None:
    parts.tensors.extend(_messages(graph, 5))
    for node in _messages(graph, 1):
        _walk_node(node, parts)


def _walk_node(node: Message, parts: _Parts) -> None:
    parts.nodes.append(
        NodeOutline(
            name=text(node, 3),
            operator=text(node, 4),
            inputs=strings(node, 1),
            outputs=strings(node, 2),
            module=_module_path(text(node, 3), _properties(node, 9)),
        )
    )
    for attribute in _messages(node, 5):
        if text(attribute, 1) in _CAST_TO:
            parts.casts.append(integer(attribute, 3))
        for number, _, value in fields(attribute):
            if number in {5, 10} and isinstance(value, memoryview):
                parts.tensors.append(value)
            if number in {6, 11} and isinstance(value, memoryview):
                _walk_graph(value, parts)


def _module_path(name: str, properties: Mapping[str, str]) -> str:
    """The module that torch's exporter names, the last scope before the call itself.

    Other converters spell the path in the node's name, with slashes.
    """
    recorded = properties.get("pkg.torch.onnx.name_scopes", "")
    if not recorded:
        return ".".join(part for part in name.strip("/").split("/")[:-1] if part)
    try:
        scopes = [scope for scope in ast.literal_eval(recorded) if scope]
    except (SyntaxError, ValueError, TypeError):
        return ""
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _properties(message: Message, number: int) -> dict[str, str]:
    return {text(entry, 1): text(entry, 2) for entry in _messages(message, number)}


def _constant(tensor: Message) -> tuple[str, str]:
    return text(tensor, 8), DTYPES.get(integer(tensor, 2), "unknown")


def _value_info(value: Message, constants: Mapping[str, str]) -> TensorInfo:
    name = text(value, 1)
    tensor = next((t for kind in _messages(value, 2) for t in _messages(kind, 1)), memoryview(b""))
    shape = next(_messages(tensor, 2), memoryview(b""))
    sizes = tuple(_size(dimension) for dimension in _messages(shape, 1))
    dtype = DTYPES.get(integer(tensor, 1), "unknown")
    return TensorInfo(name, dtype, sizes, name in constants)


def _size(dimension: Message) -> int | str:
    for number, _, value in fields(dimension):
        if number == 1 and isinstance(value, int):
            return value
    return text(dimension, 2)


def _external(tensor: Message) -> Iterator[ExternalData]:
    entries = _properties(tensor, 13)
    if integer(tensor, 14) == 1 or entries:
        yield ExternalData(
            tensor=text(tensor, 8),
            location=entries.get("location", ""),
            offset=int(entries.get("offset", "0")),
            length=int(entries.get("length", "-1")),
        )


def _check_external(path: Path, external: tuple[ExternalData, ...]) -> None:
    for data in external:
        where = f"tensor {data.tensor!r} of {path}"
        file = inside(path.parent, data.location, where=where)
        if not file.is_file():
            raise BadInputError(
                "an external data file is missing",
                where=where,
                wanted=str(file),
                next_step="copy the data file beside the .onnx file, under that name",
            )
        size, end = file.stat().st_size, data.offset + max(data.length, 0)
        if data.offset < 0 or end > size:
            raise BadInputError(
                "an external data file is cut short",
                where=where,
                got=f"{file.name} has {size} bytes",
                wanted=f"at least {end} bytes",
                next_step="copy or export the model again",
            )


__all__ = ["DTYPES", "ExternalData", "ModelOutline", "NodeOutline", "read_outline"]
