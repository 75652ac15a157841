"""Training of the NLVR2 classifier: its eyes first, then dense, then while MADTP compresses it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import alignment_loss
from secateur.models.madtp.digits import EMPTY, Examples
from secateur.models.madtp.distillation import Lesson, distillation_loss
from secateur.models.madtp.encoder import DENSE, Encoded, Pruning
from secateur.models.madtp.loop import Epoch, Job, Progress, Training, run
from secateur.models.madtp.macs import Inputs
from secateur.models.madtp.rules import Rule
from secateur.models.madtp.search import Found, Target, search_temperature
from secateur.models.madtp.tasks import NO_COMPRESSION, BlipNlvr, Compression
from secateur.models.madtp.towers import Text, blip_image
from secateur.models.madtp.work import nlvr_macs

ALIGNMENT_WEIGHT = 0.1
"""Of the alignment loss beside that of the task, as published."""


def pretrain_vision(
    net: BlipNlvr,
    examples: Examples,
    training: Training,
    checkpoint: Path,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Teach the vision encoder to read: every patch says which digit is in its cell.

    The head that says so is thrown away. Arguments and errors are those of ``train``.
    """
    head = nn.Linear(net.concepts.weight.shape[1], EMPTY + 1)
    weight = torch.ones(EMPTY + 1)
    weight[EMPTY] = 0.3  # most cells are empty

    def loss(rows: Tensor, temperature: float) -> Tensor:
        del temperature
        pixels = _noisy(examples.inputs(rows), training.noise)["pixel_values"].flatten(0, 1)
        seen = blip_image(net.vision, net.concepts.weight, pixels, DENSE)
        said = head(seen.hidden[:, 1:]).flatten(0, 1)
        return F.cross_entropy(said, torch.from_numpy(examples.cells)[rows].flatten(), weight)

    both = nn.ModuleDict({"vision": net.vision, "head": head})
    job = Job(both, len(examples.labels), loss, lambda _: 0.0)
    return run(job, training, checkpoint, progress)


def train(
    net: BlipNlvr,
    examples: Examples,
    training: Training,
    checkpoint: Path,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Train ``net`` in place, or go on from ``checkpoint`` if it is there.

    With a target, every epoch first looks for the temperature that meets it (or, while it ramps
    up, meets what the epoch asks for) with the weights as they are by then. Training moves what
    is in reach, so an epoch that cannot meet its target takes the nearest;
    ``find_temperature`` says at the end whether it is met.

    Args:
        net: the model; left in evaluation mode.
        examples: to train on.
        training: how.
        checkpoint: file that is replaced after every epoch.
        progress: called after every epoch, also for those that the checkpoint already holds.

    Raises:
        BadInputError: the checkpoint is of another training, or the target is below what is left
            when every layer keeps one token.
    """
    _check_reachable(net, examples, training)

    def loss(rows: Tensor, temperature: float) -> Tensor:
        compression = Compression.at(temperature, by=training.rule)
        inputs = _noisy(examples.inputs(rows), training.noise)
        labels = torch.from_numpy(examples.labels)[rows]
        return nlvr_loss(net, inputs, labels, compression)

    temperature = partial(_temperature, net, examples, training)
    return run(Job(net, len(examples.labels), loss, temperature), training, checkpoint, progress)


def train_distilled(
    net: BlipNlvr,
    lesson: Lesson,
    training: Training,
    checkpoint: Path,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """``train``, with what a dense model knows of the examples as a part of the loss."""
    examples, taught = lesson.examples, lesson.taught
    _check_reachable(net, examples, training)

    def loss(rows: Tensor, temperature: float) -> Tensor:
        compression = Compression.at(temperature, by=training.rule)
        inputs = _noisy(examples.inputs(rows), training.noise)
        labels = torch.from_numpy(examples.labels)[rows]
        made, (seen, told) = _nlvr_loss(net, inputs, labels, compression)
        return made + lesson.weight * distillation_loss(seen, told, taught, rows)

    temperature = partial(_temperature, net, examples, training)
    return run(Job(net, len(examples.labels), loss, temperature), training, checkpoint, progress)


def train_gathering(
    net: BlipNlvr,
    examples: Examples,
    training: Training,
    checkpoint: Path,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Train all of the dense model, and its class token to say which digits its image shows.

    Nothing else of the task asks for a class token, and without a use for it its attention would
    say nothing of what matters. The head that reads it is thrown away. Arguments and errors are
    those of ``train``.
    """
    head = nn.Linear(net.concepts.weight.shape[1], EMPTY)

    def loss(rows: Tensor, temperature: float) -> Tensor:
        del temperature
        inputs = _noisy(examples.inputs(rows), training.noise)
        text = Text(inputs["input_ids"], inputs["attention_mask"])
        images, told = net.encode(inputs["pixel_values"], text, NO_COMPRESSION)
        cells = torch.from_numpy(examples.cells)[rows].transpose(0, 1).flatten(0, 1)
        shown = (cells[:, :, None] == torch.arange(EMPTY)).any(dim=1).float()
        answered = F.cross_entropy(
            net.cls_head(told.hidden[:, 0]), torch.from_numpy(examples.labels)[rows]
        )
        return answered + F.binary_cross_entropy_with_logits(head(images.hidden[:, 0]), shown)

    both = nn.ModuleDict({"net": net, "head": head})
    job = Job(both, len(examples.labels), loss, lambda _: 0.0)
    return run(job, training, checkpoint, progress)


def nlvr_loss(net: BlipNlvr, inputs: Inputs, labels: Tensor, compression: Compression) -> Tensor:
    """Cross-entropy of the answers; with MADTP, also how far apart concepts see both branches."""
    return _nlvr_loss(net, inputs, labels, compression)[0]


def _nlvr_loss(
    net: BlipNlvr, inputs: Inputs, labels: Tensor, compression: Compression
) -> tuple[Tensor, tuple[Encoded, Encoded]]:
    """The loss, and both branches."""
    text = Text(inputs["input_ids"], inputs["attention_mask"])
    aligned = compression.image.by == "madtp" and compression != NO_COMPRESSION
    images, told = net.encode(inputs["pixel_values"], text, compression, aligned=aligned)
    loss = F.cross_entropy(net.cls_head(told.hidden[:, 0]), labels)
    if images.features is not None and told.features is not None:
        both = images.features.unflatten(0, (2, -1)).mean(dim=0)  # type: ignore[no-untyped-call]
        loss = loss + ALIGNMENT_WEIGHT * alignment_loss(both, told.features)
    return loss, (images, told)


@torch.no_grad()
def accuracy(net: BlipNlvr, examples: Examples, compression: Compression = NO_COMPRESSION) -> float:
    """Share of right answers, in batches of 100."""
    right, n = 0, len(examples.labels)
    for start in range(0, n, 100):
        rows = slice(start, start + 100)
        logits = net(**examples.inputs(rows), compression=compression)["logits"]
        right += int((logits.argmax(dim=1) == torch.from_numpy(examples.labels)[rows]).sum())
    return right / n


def find_temperature(
    net: BlipNlvr, inputs: Inputs, target: Target, *, rule: Rule = "madtp", nearest: bool = False
) -> Found:
    """Look for the temperature, or strength of another rule, that meets a target on ``inputs``.

    Args:
        net: the model.
        inputs: what it takes.
        target: mean multiply-adds of a sample.
        rule: what prunes.
        nearest: take the nearest where the target is out of reach.

    Raises:
        BadInputError: the target is out of reach; says what is in reach.
    """
    was = net.training
    net.eval()

    def macs_at(strength: float) -> float:
        # what is random has to be the same at every trial
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(nlvr_macs(net, dict(inputs), Compression.at(strength, by=rule)).mean())

    found = search_temperature(macs_at, target, nearest=nearest)
    net.train(was)
    return found


def _temperature(net: BlipNlvr, examples: Examples, training: Training, epoch: int) -> float:
    if training.target is None:
        return 0.0
    inputs = examples.inputs(slice(0, training.measured))
    net.eval()
    dense = float(nlvr_macs(net, inputs, NO_COMPRESSION).mean())
    done = min(1.0, (epoch + 1) / (training.ramp + 1))
    asked = replace(training.target, macs=dense + done * (training.target.macs - dense))
    return find_temperature(net, inputs, asked, rule=training.rule, nearest=True).temperature


def _check_reachable(net: BlipNlvr, examples: Examples, training: Training) -> None:
    """Raise if the target is below one token per layer, whatever training may move."""
    if training.target is None:
        return
    net.eval()
    inputs = examples.inputs(slice(0, training.measured))
    towers = cast("Any", (net.vision, net.text))
    layers = max(tower.config.num_hidden_layers for tower in towers)
    ones = Pruning(counts=torch.ones(layers, dtype=torch.int64), by=training.rule)
    few, many = (
        float(nlvr_macs(net, inputs, compression).mean())
        for compression in (Compression(ones, ones), NO_COMPRESSION)
    )
    if not few <= training.target.macs <= many:
        raise BadInputError(
            "no temperature reaches the target",
            got=f"{training.target.macs:.4g} multiply-adds",
            wanted=f"{few:.4g} (one token in every layer) to {many:.4g} (dense)",
        )


def _noisy(inputs: dict[str, Tensor], noise: float) -> dict[str, Tensor]:
    if noise == 0:
        return inputs
    pixels = inputs["pixel_values"]
    return inputs | {"pixel_values": pixels + noise * torch.randn_like(pixels)}


__all__ = [
    "ALIGNMENT_WEIGHT",
    "Epoch",
    "Progress",
    "Training",
    "accuracy",
    "find_temperature",
    "nlvr_loss",
    "pretrain_vision",
    "train",
    "train_distilled",
    "train_gathering",
]
