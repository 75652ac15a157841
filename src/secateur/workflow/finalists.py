"""Finished schedules on samples that no search has seen: time in turns, and agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from secateur.runtime.backend import Array, Arrays
from secateur.workflow.golden import default_budgets
from secateur.workflow.model_session import open_model
from secateur.workflow.schedules import distances
from secateur.workflow.selecting import Select, select_tokens
from secateur.workflow.tuning_times import race

_HEAT_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Answered:
    """Samples in batches, and what the dense model says to each."""

    batches: tuple[Arrays, ...]
    wanted: tuple[Array, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Agreed:
    """How close a model is to the dense one."""

    loss: float
    """One minus the mean cosine."""
    nearest: float
    """Share of samples with the same nearest neighbour among the samples."""


@dataclass(frozen=True, slots=True)
class Raced:
    """A schedule on the held-out samples."""

    name: str
    selections: tuple[Select, ...]
    held_out_ms: float
    """For all held-out samples together."""
    loss: float
    nearest: float


@dataclass(frozen=True, slots=True)
class Heat:
    """How the schedules that go on are picked from those that agree."""

    answered: Answered
    folder: Path
    count: int
    nearest: float = 0.0
    """Share of samples that have to keep their nearest neighbour."""


def agreement(model: ir.Model, answered: Answered) -> Agreed:
    """Compare a model with the dense one's answers."""
    feeds = default_budgets(model)
    with open_model(model) as run:
        got = [run({**batch, **feeds})[answered.output] for batch in answered.batches]
    pairs = zip(got, answered.wanted, strict=True)
    loss = float(np.concatenate([distances(a, b) for a, b in pairs]).mean())
    same = _neighbours(np.concatenate(got)) == _neighbours(np.concatenate(answered.wanted))
    return Agreed(loss, float(same.mean()))


def run_off(
    model: ir.Model,
    named: Mapping[str, tuple[Select, ...]],
    answered: Answered,
    *,
    rounds: int,
    folder: Path,
) -> tuple[Raced, ...]:
    """Time every schedule against the others, and compare each with the dense answers."""
    models = {
        name: select_tokens(model, selections) if selections else model
        for name, selections in named.items()
    }
    taken = race(models, answered.batches, rounds=rounds, folder=folder)
    rows = []
    for name, selections in named.items():
        agreed = agreement(models[name], answered)
        rows.append(Raced(name, selections, taken[name], agreed.loss, agreed.nearest))
    return tuple(rows)


def fastest(
    model: ir.Model, schedules: Sequence[tuple[Select, ...]], heat: Heat
) -> list[tuple[Select, ...]]:
    """Return the schedules that take the least time; more than ``count`` are timed for that.

    Those that leave too few samples their nearest neighbour do not run, unless all do: the
    search minds the loss alone.
    """
    models = {str(i): select_tokens(model, one) for i, one in enumerate(schedules)}
    near = {
        name: one
        for name, one in models.items()
        if agreement(one, heat.answered).nearest >= heat.nearest
    }
    near = near or models
    if len(near) > heat.count:
        taken = race(near, heat.answered.batches, rounds=_HEAT_ROUNDS, folder=heat.folder)
        return [schedules[int(name)] for name in sorted(taken, key=taken.__getitem__)[: heat.count]]
    return [schedules[int(name)] for name in near]


def _neighbours(outputs: Array) -> Array:
    """The most similar other sample of each, by cosine."""
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    nearest: Array = similar.argmax(axis=1)
    return nearest


__all__ = ["Agreed", "Answered", "Heat", "Raced", "agreement", "fastest", "run_off"]
