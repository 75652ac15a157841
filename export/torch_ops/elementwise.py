"""Arithmetic, comparison and casts, element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from secateur.export.torch_ops.call import DTYPES, TORCH_OPS, Call

_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

_MANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@TORCH_OPS.register(*_ONE)
def one_input(call: Call) -> Tensor:
    """(...) -> (...)."""
    return _ONE[call.step.op](call.tensor(0))


@TORCH_OPS.register(*_TWO)
def two_inputs(call: Call) -> Tensor:
    """(...), (...) -> (...), broadcast."""
    return _TWO[call.step.op](call.tensor(0), call.tensor(1))


@TORCH_OPS.register(*_MANY)
def many_inputs(call: Call) -> Tensor:
    """(...), (...), ... -> (...), broadcast."""
    return reduce(_MANY[call.step.op], call.tensors())


@TORCH_OPS.register("Mean")
def mean(call: Call) -> Tensor:
    """(...), (...), ... -> (...): the mean of the inputs, not over an axis."""
    return reduce(torch.add, call.tensors()) / len(call)


@TORCH_OPS.register("Div")
def div(call: Call) -> Tensor:
    """(...), (...) -> (...); whole numbers are cut towards zero."""
    left, right = call.tensor(0), call.tensor(1)
    rounding = None if left.is_floating_point() else "trunc"
    return torch.div(left, right, rounding_mode=rounding)


@TORCH_OPS.register("Mod")
def mod(call: Call) -> Tensor:
    """(...), (...) -> (...); the sign follows the divisor unless ``fmod`` is set."""
    function = torch.fmod if call.get_int("fmod", 0) else torch.remainder
    return function(call.tensor(0), call.tensor(1))


@TORCH_OPS.register("Pow")
def power(call: Call) -> Tensor:
    """(...), (...) -> (...) of the base's type; a constant exponent has a gradient at 0."""
    base = call.tensor(0)
    if 1 in call.step.numbers:
        return torch.pow(base, call.step.numbers[1])
    return torch.pow(base, call.tensor(1)).to(base.dtype)


@TORCH_OPS.register("Clip")
def clip(call: Call) -> Tensor:
    """(...), low, high -> (...); before opset 11 the limits are attributes."""
    x = call.tensor(0)
    if call.opset < 11:
        return x.clamp(call.get_float("min", -torch.inf), call.get_float("max", torch.inf))
    for slot, bound in ((1, torch.maximum), (2, torch.minimum)):
        if call.has(slot):
            known = call.step.numbers.get(slot)
            if known is None:
                x = bound(x, call.tensor(slot))
            else:
                x = x.clamp(min=known) if slot == 1 else x.clamp(max=known)
    return x


@TORCH_OPS.register("Where")
def where(call: Call) -> Tensor:
    """Condition (...), (...), (...) -> (...)."""
    return torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


@TORCH_OPS.register("IsInf")
def is_inf(call: Call) -> Tensor:
    """(...) -> bool (...)."""
    x = call.tensor(0)
    signs = [
        found(x)
        for name, found in (
            ("detect_positive", torch.isposinf),
            ("detect_negative", torch.isneginf),
        )
        if call.get_int(name, 1)
    ]
    return reduce(torch.logical_or, signs) if signs else torch.zeros_like(x, dtype=torch.bool)


@TORCH_OPS.register("Cast")
def cast(call: Call) -> Tensor:
    """(...) -> (...) of another type."""
    dtype = DTYPES.get(call.get_int("to", 0))
    if dtype is None:
        raise call.refuse(f"element type {call.get_int('to', 0)} is not one of torch's")
    return call.tensor(0).to(dtype)


@TORCH_OPS.register("CastLike")
def cast_like(call: Call) -> Tensor:
    """(...), like -> (...)."""
    return call.tensor(0).to(call.tensor(1).dtype)


@TORCH_OPS.register("Identity")
def identity(call: Call) -> Tensor:
    """(...) -> (...)."""
    return call.tensor(0)
