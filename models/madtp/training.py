"""Training of the NLVR2 classifier: dense, and while MADTP compresses it.

An epoch depends on the seed, its own number and what the epochs before left in the checkpoint,
so a run that was interrupted and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import alignment_loss
from secateur.models.madtp.digits import Examples
from secateur.models.madtp.macs import Inputs, macs_per_sample
from secateur.models.madtp.search import Target, search_temperature
from secateur.models.madtp.tasks import NO_COMPRESSION, BlipNlvr, Compression
from secateur.models.madtp.towers import Text

ALIGNMENT_WEIGHT = 0.1
"""Of the alignment loss beside that of the task, as published."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run does."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    target: Target | None = None
    """Multiply-adds to compress to; None trains the dense model."""
    measured: int = 8
    """Examples on which multiply-adds are counted when the temperature is looked for."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What came of an epoch."""

    number: int
    loss: float
    temperature: float
    """0 while the model is dense."""


Progress = Callable[[Epoch], None]


def train(
    net: BlipNlvr,
    examples: Examples,
    training: Training,
    checkpoint: Path,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Train ``net`` in place, or go on from ``checkpoint`` if it is there.

    With a target, every epoch first looks for the temperature that meets it, with the weights
    as they are by then.

    Args:
        net: the model; left in evaluation mode.
        examples: to train on.
        training: how.
        checkpoint: file that is replaced after every epoch.
        progress: called after every epoch, also for those that the checkpoint already holds.

    Raises:
        BadInputError: the checkpoint is of another training, or the target is out of reach.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=training.learning_rate)
    epochs = _resumed(net, optimiser, training, checkpoint)
    for epoch in epochs:
        _report(progress, epoch)
    for number in range(len(epochs), training.epochs):
        temperature = _temperature(net, examples, training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed * 100_003 + number)
            loss = _epoch(net, examples, training, (optimiser, number, temperature))
        epochs = (*epochs, Epoch(number, loss, temperature))
        _save(net, optimiser, (training, epochs), checkpoint)
        _report(progress, epochs[-1])
    net.eval()
    return epochs


def nlvr_loss(net: BlipNlvr, inputs: Inputs, labels: Tensor, compression: Compression) -> Tensor:
    """Cross-entropy of the answers, and how far images and sentence are apart in concepts."""
    text = Text(inputs["input_ids"], inputs["attention_mask"])
    images, told = net.encode(inputs["pixel_values"], text, compression, aligned=True)
    loss = F.cross_entropy(net.cls_head(told.hidden[:, 0]), labels)
    if images.features is None or told.features is None:
        return loss
    both = images.features.unflatten(0, (2, -1)).mean(dim=0)  # type: ignore[no-untyped-call]
    return loss + ALIGNMENT_WEIGHT * alignment_loss(both, told.features)


@torch.no_grad()
def accuracy(net: BlipNlvr, examples: Examples, compression: Compression = NO_COMPRESSION) -> float:
    """Share of right answers, in batches of 100."""
    right, n = 0, len(examples.labels)
    for start in range(0, n, 100):
        rows = slice(start, start + 100)
        logits = net(**examples.inputs(rows), compression=compression)["logits"]
        right += int((logits.argmax(dim=1) == torch.from_numpy(examples.labels)[rows]).sum())
    return right / n


def _temperature(net: BlipNlvr, examples: Examples, training: Training) -> float:
    if training.target is None:
        return 0.0
    net.eval()
    inputs = examples.inputs(slice(0, training.measured))

    @torch.no_grad()
    def macs_at(temperature: float) -> float:
        compression = Compression.at(temperature)
        counts = macs_per_sample(lambda given: net(**given, compression=compression), inputs)
        return sum(counts) / len(counts)

    return search_temperature(macs_at, training.target).temperature


def _epoch(
    net: BlipNlvr,
    examples: Examples,
    training: Training,
    state: tuple[torch.optim.Optimizer, int, float],
) -> float:
    optimiser, number, temperature = state
    net.train()
    compression = Compression.at(temperature) if temperature else NO_COMPRESSION
    batches = torch.split(torch.randperm(len(examples.labels)), training.batch_size)
    total = 0.0
    for i, rows in enumerate(batches):
        done = (number + i / len(batches)) / training.epochs
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * _rate(done, len(batches) * training.epochs)
        labels = torch.from_numpy(examples.labels)[rows]
        loss = nlvr_loss(net, examples.inputs(rows), labels, compression)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        total += float(loss.detach())
    return total / len(batches)


def _rate(done: float, steps: int) -> float:
    """A warm-up over the first twentieth, then half a cosine down to 0."""
    if done < 0.05:
        return (done + 1 / steps) / (0.05 + 1 / steps)
    return 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))


def _settings(training: Training) -> str:
    return repr(training)


def _resumed(
    net: BlipNlvr, optimiser: torch.optim.Optimizer, training: Training, checkpoint: Path
) -> tuple[Epoch, ...]:
    if not checkpoint.exists():
        return ()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if saved["training"] != _settings(training):
        raise BadInputError(
            "the checkpoint is of another training",
            where=str(checkpoint),
            got=str(saved["training"]),
            wanted=_settings(training),
            next_step="give another file, or the settings that the run began with",
        )
    net.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return tuple(Epoch(int(n), float(loss), float(t)) for n, loss, t in saved["epochs"])


def _save(
    net: BlipNlvr,
    optimiser: torch.optim.Optimizer,
    done: tuple[Training, tuple[Epoch, ...]],
    checkpoint: Path,
) -> None:
    training, epochs = done
    state = {
        "training": _settings(training),
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


__all__ = ["ALIGNMENT_WEIGHT", "Epoch", "Progress", "Training", "accuracy", "nlvr_loss", "train"]
