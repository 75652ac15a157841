"""Train a module on digits: a network, or what ``to_torch`` made of a pruned graph."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits_vit"))
from train import Digits, load_digits, shifted


def fit(
    net: nn.Module, digits: Digits, *, epochs: int, rate: float = 1e-2, seed: int = 0
) -> nn.Module:
    """Train with AdamW and one cycle of the learning rate; return the net, set to evaluate.

    Images are moved by up to a pixel. Batch norms, where there are any, learn their statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    n_steps = len(digits.train_images) // 64
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=rate, total_steps=epochs * n_steps
    )
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for chunk in order.split(64)[:n_steps]:
            logits = net(shifted(digits.train_images[chunk], generator))
            loss = F.cross_entropy(logits, digits.train_labels[chunk])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, digits: Digits) -> float:
    """Per cent of the held-out digits that the model names correctly."""
    right = net(digits.test_images).argmax(1) == digits.test_labels
    return 100 * float(right.float().mean())


__all__ = ["Digits", "accuracy", "fit", "load_digits"]
