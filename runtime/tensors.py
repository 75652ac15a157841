"""Tensors that are on the device already: torch's, or any that speak DLPack, without a copy.

Torch is imported only when such a tensor comes, so that it is there or can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from secateur.errors import MissingDependencyError
from secateur.runtime.backend import Array

Tensors: TypeAlias = dict[str, Any]

_CUDA = 2  # kDLCUDA of the DLPack header


def is_on_device(value: object) -> bool:
    """Whether a value says through DLPack that it is in CUDA memory."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return False
    return int(value.__dlpack_device__()[0]) == _CUDA


def on_device(arrays: Mapping[str, Any]) -> Tensors:
    """The values in CUDA memory, as contiguous torch tensors that share it."""
    found = {name: value for name, value in arrays.items() if is_on_device(value)}
    if not found:
        return {}
    torch = _torch()
    return {name: torch.from_dlpack(value).contiguous() for name, value in found.items()}


def stand_in(tensor: Any) -> Array:  # noqa: ANN401
    """An array of the tensor's shape and type that takes no memory, for checks of both."""
    dtype = np.dtype(str(tensor.dtype).rpartition(".")[2])
    return np.broadcast_to(np.zeros((), dtype), tuple(tensor.shape))


def empty(shape: tuple[int, ...], dtype: str) -> Any:  # noqa: ANN401
    """A new tensor in CUDA memory."""
    torch = _torch()
    return torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")


def wait_for_torch() -> None:
    """Wait until torch has written what is handed over."""
    _torch().cuda.current_stream().synchronize()


def _torch() -> Any:  # noqa: ANN401
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "tensors in CUDA memory are handed over through torch",
            got=str(error),
            next_step="pip install torch, or hand over NumPy arrays",
        ) from error
    return torch


__all__ = ["Tensors", "empty", "is_on_device", "on_device", "stand_in", "wait_for_torch"]
