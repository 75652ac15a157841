"""Normalisations."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call


@TORCH_OPS.register("BatchNormalization")
def batch_normalization(call: Call) -> Tensor:
    """(B, C, ...), scale (C), bias (C), mean (C), variance (C) -> (B, C, ...).

    In training mode the batch's own statistics are used and the stored ones follow them, as
    in ``nn.BatchNorm2d``; a mean or variance that the graph computes is always used as it is.
    """
    if call.get_int("training_mode", 0):
        raise call.refuse("the node is in training mode in the graph")
    return F.batch_norm(
        call.tensor(0),
        call.tensor(3),
        call.tensor(4),
        call.tensor(1),
        call.tensor(2),
        training=call.training and call.is_stored(3) and call.is_stored(4),
        momentum=1.0 - call.get_float("momentum", 0.9),
        eps=call.get_float("epsilon", 1e-5),
    )


def _affine(normal: Tensor, call: Call) -> Tensor:
    scaled = normal * call.tensor(1)
    return scaled + call.tensor(2) if call.has(2) else scaled


@TORCH_OPS.register("LayerNormalization")
def layer_normalization(call: Call) -> Tensor:
    """(..., D), scale (D), bias (D) -> (..., D); the statistics cannot be read."""
    if call.wants(1) or call.wants(2):
        raise call.refuse("the statistics are read")
    x, scale, epsilon = call.tensor(0), call.tensor(1), call.get_float("epsilon", 1e-5)
    shape = x.shape[call.get_int("axis", -1) :]
    if scale.shape == shape:
        return F.layer_norm(x, shape, scale, call.optional(2), epsilon)
    return _affine(F.layer_norm(x, shape, eps=epsilon), call)


@TORCH_OPS.register("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(call: Call) -> Tensor:
    """(..., D), scale (D) -> (..., D)."""
    if call.wants(1):
        raise call.refuse("the statistics are read")
    x = call.tensor(0)
    shape = x.shape[call.get_int("axis", -1) :]
    return F.rms_norm(x, shape, eps=call.get_float("epsilon", 1e-5)) * call.tensor(1)


@TORCH_OPS.register("InstanceNormalization")
def instance_normalization(call: Call) -> Tensor:
    """(B, C, ...), scale (C), bias (C) -> (B, C, ...)."""
    return F.instance_norm(
        call.tensor(0),
        weight=call.tensor(1),
        bias=call.tensor(2),
        eps=call.get_float("epsilon", 1e-5),
    )


@TORCH_OPS.register("GroupNormalization")
def group_normalization(call: Call) -> Tensor:
    """(B, C, ...), scale, bias -> (B, C, ...); one scale per channel, before opset 21 per group."""
    x, scale, bias = call.tensors()
    groups = call.get_int("num_groups", 1)
    if call.opset < 21:
        repeats = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, groups, scale, bias, call.get_float("epsilon", 1e-5))


@TORCH_OPS.register("LRN")
def local_response(call: Call) -> Tensor:
    """(B, C, ...) -> (B, C, ...)."""
    return F.local_response_norm(
        call.tensor(0),
        call.get_int("size", 1),
        alpha=call.get_float("alpha", 1e-4),
        beta=call.get_float("beta", 0.75),
        k=call.get_float("bias", 1.0),
    )


@TORCH_OPS.register("LpNormalization")
def lp_normalization(call: Call) -> Tensor:
    """(...) -> (...): divided by the norm over one axis."""
    return F.normalize(
        call.tensor(0), p=call.get_int("p", 2), dim=call.get_int("axis", -1), eps=0.0
    )
