"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call


@TORCH_OPS.register("MatMul")
def matmul(call: Call) -> Tensor:
    """(..., M, K) @ (..., K, N) -> (..., M, N)."""
    return torch.matmul(call.tensor(0), call.tensor(1))


@TORCH_OPS.register("Gemm")
def gemm(call: Call) -> Tensor:
    """(M, K) @ (K, N) + (N) -> (M, N), each matrix transposed where an attribute says so."""
    left, right, bias = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.get_float("alpha", 1.0), call.get_float("beta", 1.0)
    left = left.mT if call.get_int("transA", 0) else left
    is_turned = bool(call.get_int("transB", 0))
    if alpha == beta == 1 and (bias is None or bias.dim() == 1):
        return F.linear(left, right if is_turned else right.mT, bias)
    product = alpha * (left @ (right.mT if is_turned else right))
    return product if bias is None else product + beta * bias


@TORCH_OPS.register("Einsum")
def einsum(call: Call) -> Tensor:
    """As the equation says."""
    return torch.einsum(call.get_str("equation", "").replace(" ", ""), *call.tensors())
