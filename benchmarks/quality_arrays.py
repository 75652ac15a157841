"""Gradients of the models of benchmarks/structural_quality.py, for criteria that look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Arrays = dict[str, np.ndarray]
Call = Callable[..., Any]

_RANK, _ALPHA, _STEPS = 8, 16, 20


@dataclass(frozen=True)
class Lesson:
    """What a network is asked, and by how much its answers are wrong."""

    loss: Callable[[Call, Any], Tensor]
    """Losses of a part's samples, (samples,), from whatever calls the network."""
    parts: Sequence[Any]
    """The calibration data."""
    domain: Sequence[Any]
    """Data of a narrower domain, for GAPrune."""
    n_samples: int = 64
    """Samples of the first parts whose gradients are kept one by one."""


def training_arrays(net: nn.Module, lesson: Lesson) -> Arrays:
    """Everything by parameter name that a criterion of gradients asks for."""
    with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
        found = _gradients(net, (lesson.loss(net, part).mean() for part in lesson.parts))
        found |= _by_sample(net, lesson)
        found |= _two_domains(net, lesson, found)
        return found | _adapters(net, lesson)


def _gradients(net: nn.Module, losses: Iterator[Tensor]) -> Arrays:
    """Mean gradients, means of their squares, and the Hessian times the gradient."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    kinds = ("", "@fisher", "@hessian")
    found = {f"{n}{kind}": torch.zeros_like(p) for n, p in net.named_parameters() for kind in kinds}
    parts = list(losses)
    whole = sum(parts[1:], start=parts[0]) / len(parts)
    mean = torch.autograd.grad(whole, parameters, create_graph=True, materialize_grads=True)
    flow = sum((g.detach() * g).sum() for g in mean)
    curved = torch.autograd.grad(flow, parameters, retain_graph=True, materialize_grads=True)
    for name, gradient, product in zip(names, mean, curved, strict=True):
        found[name] += gradient.detach()
        found[f"{name}@hessian"] += product
    for part in parts:
        own = torch.autograd.grad(part, parameters, retain_graph=True, materialize_grads=True)
        for name, gradient in zip(names, own, strict=True):
            found[f"{name}@fisher"] += gradient**2 / len(parts)
    return {name: array.detach().numpy() for name, array in found.items()}


def _by_sample(net: nn.Module, lesson: Lesson) -> Arrays:
    """One gradient per sample of every parameter that may be ranked."""
    names = [n for n, p in net.named_parameters() if "embedding" not in n]
    wanted = dict(net.named_parameters())
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for loss in _some(lesson, net):
        own = torch.autograd.grad(
            loss, [wanted[n] for n in names], retain_graph=True, materialize_grads=True
        )
        for name, gradient in zip(names, own, strict=True):
            rows[name].append(gradient.numpy())
    return {f"{name}@samples": np.stack(found) for name, found in rows.items()}


def _some(lesson: Lesson, net: nn.Module) -> Iterator[Tensor]:
    left = lesson.n_samples
    for part in lesson.parts:
        losses = lesson.loss(net, part)
        yield from losses[:left]
        left -= len(losses[:left])
        if not left:
            return


def _two_domains(net: nn.Module, lesson: Lesson, general: Arrays) -> Arrays:
    """GAPrune's arrays; Fisher information with its floor of 1e-8."""
    domain = _gradients(net, (lesson.loss(net, part).mean() for part in lesson.domain))
    found: Arrays = {}
    for name, _ in net.named_parameters():
        for kind, arrays in (("general", general), ("domain", domain)):
            found[f"{name}@{kind}"] = arrays[name]
            found[f"{name}@fisher_{kind}"] = arrays[f"{name}@fisher"] + 1e-8
    return found


def _adapters(net: nn.Module, lesson: Lesson) -> Arrays:
    """Low-rank factors of every linear layer after a short training, and their gradients."""
    layers = {n: m.weight.detach() for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: (
            (torch.randn(_RANK, w.shape[1], generator=generator) / w.shape[1] ** 0.5),
            torch.zeros(w.shape[0], _RANK),
        )
        for name, w in layers.items()
    }
    flat = [f.requires_grad_() for pair in factors.values() for f in pair]
    optimiser = torch.optim.AdamW(flat, lr=1e-3)

    def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401 (whatever the network takes)
        merged = {
            f"{name}.weight": layers[name] + _ALPHA / _RANK * b @ a
            for name, (a, b) in factors.items()
        }
        return torch.func.functional_call(net, merged, args, named)

    for step in range(_STEPS):
        optimiser.zero_grad()
        lesson.loss(call, lesson.parts[step % len(lesson.parts)]).mean().backward()
        optimiser.step()
    optimiser.zero_grad()
    for part in lesson.parts:
        (lesson.loss(call, part).mean() / len(lesson.parts)).backward()
    found: Arrays = {"lora.scale": np.float32(_ALPHA / _RANK)}
    for name, (a, b) in factors.items():
        for kind, factor in (("a", a), ("b", b)):
            found[f"{name}.weight@lora_{kind}"] = factor.detach().numpy()
            found[f"{name}.weight@grad_{kind}"] = factor.grad.numpy()
    return found


__all__ = ["Arrays", "Lesson", "training_arrays"]
