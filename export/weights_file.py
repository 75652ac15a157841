"""The file beside a model that holds its weights, written one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from secateur.weights import array_of, bytes_of

_CHUNK_BYTES = 1 << 24
_AHEAD_BYTES = 1 << 28
"""A tensor up to this size may be made while the one before it is being written."""


@contextmanager
def weights_outside(
    model: ir.Model, folder: Path, stem: str, *, above_bytes: int
) -> Iterator[Path | None]:
    """Write the weights of more than ``above_bytes`` to a file in ``folder`` and refer to it.

    The file is named by a hash of what it holds. Inside, initialisers are in that file or, the
    small ones, in memory; then they are what they were. Yields None where all are small.
    """
    values = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    before = [value.const_value for value in values]
    try:
        yield _move_out(values, folder, stem, above_bytes)
    finally:
        for value, tensor in zip(values, before, strict=True):
            value.const_value = tensor


def _move_out(values: Sequence[ir.Value], folder: Path, stem: str, above_bytes: int) -> Path | None:
    large: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes > above_bytes:
            large.append((value, tensor))
        elif isinstance(tensor, ir.ExternalTensor):
            copy = np.array(array_of(tensor))
            value.const_value = ir.Tensor(copy, dtype=tensor.dtype, name=value.name)
    if not large:
        return None
    draft = folder / "weights"
    offsets, digest = _write([tensor for _, tensor in large], draft)
    path = draft.rename(folder / f"{stem}.{digest}.data")
    for (value, tensor), offset in zip(large, offsets, strict=True):
        value.const_value = ir.ExternalTensor(
            path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "",
            base_dir=folder,
        )
    return path


def _write(tensors: Sequence[ir.TensorProtocol], path: Path) -> tuple[list[int], str]:
    """Write tensors one behind the other; where each begins, and a hash of them all.

    Copying, hashing and making the next tensor take about as long and run side by side.
    """
    digest = hashlib.blake2b(digest_size=6)
    offsets = []
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        for tensor in _made_ahead(tensors):
            offsets.append(file.tell())
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
            content = bytes_of(tensor)
            for start in range(0, len(content), _CHUNK_BYTES):
                part = content[start : start + _CHUNK_BYTES]
                hashed = hasher.submit(digest.update, part)
                file.write(part)
                hashed.result()
    return offsets, digest.hexdigest()


def _made_ahead(tensors: Sequence[ir.TensorProtocol]) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors; a lazy one is computed while the one before it is in use."""
    with ThreadPoolExecutor(1) as maker:
        made: Future[ir.TensorProtocol] | None = None
        for i, tensor in enumerate(tensors):
            current = tensor if made is None else made.result()
            following = tensors[i + 1] if i + 1 < len(tensors) else None
            soon = isinstance(following, ir.LazyTensor) and following.nbytes <= _AHEAD_BYTES
            made = maker.submit(_make, following) if soon and following is not None else None
            yield current


def _make(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


__all__ = ["weights_outside"]
