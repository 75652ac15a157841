"""A plan from a ratio: rank the units of every group of a role, and keep the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.block_choice import choose_blocks
from secateur.calibration.block_shares import block_shares
from secateur.calibration.flap_structures import Structured, shared_out
from secateur.calibration.importance import Batches, Context, Scoring, rank
from secateur.calibration.search.allocation import searched
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.plan import Plan, make_plan


@dataclass(frozen=True, slots=True)
class Ranking:
    """By what the units are ranked."""

    importance: str = "l2"
    """A name in ``calibration.importance.CRITERIA``, or ``package.module:function``."""
    data: Batches = ()
    """Batches of input arrays, for criteria that look at activations; read once, and held in
    memory where shares are measured too."""
    seed: int = 0
    scoring: Scoring = field(default_factory=Scoring)
    """For criteria that measure weights."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Handed in from training, by parameter name: gradients, ``NAME@fisher``, ..."""


def plan(
    model: ir.Model | Analysis,
    role: str,
    allocation: Allocation,
    ranking: Ranking,
    *,
    allow_inexact: bool = False,
) -> Plan:
    """Choose which units of a role stay: ``heads``, ``ffn``, ``channels``, ...; or ``blocks``.

    ``heads_and_ffn`` are both together, as FLAP ranks them.

    Args:
        model: or its analysis, made with the outputs that may change shape.
        role: of the groups to cut. The residual width can go too; its removal is
            renormalised, which the plan says.
        allocation: how much goes, and where from.
        ranking: what goes first.
        allow_inexact: also cut other groups that a norm is taken over, renormalised.

    Raises:
        BadInputError: the model has no removable group of the role, a group would be
            emptied, nothing would go, or the criterion gives NaN or needs data that is
            not there.
    """
    analysis = model if isinstance(model, Analysis) else analyse(model)
    if role == "blocks":
        blocks = choose_blocks(analysis.model, allocation, ranking.importance, seed=ranking.seed)
        return make_plan(analysis, {}, blocks=blocks)
    roles = ("heads", "ffn") if role == "heads_and_ffn" else (role,)
    groups = tuple(
        group for one in roles for group in removable(analysis, one, allow_inexact=allow_inexact)
    )
    data = list(ranking.data) if allocation.scope in {"cfsp", "tyr"} else ranking.data
    context = Context(
        analysis,
        groups,
        data,
        seed=ranking.seed,
        scoring=ranking.scoring,
        arrays=ranking.arrays,
    )
    scores = rank(ranking.importance, context)
    if allocation.scope == "cfsp":
        shares = block_shares(analysis, groups, data, allocation.ratio)
        allocation = replace(allocation, shares=shares)
    if allocation.scope == "flap":
        keep = shared_out(
            scores,
            groups,
            Structured(allocation.structure, allocation.ratio, allocation.remove_heads),
        )
    else:
        keep = allocate(scores, allocation)
    if allocation.scope == "tyr":
        keep = searched(context, scores, keep, allocation)
    keep = _with_stand_ins(analysis, keep, scores)
    return make_plan(analysis, keep, allow_inexact=not all(group.exact for group in groups))


def _with_stand_ins(
    analysis: Analysis, keep: Mapping[str, tuple[int, ...]], scores: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Rows that stand in for others stay, in place of the lowest of those that would have."""
    found = dict(keep)
    for name, units in keep.items():
        needed = analysis.roles.vocabulary.get(analysis.group(name).atom, set())
        if lost := needed.difference(units):
            rows = np.array([unit for unit in units if unit not in needed], np.int64)
            gone = rows[np.argsort(scores[name][rows], kind="stable")][: len(lost)]
            found[name] = tuple(sorted(lost.union(units).difference(gone.tolist())))
    return found


def combine(analysis: Analysis, plans: Sequence[Plan]) -> Plan:
    """Join plans for the same model into one.

    Raises:
        BadInputError: two plans speak of the same group or block, or one cuts what another
            removes whole.
    """
    keep: dict[str, tuple[int, ...]] = {}
    for one in plans:
        if twice := sorted(set(keep) & set(one.keep)):
            raise BadInputError(
                f"two plans cut {twice[0]}", next_step="leave it out of one of them"
            )
        keep |= one.keep
    inexact = any(one.allow_inexact for one in plans)
    blocks = tuple(name for one in plans for name in one.blocks)
    return make_plan(analysis, keep, allow_inexact=inexact, blocks=blocks)


def removable(analysis: Analysis, role: str, *, allow_inexact: bool = False) -> tuple[Group, ...]:
    """Groups of a role whose units can be removed: exactly, but for the residual width.

    Raises:
        BadInputError: there is none; the message says which roles there are and what is in
            the way of this one.
    """
    inexact = allow_inexact or role == "residual"
    groups = tuple(
        group
        for group in analysis.by_role(role)
        if group.removable or (inexact and group.weights and not group.frozen)
    )
    if groups:
        return groups
    reasons = [_in_the_way(group) for group in analysis.by_role(role) if group.weights]
    roles = {group.role: None for group in analysis.groups if group.removable}
    raise BadInputError(
        f"the model has no {role} that can be removed",
        got="; ".join(reasons[:3]) or f"no group of the role {role!r}",
        wanted="one of " + (", ".join(roles) or "none: nothing in this model can be removed"),
        next_step=_hint(analysis, role),
    )


def _in_the_way(group: Group) -> str:
    why = group.frozen[0] if group.frozen else "a norm is taken over it, a cut is not exact"
    return f"{group.name}: {why}"


def _hint(analysis: Analysis, role: str) -> str:
    if role == "heads" and any(group.removable for group in analysis.by_role("query_heads")):
        return "ask for query_heads: all queries share one key-value head, which has to stay"
    if any(group.weights and not group.frozen for group in analysis.by_role(role)):
        return "allow_inexact removes them and takes the norm over the rest"
    if role == "vocabulary":
        return "name the input that gives its ids, and the unknown one: allow_ids, --allow-ids"
    if role == "outputs":
        return "name the outputs that may change shape: allow_outputs, --allow-output"
    return "`secateur analyse MODEL` lists every group with its reasons"


__all__ = ["Ranking", "combine", "plan", "removable"]
