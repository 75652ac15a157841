"""Recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.export.torch_ops.call import TORCH_OPS, Call

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""torch's gates by their place in ONNX: (i, o, f, c) to (i, f, c, o), (z, r, h) to (r, z, h)."""


@TORCH_OPS.register("LSTM")
def lstm(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """(N, B, I) -> states (N, dirs, B, H), last states and last cells (dirs, B, H)."""
    x, parameters = _prepare(call)
    start = _start(call, x, 5), _start(call, x, 6)
    states, last, cells = torch.lstm(
        x, start, parameters, len(parameters) % 4 == 0, 1, 0.0, False, _both(call), False
    )
    return _by_direction(call, states), last, cells


@TORCH_OPS.register("GRU")
def gru(call: Call) -> tuple[Tensor, Tensor]:
    """(N, B, I) -> states (N, dirs, B, H), last states (dirs, B, H)."""
    if not call.get_int("linear_before_reset", 0):
        raise call.refuse("linear_before_reset is 0, which torch does not compute")
    x, parameters = _prepare(call)
    has_bias = len(parameters) % 4 == 0
    states, last = torch.gru(
        x, _start(call, x, 5), parameters, has_bias, 1, 0.0, False, _both(call), False
    )
    return _by_direction(call, states), last


def _both(call: Call) -> bool:
    return call.get_str("direction", "forward") == "bidirectional"


def _prepare(call: Call) -> tuple[Tensor, list[Tensor]]:
    """Return the input and the parameters in torch's order, one direction after the other."""
    unusual = ("activations", "activation_alpha", "clip", "input_forget", "layout")
    reasons = [name for name in unusual if call.step.attributes.get(name)]
    reasons += ["reverse direction"] if call.get_str("direction", "forward") == "reverse" else []
    reasons += [
        name for slot, name in ((4, "sequence lengths"), (7, "peepholes")) if call.has(slot)
    ]
    if reasons:
        raise call.refuse(", ".join(reasons))
    parameters: list[Tensor] = []
    for direction in range(2 if _both(call) else 1):
        parameters += [_gates(call, call.tensor(slot)[direction]) for slot in (1, 2)]
        if call.has(3):
            halves = call.tensor(3)[direction].chunk(2)
            parameters += [_gates(call, half) for half in halves]
    return call.tensor(0), parameters


def _gates(call: Call, weight: Tensor) -> Tensor:
    order = _ORDER[call.step.op]
    parts = weight.chunk(len(order))
    return torch.cat([parts[i] for i in order])


def _start(call: Call, x: Tensor, slot: int) -> Tensor:
    if call.has(slot):
        return call.tensor(slot)
    width = call.tensor(2).shape[-1]
    return x.new_zeros((2 if _both(call) else 1, x.shape[1], width))


def _by_direction(call: Call, states: Tensor) -> Tensor:
    return torch.unflatten(states, -1, (2 if _both(call) else 1, -1)).transpose(1, 2)
