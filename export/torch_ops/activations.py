"""Activations, softmax and dropout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "com.microsoft:Gelu": F.gelu,
}


@TORCH_OPS.register(*_PLAIN)
def plain(call: Call) -> Tensor:
    """(...) -> (...)."""
    return _PLAIN[call.step.op](call.tensor(0))


@TORCH_OPS.register("Gelu")
def gelu(call: Call) -> Tensor:
    """(...) -> (...)."""
    return F.gelu(call.tensor(0), approximate=call.get_str("approximate", "none"))


@TORCH_OPS.register("com.microsoft:FastGelu", "com.microsoft:BiasGelu")
def bias_gelu(call: Call) -> Tensor:
    """(..., D), bias (D) -> (..., D)."""
    x = call.tensor(0) + call.tensor(1) if call.has(1) else call.tensor(0)
    return F.gelu(x, approximate="tanh" if call.step.op.endswith("FastGelu") else "none")


@TORCH_OPS.register("Swish", "com.microsoft:QuickGelu")
def swish(call: Call) -> Tensor:
    """(...) -> (...): x * sigmoid(alpha * x)."""
    x = call.tensor(0)
    return x * torch.sigmoid(call.get_float("alpha", 1.0 if call.step.op == "Swish" else 1.702) * x)


@TORCH_OPS.register("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    """(...) -> (...)."""
    return F.leaky_relu(call.tensor(0), call.get_float("alpha", 0.01))


@TORCH_OPS.register("PRelu")
def prelu(call: Call) -> Tensor:
    """(...), slope (broadcasts) -> (...)."""
    x = call.tensor(0)
    return torch.where(x < 0, call.tensor(1) * x, x)


@TORCH_OPS.register("Elu")
def elu(call: Call) -> Tensor:
    """(...) -> (...)."""
    return F.elu(call.tensor(0), call.get_float("alpha", 1.0))


@TORCH_OPS.register("Celu")
def celu(call: Call) -> Tensor:
    """(...) -> (...)."""
    return F.celu(call.tensor(0), call.get_float("alpha", 1.0))


@TORCH_OPS.register("Selu")
def selu(call: Call) -> Tensor:
    """(...) -> (...), with ONNX's own constants unless the node has others."""
    gamma = call.get_float("gamma", 1.0507009873554805)
    return gamma * F.elu(call.tensor(0), call.get_float("alpha", 1.6732632423543772))


@TORCH_OPS.register("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """(...) -> (...): alpha * x + beta, kept in [0, 1]."""
    return (call.get_float("alpha", 0.2) * call.tensor(0) + call.get_float("beta", 0.5)).clamp(0, 1)


@TORCH_OPS.register("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    """(...) -> (...)."""
    return F.threshold(call.tensor(0), call.get_float("alpha", 1.0), 0.0)


@TORCH_OPS.register("Softmax", "LogSoftmax")
def softmax(call: Call) -> Tensor:
    """(...) -> (...); before opset 13 over all axes from ``axis`` on, taken as one.

    A row of -inf gives NaN, as in ONNX Runtime, but its gradient is 0: exporters replace
    the NaN right behind, and ``where`` alone would let it into every gradient.
    """
    x = call.tensor(0)
    function = torch.softmax if call.step.op == "Softmax" else torch.log_softmax
    axis = call.get_int("axis", -1 if call.opset >= 13 else 1)
    if call.opset < 13 and axis % x.dim() != x.dim() - 1:
        return function(x.flatten(axis), -1).reshape(x.shape)
    if not x.requires_grad:
        return function(x, axis)
    empty = (x == -math.inf).all(dim=axis, keepdim=True)
    return function(x.masked_fill(empty, 0.0), axis).masked_fill(empty, math.nan)


@TORCH_OPS.register("Dropout")
def dropout(call: Call) -> Tensor:
    """(...) -> (...): the identity in evaluation mode, random in training mode.

    A graph exported in evaluation mode has no such node, and no dropout in training either.
    """
    if call.wants(1):
        raise call.refuse("the mask is read")
    ratio = call.number(1, 0.5) if call.opset >= 12 else call.get_float("ratio", 0.5)
    return F.dropout(call.tensor(0), ratio, training=call.training)
