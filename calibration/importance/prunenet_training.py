"""PruneNet's policy, trained on the weights alone: rows are drawn, spectra compared.

Source: Sengupta et al., You Only Prune Once, ICLR 2025, section 3; as in LCS2-IIITD/PruneNet, but
in full precision, and without its clipping of gradients, which it calls too late to have an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.prunenet import largest_gap, makes
from secateur.calibration.importance.unit_weights import weight as weight_of
from secateur.calibration.progress import Tell, silent
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Group

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

_DISCOUNT = 0.99
_NO_GAP = 99999.0
"""Reward of rows whose spectrum is that of the whole matrix."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a policy is trained."""

    ratio: float = 0.25
    """Share of the rows that goes."""
    episodes: int = 20
    learning_rate: float = 1e-3
    seed: int = 0
    progress: Tell = silent

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or self.episodes < 1:
            raise BadInputError(
                "a policy is trained for a ratio in (0, 1) over one episode at least",
                got=f"ratio {self.ratio}, {self.episodes} episodes",
            )


def train_policy(groups: Sequence[Group], training: Training) -> dict[str, NDArray[Any]]:
    """Train one policy for all groups; the arrays that the criterion ``prunenet`` takes.

    Args:
        groups: of one role, whose units are made by matrices of one shape.
        training: how.

    Raises:
        BadInputError: no such matrices, matrices of several shapes, NaN in them, or no row left.
    """
    import torch

    weights = [_rows(group) for group in groups]
    if len({weight.shape for weight in weights}) != 1:
        raise BadInputError(
            "one policy is for matrices of one shape",
            got=", ".join(sorted({str(weight.shape) for weight in weights})) or "no groups",
        )
    n_rows, width = weights[0].shape
    n_kept = int((1 - training.ratio) * n_rows)
    if not n_kept:
        raise BadInputError("no row would be left", got=f"ratio {training.ratio} of {n_rows}")
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        projection = torch.nn.Linear(width, n_rows)
        vector = torch.nn.Parameter(torch.randn(n_rows, 1) / n_rows**0.5)
    generator = torch.Generator().manual_seed(training.seed)
    matrices = [torch.from_numpy(weight).float() for weight in weights]
    spectra = [_spectrum(weight) for weight in weights]
    optimiser = torch.optim.AdamW([*projection.parameters(), vector], lr=training.learning_rate)
    best, found = -np.inf, _arrays(projection, vector)
    for episode in range(training.episodes):
        loss, total = torch.zeros(()), 0.0
        for depth, (matrix, spectrum) in enumerate(zip(matrices, spectra, strict=True)):
            chances = _chances(projection(matrix) @ vector, generator)
            rows = torch.multinomial(chances.detach(), n_kept, generator=generator)
            gap = largest_gap(spectrum, _spectrum(matrix[rows].numpy()))
            reward = (1 / gap if gap else _NO_GAP) * _DISCOUNT**depth
            loss, total = loss - chances[rows].log().sum() * reward, total + reward
        if total > best:
            best, found = total, _arrays(projection, vector)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        training.progress(f"episode {episode + 1}: reward {total:.4g}, best {best:.4g}")
    return found


def _rows(group: Group) -> NDArray[np.float64]:
    """The first matrix that makes the units, one row a unit."""
    for use in group.weights:
        if makes(use):
            return np.ascontiguousarray(np.moveaxis(weight_of(use), use.axis, 0))
    raise BadInputError("no matrix makes these units", where=group.name)


def _spectrum(matrix: NDArray[Any]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return values


def _chances(logits: Tensor, generator: Generator) -> Tensor:
    """Relaxed Bernoulli draws of all rows, (rows,)."""
    import torch

    noise = torch.rand(len(logits), generator=generator).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid(torch.logit(noise) + logits[:, 0]).clamp(min=1e-12)


def _arrays(projection: nn.Linear, vector: Tensor) -> dict[str, NDArray[Any]]:
    tensors = {
        "prunenet.projection": projection.weight,
        "prunenet.bias": projection.bias,
        "prunenet.row_vector": vector,
    }
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


__all__ = ["Training", "train_policy"]
