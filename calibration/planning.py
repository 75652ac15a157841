"""A plan from a ratio: rank the units of every group of a role, and keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.importance import Batches, Context, rank
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.plan import Plan, make_plan


@dataclass(frozen=True, slots=True)
class Ranking:
    """By what the units are ranked."""

    importance: str = "l2"
    """A name in ``calibration.importance.CRITERIA``, or ``package.module:function``."""
    data: Batches = ()
    """Batches of input arrays, for criteria that look at activations; read once."""
    seed: int = 0


def plan(model: ir.Model | Analysis, role: str, allocation: Allocation, ranking: Ranking) -> Plan:
    """Choose which units of a role stay: ``heads``, ``ffn``, ``channels``, ...

    The residual width can go too; its removal is renormalised, which the plan says.

    Raises:
        BadInputError: the model has no removable group of the role, or the criterion gives
            NaN or needs data that is not there.
    """
    analysis = model if isinstance(model, Analysis) else analyse(model)
    groups = removable(analysis, role)
    context = Context(analysis, groups, ranking.data, ranking.seed)
    keep = allocate(rank(ranking.importance, context), allocation)
    return make_plan(analysis, keep, allow_inexact=not all(group.exact for group in groups))


def combine(analysis: Analysis, plans: Sequence[Plan]) -> Plan:
    """Join plans for the same model into one.

    Raises:
        BadInputError: two plans speak of the same group.
    """
    keep: dict[str, tuple[int, ...]] = {}
    for one in plans:
        if twice := set(keep) & set(one.keep):
            raise BadInputError(f"two plans cut {sorted(twice)[0]}")
        keep |= one.keep
    return make_plan(analysis, keep, allow_inexact=any(p.allow_inexact for p in plans))


def removable(analysis: Analysis, role: str) -> tuple[Group, ...]:
    """Groups of a role whose units can be removed: exactly, but for the residual width.

    Raises:
        BadInputError: there is none; the message says which roles there are and what is in
            the way of this one.
    """
    groups = tuple(
        group
        for group in analysis.by_role(role)
        if group.removable or (role == "residual" and group.weights and not group.frozen)
    )
    if groups:
        return groups
    reasons = [
        f"{group.name}: {group.frozen[0]}" for group in analysis.by_role(role) if group.frozen
    ]
    roles = {group.role: None for group in analysis.groups if group.removable}
    raise BadInputError(
        f"the model has no {role} that can be removed",
        got="; ".join(reasons[:3]) or f"no group of the role {role!r}",
        wanted="one of " + (", ".join(roles) or "none: nothing in this model can be removed"),
        next_step=_hint(analysis, role),
    )


def _hint(analysis: Analysis, role: str) -> str:
    if role == "heads" and any(group.removable for group in analysis.by_role("query_heads")):
        return "ask for query_heads: all queries share one key-value head, which has to stay"
    return "`secateur analyse MODEL` lists every group with its reasons"


__all__ = ["Ranking", "combine", "plan", "removable"]
