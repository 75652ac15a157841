"""FLAP's four ways to share out what goes over heads and neurons, and over layers.

Source: An et al., FLAP, AAAI 2024, arXiv:2312.11983, section 3.3; as in CASIA-IVA-Lab/FLAP. A unit
costs the numbers in its matrices, which is the published 512/3 neurons a head where heads are 128
wide and three matrices make a neuron. The best unit of a layer stays, where the published code
could empty it. Units are removed by rank: of equal ones the earlier stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.allocation import best
from secateur.calibration.importance.core import Scores
from secateur.calibration.importance.flap import keep_globally
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Group
from secateur.units import Structure

STRUCTURES: tuple[Structure, ...] = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")
Keep: TypeAlias = dict[str, tuple[int, ...]]

_HEADS = frozenset({"heads", "query_heads"})


@dataclass(frozen=True, slots=True)
class Structured:
    """What goes, and how it is shared out."""

    structure: Structure = "AL-AM"
    """``UL-UM``: the same share of every layer; ``UL-MM``: so many heads of every layer, and
    neurons for the rest of the ratio; ``AL-MM``: the same over all layers together; ``AL-AM``:
    heads and neurons of all layers are ranked together, by what they cost."""
    ratio: float = 0.25
    """Share of what heads and neurons cost that goes."""
    remove_heads: int = 0
    """Heads of the whole model that go, with ``UL-MM`` and ``AL-MM``."""

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise BadInputError(
                f"unknown structure {self.structure!r}", wanted="one of " + ", ".join(STRUCTURES)
            )
        if self.remove_heads and not self.structure.endswith("MM"):
            raise BadInputError(
                "a number of heads is for the structures that are told one",
                got=f"remove_heads {self.remove_heads} with {self.structure}",
                wanted="UL-MM or AL-MM",
            )

    @property
    def by_hand(self) -> bool:
        """Whether the number of heads is given."""
        return self.structure.endswith("MM")


def shared_out(
    scores: Mapping[str, Scores],
    groups: Sequence[Group],
    wanted: Structured,
    costs: Mapping[str, float] | None = None,
) -> Keep:
    """Return the kept units per group, ascending.

    Args:
        scores: (size,) per group as ``flap`` gives them: standardised by layer.
        groups: heads and neurons of all layers.
        wanted: structure and ratio.
        costs: of one unit of each group; None counts its matrices.

    Raises:
        BadInputError: a structure that needs heads and neurons without one of them, or a ratio
            that no number of neurons meets; it says which ratios can be met.
    """
    costs = costs or {group.name: unit_cost(group) for group in groups}
    if wanted.structure == "UL-UM":
        return {
            name: best(one, max(len(one) - int(wanted.ratio * len(one)), 1))
            for name, one in scores.items()
        }
    if wanted.structure == "AL-AM":
        return _all_together(scores, costs, wanted.ratio)
    heads = {group.name: scores[group.name] for group in groups if group.role in _HEADS}
    neurons = {group.name: scores[group.name] for group in groups if group.role not in _HEADS}
    if not heads or not neurons:
        raise BadInputError(
            f"{wanted.structure} needs heads and neurons",
            got=", ".join(scores),
            wanted="what: heads_and_ffn",
        )
    pools = _by_layer(groups) if wanted.structure == "UL-MM" else [tuple(scores)]
    gone = wanted.remove_heads // len(pools)
    keep: Keep = {}
    for pool in pools:
        mine = {name: one for name, one in heads.items() if name in pool}
        others = {name: one for name, one in neurons.items() if name in pool}
        n_neurons = _neurons(mine, others, costs, (wanted.ratio, gone))
        keep |= _without(mine, gone, "heads") | _without(others, n_neurons, "neurons")
    return {name: keep[name] for name in scores}


def unit_cost(group: Group) -> float:
    """Numbers in the matrices of one unit; biases do not count."""
    matrices = tuple(use for use in group.weights if len(use.shape) > 1)
    return replace(group, weights=matrices or group.weights).parameters / group.size


def _all_together(scores: Mapping[str, Scores], costs: Mapping[str, float], ratio: float) -> Keep:
    merit = np.concatenate([_spared(one) for one in scores.values()])
    cost = np.concatenate([np.full(len(one), costs[name]) for name, one in scores.items()])
    kept = keep_globally(merit, cost, ratio) | np.isinf(merit)
    return _split(scores, kept)


def _without(scores: Mapping[str, Scores], count: int, what: str) -> Keep:
    """All units of these groups but the ``count`` with the lowest scores."""
    merit = np.concatenate([_spared(one) for one in scores.values()])
    free = int(np.isfinite(merit).sum())
    if not 0 <= count <= free:
        raise BadInputError(
            f"so many {what} cannot go",
            got=f"{count} of {len(merit)}",
            wanted=f"0 to {free}: every layer keeps one",
        )
    kept = np.ones(len(merit), dtype=bool)
    kept[np.argsort(merit, kind="stable")[:count]] = False
    return _split(scores, kept)


def _neurons(
    heads: Mapping[str, Scores],
    neurons: Mapping[str, Scores],
    costs: Mapping[str, float],
    asked: tuple[float, int],
) -> int:
    """How many neurons go besides the heads, so that a share of the whole cost does."""
    ratio, gone = asked
    whole = sum(costs[name] * len(one) for name, one in {**heads, **neurons}.items())
    one_head = np.mean([costs[name] for name in heads]) * gone
    one_neuron = float(np.mean([costs[name] for name in neurons]))
    count = int((ratio * whole - one_head) / one_neuron)
    most = sum(len(one) - 1 for one in neurons.values())
    if not ratio * whole - one_head >= 0 or count > most:
        low, high = one_head / whole, (one_head + most * one_neuron) / whole
        raise BadInputError(
            f"no number of neurons meets the ratio {ratio} where {gone} heads go",
            got=f"{count} of {most + len(neurons)} neurons",
            wanted=f"a ratio from {low:.3g} to {high:.3g}",
            next_step="change remove_heads, or take AL-AM, which needs none",
        )
    return count


def _by_layer(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Names of the heads and neurons of each layer."""
    layers: dict[str, list[Group]] = {}
    for group in groups:
        layers.setdefault(group.layer, []).append(group)
    for layer, found in layers.items():
        kinds = {group.role in _HEADS for group in found}
        if len(kinds) < 2:
            raise BadInputError(
                "UL-MM is for layers that have heads and neurons",
                where=layer,
                got=", ".join(group.name for group in found),
                next_step="take AL-MM or AL-AM",
            )
    return [tuple(group.name for group in found) for found in layers.values()]


def _spared(scores: Scores) -> Scores:
    """The best unit of a group is above all others."""
    merit = np.asarray(scores, dtype=np.float64).copy()
    merit[list(best(merit, 1))] = np.inf
    return merit


def _split(scores: Mapping[str, Scores], kept: NDArray[np.bool_]) -> Keep:
    ends = np.cumsum([len(one) for one in scores.values()])[:-1]
    parts = np.split(kept, ends)
    return {
        name: tuple(np.flatnonzero(part).tolist()) for name, part in zip(scores, parts, strict=True)
    }


__all__ = ["STRUCTURES", "Keep", "Structure", "Structured", "shared_out", "unit_cost"]
