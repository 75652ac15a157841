"""Tensors out of sizes: fill, range, identity, triangles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.export.torch_ops.call import DTYPES, TORCH_OPS, Call, Integers


@TORCH_OPS.register("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    """Shape -> a tensor of one value, 0.0 unless the node has another."""
    value = call.step.attributes.get("value", np.zeros(1, np.float32))
    assert isinstance(value, np.ndarray)
    filler = torch.from_numpy(value.reshape(-1)[:1].copy())
    return torch.full(call.ints(0), filler.item(), dtype=filler.dtype, device=call.device)


@TORCH_OPS.register("Range")
def sequence(call: Call) -> Tensor:
    """Start, limit, delta -> (n)."""
    bounds = [call.inputs[slot] for slot in range(3)]
    if all(isinstance(bound, Integers) for bound in bounds):
        start, limit, delta = (call.ints(slot)[0] for slot in range(3))
        return torch.arange(start, limit, delta, dtype=torch.int64, device=call.device)
    dtype = call.tensor(0).dtype
    numbers = [call.tensor(slot).item() for slot in range(3)]
    return torch.arange(*numbers, dtype=dtype, device=call.device)


@TORCH_OPS.register("EyeLike")
def eye_like(call: Call) -> Tensor:
    """(M, N) -> (M, N), ones on the k-th diagonal."""
    x = call.tensor(0)
    dtype = DTYPES[call.get_int("dtype", 0)] if "dtype" in call.step.attributes else x.dtype
    ones = torch.ones(x.shape, dtype=dtype, device=x.device)
    k = call.get_int("k", 0)
    return ones.triu(k).tril(k)


@TORCH_OPS.register("Trilu")
def triangle(call: Call) -> Tensor:
    """(..., M, N), k -> (..., M, N), zero below or above the k-th diagonal."""
    k = call.ints(1)[0] if call.has(1) else 0
    x = call.tensor(0)
    return x.triu(k) if call.get_int("upper", 1) else x.tril(k)
