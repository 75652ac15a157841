"""Tensors on the device are told from arrays, and checked without being read."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.runtime.signature import TensorInfo, verify_inputs
from secateur.runtime.tensors import is_on_device, on_device, stand_in


class OnDevice:
    """What DLPack says of a tensor in CUDA memory."""

    dtype = "torch.float32"
    shape = (1 << 20, 1 << 20)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_only_cuda_memory_is_on_the_device():
    import torch

    assert is_on_device(OnDevice())
    assert not is_on_device(torch.zeros(2))
    assert not is_on_device(np.zeros(2))
    assert not is_on_device([1, 2])
    assert on_device({"x": np.zeros(2)}) == {}


def test_a_stand_in_is_checked_like_the_tensor_and_takes_no_memory():
    held = {"x": stand_in(OnDevice())}
    verify_inputs(held, [TensorInfo("x", "float32", ("batch", 1 << 20))])
    with pytest.raises(BadInputError, match="wrong shape"):
        verify_inputs(held, [TensorInfo("x", "float32", ("batch", 8))])
    with pytest.raises(BadInputError, match="wrong dtype"):
        verify_inputs(held, [TensorInfo("x", "float16", ("batch", 1 << 20))])
