"""Train the digits model from scratch, always to the same weights on the same machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from model import DigitsViT
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (n, 1, 8, 8) in [0, 1] as float32 and labels (n,) as int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0) -> Digits:
    """scikit-learn's 1797 digits, a fifth of them, evenly over the classes, held out."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    raw = datasets.load_digits()
    images = (raw.images / 16.0).astype(np.float32)[:, None]
    labels = raw.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=0.2, random_state=seed, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return Digits(train_images, train_labels, test_images, test_labels)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by at most one pixel in each direction; what enters is empty."""
    padded = F.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [x[:, r : r + 8, c : c + 8] for x, (r, c) in zip(padded, offsets, strict=True)]
    )


def train(digits: Digits, epochs: int = 30, seed: int = 0) -> DigitsViT:
    """Train with AdamW and one cycle of the learning rate; 0 epochs leave it at random."""
    torch.set_num_threads(1)  # the products are so small that a second thread mostly waits
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = DigitsViT()
    if not epochs:
        return net.eval()
    n_steps = epochs * (len(digits.train_images) // 64)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=n_steps)
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for chunk in order.split(64)[: n_steps // epochs]:
            images = shifted(digits.train_images[chunk], generator)
            loss = F.cross_entropy(net(images), digits.train_labels[chunk], label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: DigitsViT, digits: Digits) -> float:
    """Share of the held-out digits that the model names correctly."""
    return float((net(digits.test_images).argmax(1) == digits.test_labels).float().mean())
