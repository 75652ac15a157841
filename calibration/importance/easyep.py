"""EASY-EP: experts whose output is strong for tokens that the experts change much.

Source: Dong et al., Domain-Specific Pruning of Large Mixture-of-Experts Models with Few-shot
Demonstrations, NeurIPS 2025, arXiv:2504.06792, section 3; as in RUCAIBox/EASYEP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.statistics.routing import Routes, find_routes, routed
from secateur.graph_passes.groups import Group

Vector: TypeAlias = NDArray[np.float64]


@CRITERIA.register("easyep")
def easyep(group: Group, context: Context) -> Scores:
    """Sum over tokens of the length of what the expert adds times how far all of them turn it.

    A unit of several experts, as where a router first picks groups, has their sum. Padding does
    not count. Shared experts are no experts here: only routed ones turn a token.

    Raises:
        BadInputError: no data, or too little.
        PreconditionError: the units are no experts that a TopK picks from, or what they add to
            the stream cannot be found.
    """
    key = "easyep"
    if key not in context.gathered:
        routes: dict[str, Routes] = {
            one.name: find_routes(context.analysis, one) for one in context.groups
        }
        scores = {one.name: np.zeros(one.size) for one in context.groups}
        for name, seen in routed(context.analysis.model, routes, context.data):
            turned = token_contribution(seen.before, seen.added.sum(axis=1))
            lengths = np.linalg.norm(seen.added, axis=2)
            np.add.at(scores[name], seen.units, lengths * (turned * seen.counts)[:, None])
        context.gathered[key] = scores
    found: Scores = context.gathered[key][group.name]
    return found


@dataclass(frozen=True, slots=True)
class Routing:
    """What one layer did with T tokens, k experts each."""

    experts: NDArray[np.int64]
    """(T, k) chosen experts."""
    weights: NDArray[Any]
    """(T, k) gate weights, as they multiply the outputs."""
    norms: NDArray[Any]
    """(T, k) length of each expert's output before the gate weight."""


def token_contribution(residual: NDArray[Any], routed: NDArray[Any]) -> Vector:
    """How far the experts turn each token: (T, D) stream before, (T, D) added -> (T,)."""
    before = np.asarray(residual, dtype=np.float64)
    after = before + np.asarray(routed, dtype=np.float64)
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    turned: Vector = np.maximum(0.0, 1 - (before * after).sum(axis=-1) / lengths)
    return turned


def expert_scores(routing: Routing, contribution: Vector, n_experts: int) -> Vector:
    """Sum over tokens of gate weight, output length and token contribution, (n_experts,)."""
    parts = routing.weights * routing.norms * contribution[:, None]
    scores = np.zeros(n_experts)
    np.add.at(scores, routing.experts.ravel(), parts.astype(np.float64).ravel())
    return scores


def mixed(domains: tuple[NDArray[Any], ...]) -> Vector:
    """Add (layers, experts) scores of several domains, each with sum 1 per layer."""
    parts = [np.asarray(d, dtype=np.float64) for d in domains]
    total: Vector = sum(
        (p / p.sum(axis=-1, keepdims=True) for p in parts), start=np.zeros(parts[0].shape)
    )
    return total


__all__ = ["Routing", "easyep", "expert_scores", "mixed", "token_contribution"]
