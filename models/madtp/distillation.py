"""What a dense model knows of its training examples, for one that is compressed to say as well.

The answers of a dense model that has learnt its examples are their labels; what pruning loses is
in the tokens that answers are read from. So these are taught: the first token of the text, and
the class token of every image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.madtp.digits import Examples
from secateur.models.madtp.encoder import Encoded
from secateur.models.madtp.tasks import NO_COMPRESSION, BlipNlvr
from secateur.models.madtp.towers import Text


@dataclass(frozen=True, slots=True)
class Taught:
    """First tokens of a dense model, by example."""

    text: Tensor
    """(n, D)."""
    images: Tensor
    """(n, 2, D)."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Examples, and what a dense model says of them."""

    examples: Examples
    taught: Taught
    weight: float = 1.0
    """Beside the loss of the task."""


@torch.no_grad()
def taught_by(net: BlipNlvr, examples: Examples, *, rows: int = 200) -> Taught:
    """Run the dense model over all examples, ``rows`` at a time."""
    net.eval()
    text, images = [], []
    for at in range(0, len(examples.labels), rows):
        inputs = examples.inputs(slice(at, at + rows))
        words = Text(inputs["input_ids"], inputs["attention_mask"])
        seen, told = net.encode(inputs["pixel_values"], words, NO_COMPRESSION)
        text.append(told.hidden[:, 0])
        images.append(_pairs(seen))
    return Taught(torch.cat(text), torch.cat(images))


def distillation_loss(seen: Encoded, told: Encoded, taught: Taught, rows: Tensor) -> Tensor:
    """Return the mean squared distance to what the dense model has there.

    Args:
        seen: (2 B, K, D), first images first.
        told: (B, K, D).
        taught: of all examples.
        rows: (B,) which of them these are.

    Raises:
        BadInputError: the dense model was of another width.
    """
    if taught.text.shape[1] != told.hidden.shape[2]:
        raise BadInputError(
            "the dense model has another width",
            got=str(taught.text.shape[1]),
            wanted=str(told.hidden.shape[2]),
            next_step="distil from the model that is compressed",
        )
    text = F.mse_loss(told.hidden[:, 0], taught.text[rows])
    return text + F.mse_loss(_pairs(seen), taught.images[rows])


def _pairs(seen: Encoded) -> Tensor:
    """Class tokens, (B, 2, D)."""
    first = seen.hidden[:, 0]
    return first.reshape(2, -1, first.shape[1]).transpose(0, 1)


__all__ = ["Lesson", "Taught", "distillation_loss", "taught_by"]
