"""The routers of SHRP, trained on what a model's heads give: which one head serves a token best.

Source: SHRP, arXiv:2512.20635, of which only the abstract was readable: heads are experts, a router
sends every token to one of them, and one small network, shared by all, makes up for the others. The
losses and sizes are choices made here. The model itself stays as it is: its heads are taught
nothing, and the small network is left behind when the routers are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.prunenet import makes
from secateur.calibration.progress import Tell, silent
from secateur.calibration.statistics.gathering import gather
from secateur.calibration.statistics.places import Place, all_places, places_of
from secateur.calibration.statistics.rows import Weights
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import Analysis, Group

if TYPE_CHECKING:
    from torch import Tensor

_HEADS = frozenset({"heads", "query_heads"})
_MOST_ROWS = 8192
"""Tokens of a layer that are kept in memory."""


@dataclass(frozen=True, slots=True)
class Training:
    """How routers are trained."""

    steps: int = 200
    batch: int = 256
    learning_rate: float = 3e-3
    seed: int = 0
    progress: Tell = silent

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BadInputError(
                "a router is trained for one step at least, on one token at least",
                got=f"{self.steps} steps of {self.batch} tokens",
            )


@dataclass(slots=True)
class _Rows:
    """The first rows that a weight reads."""

    parts: list[NDArray[Any]] = field(default_factory=list)
    count: int = 0

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Keep samples of (tokens, features) until there are enough."""
        del weights
        for rows in samples:
            part = rows[: _MOST_ROWS - self.count]
            self.parts.append(np.array(part, dtype=np.float32))
            self.count += len(part)


def train_routers(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Mapping[str, NDArray[Any]]],
    training: Training,
) -> dict[str, NDArray[Any]]:
    """Train a router for every group of heads; the arrays that the criterion ``shrp`` takes.

    Returns:
        ``<group>@router``, (D, heads), and ``<group>@router_bias``, (heads,).

    Raises:
        BadInputError: no data, or data that cannot be used.
        PreconditionError: units that are no heads, that no matrix makes, or none reads.
    """
    known, wanted = all_places(analysis), {}
    for group in groups:
        wanted[group.name] = (maker(group, known), places_of(group, known)[0])
    rows = {name: (_Rows(), _Rows()) for name in wanted}
    pairs = [
        (place, kept)
        for name, places in wanted.items()
        for place, kept in zip(places, rows[name], strict=True)
    ]
    gather(analysis.model, pairs, data)
    found: dict[str, NDArray[Any]] = {}
    for group in groups:
        read, made = (np.concatenate(kept.parts) for kept in rows[group.name])
        experts = _experts(made, wanted[group.name][1], group)
        weight, bias = _train(read, experts, training)
        found |= {f"{group.name}@router": weight, f"{group.name}@router_bias": bias}
        training.progress(f"router of {group.name} trained on {len(read)} tokens")
    return found


def maker(group: Group, known: Sequence[Place]) -> Place:
    """Where the units are made: the product whose input the router reads too.

    Raises:
        PreconditionError: the units are no heads, or no matrix makes them.
    """
    if group.role not in _HEADS:
        raise PreconditionError(
            "routers choose among heads",
            where=group.name,
            got=group.role,
            next_step="rank other units by wanda or flap",
        )
    by_node = {place.node: place for place in known}
    for use in group.weights:
        if makes(use) and use.node in by_node:
            return by_node[use.node]
    raise PreconditionError("no matrix makes these units", where=group.name)


def _experts(rows: NDArray[Any], place: Place, group: Group) -> NDArray[np.float32]:
    """(T, heads, out): what each head adds to the stream."""
    weight, owners = place.matrix(), place.owners(group.atom)
    parts = [rows[:, owners == i] @ weight[:, owners == i].T for i in range(group.size)]
    return np.stack(parts, axis=1).astype(np.float32)


def _train(
    read: NDArray[Any], experts: NDArray[np.float32], training: Training
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight (D, heads) and bias of a router whose choice gives all heads' sum best."""
    import torch
    from torch import nn

    x, parts = torch.from_numpy(read), torch.from_numpy(experts)
    wanted, width = parts.sum(dim=1), parts.shape[2]
    scale = wanted.square().mean().clamp(min=1e-12)
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        router = nn.Linear(x.shape[1], parts.shape[1])
        expander = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
    optimiser = torch.optim.AdamW(
        [*router.parameters(), *expander.parameters()], lr=training.learning_rate
    )
    for _ in range(training.steps):
        chosen = torch.randint(0, len(x), (training.batch,), generator=generator)
        served = (_gates(router(x[chosen]))[..., None] * parts[chosen]).sum(dim=1)
        loss = (served + expander(served) - wanted[chosen]).square().mean() / scale
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weight, bias = router.weight.detach().numpy(), router.bias.detach().numpy()
    return np.ascontiguousarray(weight.T), bias.copy()


def _gates(logits: Tensor) -> Tensor:
    """1 at the first choice and 0 elsewhere; gradients are those of the probabilities."""
    import torch

    chances = logits.softmax(dim=-1)
    first = torch.nn.functional.one_hot(chances.argmax(dim=-1), chances.shape[-1])
    return first + chances - chances.detach()


__all__ = ["Training", "maker", "train_routers"]
