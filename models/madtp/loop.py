"""The training loop: seeded, and resumable after any epoch.

An epoch depends on the seed, its own number and what the epochs before left in the checkpoint,
so a run that was interrupted and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.madtp.rules import Rule
from secateur.models.madtp.search import Target


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run does."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    steps: int | None = None
    """Batches of an epoch; None: every example once."""
    noise: float = 0.0
    """Standard deviation of what is added to pixels, which run from -1 to 1."""
    trained: tuple[str, ...] = ()
    """Beginnings of the names of the parameters that are trained; empty: all."""
    target: Target | None = None
    """Multiply-adds to compress to; None trains the dense model."""
    rule: Rule = "madtp"
    """What it is compressed by."""
    ramp: int = 0
    """Epochs in which the target falls from the dense model's multiply-adds to its own."""
    measured: int = 64
    """Examples on which multiply-adds are counted when the temperature is looked for."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What came of an epoch."""

    number: int
    loss: float
    temperature: float
    """0 while the model is dense."""


Progress = Callable[[Epoch], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained."""

    net: nn.Module
    """Trained, saved, left in evaluation mode."""
    examples: int
    loss: Callable[[Tensor, float], Tensor]
    """Of rows (B,) at a temperature."""
    temperature: Callable[[int], float]
    """Of an epoch, asked for when it begins."""


def run(
    job: Job, training: Training, checkpoint: Path, progress: Progress | None = None
) -> tuple[Epoch, ...]:
    """Train, or go on from ``checkpoint`` if it is there.

    Args:
        job: what.
        training: how.
        checkpoint: file that is replaced after every epoch.
        progress: called after every epoch, also for those that the checkpoint already holds.

    Raises:
        BadInputError: the checkpoint is of another training.
    """
    chosen = [p for name, p in job.net.named_parameters() if _is_trained(name, training)]
    frozen = [p for p in job.net.parameters() if all(p is not other for other in chosen)]
    optimiser = torch.optim.AdamW(chosen, lr=training.learning_rate)
    epochs = _resumed(job.net, optimiser, training, checkpoint)
    for parameter in frozen:
        parameter.requires_grad_(False)
    for epoch in epochs:
        _report(progress, epoch)
    for number in range(len(epochs), training.epochs):
        temperature = job.temperature(number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed * 100_003 + number)
            loss = _epoch(job, training, optimiser, (number, temperature))
        epochs = (*epochs, Epoch(number, loss, temperature))
        _save(job.net, optimiser, (training, epochs), checkpoint)
        _report(progress, epochs[-1])
    for parameter in frozen:
        parameter.requires_grad_(True)
    job.net.eval()
    return epochs


def _is_trained(name: str, training: Training) -> bool:
    return not training.trained or name.startswith(training.trained)


def _epoch(
    job: Job, training: Training, optimiser: torch.optim.Optimizer, at: tuple[int, float]
) -> float:
    number, temperature = at
    job.net.train()
    batches = torch.split(torch.randperm(job.examples), training.batch_size)[: training.steps]
    total = 0.0
    for i, rows in enumerate(batches):
        done = (number + i / len(batches)) / training.epochs
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * _rate(done, len(batches) * training.epochs)
        loss = job.loss(rows, temperature)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
        optimiser.step()
        total += float(loss.detach())
    return total / len(batches)


def _rate(done: float, steps: int) -> float:
    """A warm-up over the first twentieth, then half a cosine down to 0."""
    if done < 0.05:
        return (done + 1 / steps) / (0.05 + 1 / steps)
    return 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))


def _resumed(
    net: nn.Module, optimiser: torch.optim.Optimizer, training: Training, checkpoint: Path
) -> tuple[Epoch, ...]:
    if not checkpoint.exists():
        return ()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if saved["training"] != repr(training):
        raise BadInputError(
            "the checkpoint is of another training",
            where=str(checkpoint),
            got=str(saved["training"]),
            wanted=repr(training),
            next_step="give another file, or the settings that the run began with",
        )
    net.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return tuple(Epoch(int(n), float(loss), float(t)) for n, loss, t in saved["epochs"])


def _save(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    done: tuple[Training, tuple[Epoch, ...]],
    checkpoint: Path,
) -> None:
    training, epochs = done
    state = {
        "training": repr(training),
        "model": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epochs": [(epoch.number, epoch.loss, epoch.temperature) for epoch in epochs],
    }
    partial = checkpoint.with_name(f"{checkpoint.name}.partial")
    torch.save(state, partial)
    partial.replace(checkpoint)  # in one step, so that no half-written file is ever seen


def _report(progress: Progress | None, epoch: Epoch) -> None:
    if progress is not None:
        progress(epoch)


__all__ = ["Epoch", "Job", "Progress", "Training", "run"]
