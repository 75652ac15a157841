"""ONNX files: opened without trusting them, saved without ever leaving half a file."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes import Sequential, common

from secateur.errors import BadInputError
from secateur.export.weights_file import weights_outside
from secateur.weights import Array, array_of

EXTERNAL_ABOVE_BYTES = 1_500_000_000
"""Weights larger than this go into a file of their own: protobuf ends at 2 GiB."""

_INLINE_BELOW_BYTES = 1024
_CHUNK_ELEMENTS = 1 << 18
_INFINITIES = {ir.DataType.FLOAT16: np.uint16(0x7C00), ir.DataType.BFLOAT16: np.uint16(0x7F80)}
"""Bits of infinity; NaN has more without its sign."""
_IR_VERSION_TAG = b"\x08"


def from_onnx(path: str | Path) -> ir.Model:
    """Open an ONNX file; weights in external files stay there until they are read.

    Functions are inlined, Constant nodes become initialisers, nameless nodes get names and
    missing shapes are inferred, all in memory: the file is not touched.

    Raises:
        BadInputError: there is no such file, it is not ONNX or cut off, its external data is
            missing, too short or outside its folder, or a weight holds NaN.
    """
    file = Path(path)
    model = _parse(file)
    for name, tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(file, name, tensor)
            tensor.base_dir = str(file.parent.resolve())
    for name, tensor in _tensors(model):
        _check_numbers(file, name, tensor)
    _hold_as_arrays(model)
    Sequential(
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.NameFixPass(),
    )(model)
    if any(value.shape is None or value.dtype is None for value in _values(model)):
        infer_missing_shapes(model)
    return model


def save(
    model: ir.Model, path: str | Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> tuple[Path, ...]:
    """Write ``model`` so that ``path`` is either the old file or the whole new one.

    Weights go into a second file, named by their hash, when they are larger than
    ``external_above_bytes`` or already live outside. An older weights file is left alone:
    models that were opened from it still read it.

    Returns:
        the files written, the model first.

    Raises:
        BadInputError: the folder cannot be written to.
    """
    file = Path(path)
    tensors = [tensor for _, tensor in _tensors(model)]
    outside = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    external = outside or sum(tensor.nbytes for tensor in tensors) > external_above_bytes
    above_bytes = _INLINE_BELOW_BYTES if external else sys.maxsize
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
            written = Path(folder) / file.name
            with weights_outside(model, Path(folder), file.stem, above_bytes=above_bytes) as data:
                ir.save(model, written)
            moved = [] if data is None else [data.replace(file.parent / data.name)]
            return (written.replace(file), *moved)
    except OSError as error:
        raise BadInputError("cannot write the model", where=str(file), got=str(error)) from error


def infer_missing_shapes(model: ir.Model) -> None:
    """Fill in shapes and types that are not there; those that are stay as they are.

    Weights are left out of what ONNX's shape inference sees, except small ones, which may be
    shapes that it has to read.
    """
    proto = ir.to_proto(_without_large_weights(model))
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    known = ir.convenience.create_value_mapping(ir.from_proto(inferred).graph)
    for value in _values(model):
        twin = known.get(str(value.name))
        if twin is None:
            continue
        if value.shape is None:
            value.shape = twin.shape
        if value.type is None:
            value.type = twin.type


def _without_large_weights(model: ir.Model) -> ir.Model:
    small = model.clone()
    for name, value in list(small.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _INLINE_BELOW_BYTES:
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value.const_value = None
            del small.graph.initializers[name]
            small.graph.inputs.append(value)
    return small


def _parse(file: Path) -> ir.Model:
    if not file.is_file():
        raise BadInputError(
            "no such file" if not file.exists() else "not a file",
            where=str(file),
            wanted="an .onnx file",
        )
    content = file.read_bytes()
    try:
        proto = onnx.load_model_from_string(content, format="protobuf")
    except (DecodeError, ValueError) as error:
        raise _unreadable(file, content) from error
    if not proto.ir_version or not proto.graph.output:
        raise _unreadable(file, content)
    try:
        model = ir.serde.deserialize_model(proto)
    except ir.serde.SerdeError as error:
        raise BadInputError(
            "the ONNX file contradicts itself", where=str(file), got=str(error.__cause__)
        ) from error
    _check_connected(file, model)
    return model


def _check_connected(file: Path, model: ir.Model) -> None:
    """Refuse values that nothing makes, and circles; nodes out of order are sorted."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.inputs:
            if value is not None and not _is_made(value):
                where = f"{file}, node {node.name or node.op_type!r}"
                raise _contradiction(where, f"it reads {value.name!r}, which nothing makes")
    for value in model.graph.outputs:
        if not _is_made(value):
            raise _contradiction(str(file), f"the output {value.name!r} is made by nothing")
    try:
        model.graph.sort()
    except ValueError:
        raise _contradiction(str(file), "its nodes read one another in a circle") from None


def _is_made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _contradiction(where: str, got: str) -> BadInputError:
    return BadInputError(
        "the ONNX file contradicts itself",
        where=where,
        got=got,
        next_step="check the tool that wrote the file with onnx.checker",
    )


def _unreadable(file: Path, content: bytes) -> BadInputError:
    if not content:
        return BadInputError("the file is empty", where=str(file), wanted="an ONNX model")
    if content.startswith(_IR_VERSION_TAG):
        return BadInputError(
            "the ONNX file is cut off or damaged",
            where=str(file),
            got=f"{len(content)} bytes that do not end a model",
            next_step="copy or download it again",
        )
    return BadInputError(
        "the file is not ONNX",
        where=str(file),
        got=f"a file that starts with {content[:8]!r}",
        wanted="an ONNX model",
    )


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield every stored tensor: initialisers and attributes, in subgraphs and functions too."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    for node in _nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield f"{node.name or node.op_type}.{attribute.name}", attribute.as_tensor()


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from ir.traversal.RecursiveGraphIterator(function)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs


def _check_external(file: Path, name: str, tensor: ir.ExternalTensor) -> None:
    folder = file.parent.resolve()
    location = str(tensor.location)
    target = (folder / location).resolve()
    where = f"{file}, tensor {name!r}"
    if Path(location).is_absolute() or not target.is_relative_to(folder):
        raise BadInputError(
            "external data points outside the model's folder",
            where=where,
            got=location if not (folder / location).is_symlink() else f"{location} -> {target}",
            wanted=f"a file in {folder}",
            next_step="put the data file beside the model, and do not trust where it came from",
        )
    if not target.is_file():
        raise BadInputError(
            "external data is missing",
            where=where,
            got=location,
            wanted=f"the file {target}",
            next_step="copy it beside the model",
        )
    end = (tensor.offset or 0) + tensor.nbytes
    if target.stat().st_size < end or (tensor.length or tensor.nbytes) != tensor.nbytes:
        raise BadInputError(
            "external data is cut off",
            where=where,
            got=f"{location} has {target.stat().st_size} bytes",
            wanted=f"{tensor.nbytes} bytes at offset {tensor.offset or 0}",
            next_step="copy or download it again",
        )


def _check_numbers(file: Path, name: str, tensor: ir.TensorProtocol) -> None:
    """Refuse NaN; one chunk at a time, which stays in the processor's cache."""
    if tensor.dtype == ir.DataType.STRING:
        return
    try:
        flat = array_of(tensor).reshape(-1)
    except ValueError as error:
        raise BadInputError(
            "a weight's bytes do not fill its shape",
            where=f"{file}, tensor {name!r}",
            got=str(error),
            wanted=f"{tensor.nbytes} bytes for {tensor.dtype.name} {tensor.shape}",
            next_step="copy or download the file again",
        ) from error
    if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
        return
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        wrong = _count_nan(flat[start : start + _CHUNK_ELEMENTS], tensor.dtype)
        if wrong:
            raise BadInputError(
                "a weight holds NaN",
                where=f"{file}, tensor {name!r}",
                got=f"{wrong} NaN among its values",
                next_step="export the model again from a checkpoint that is whole",
            )


def _hold_as_arrays(model: ir.Model) -> None:
    """Keep initialisers as arrays: a tensor of a file copies its bytes whenever it is read."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.TensorProtoTensor) or tensor.dtype == ir.DataType.STRING:
                continue
            if tensor.dtype.bitwidth >= 8:
                value.const_value = ir.Tensor(
                    tensor.numpy(), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string
                )


def _count_nan(chunk: Array, dtype: ir.DataType) -> int:
    """Count NaN; by their bits where numpy would convert number by number."""
    infinity = _INFINITIES.get(dtype)
    if infinity is None:
        return int(np.count_nonzero(np.isnan(chunk)))
    return int(np.count_nonzero((chunk.view(np.uint16) & np.uint16(0x7FFF)) > infinity))


__all__ = ["EXTERNAL_ABOVE_BYTES", "from_onnx", "infer_missing_shapes", "save"]
