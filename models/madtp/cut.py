"""Keep some tokens, merge the others into one.

*Source: Cao et al., CVPR 2024, dynamic token pruning (DTP).*
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from secateur.models.madtp.budget import Budget, Scheduled, kept_counts
from secateur.models.madtp.importance import divisor

Order = Literal["importance", "position", "published"]
"""Of kept tokens. ``published`` is that of an unsorted top-k on the CPU; it cannot be exported."""

_FIRST = torch.finfo(torch.float32).max
_LAST = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a layer, position 0 (class or text-start token) included."""

    hidden: Tensor
    """(B, L, D)."""
    mask: Tensor | None = None
    """(B, L) bool, False where attention must not look; None when it may look anywhere."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a layer knows of its tokens."""

    scores: Tensor | None
    """(B, L, T) concept scores; None where no threshold needs them."""
    importance: Tensor
    """(B, L)."""
    alive: Tensor
    """(B or 1, L) bool, from ``countable``."""
    always: Tensor | None = None
    """(B,) int64, a position that stays like position 0 does; None: no such position."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What a layer leaves: position 0, the kept tokens, the merged one, then filling."""

    tokens: Tokens
    index: Tensor
    """(B, K) int64, positions before the cut; in the merged slot that of the best merged token."""
    kept: Tensor
    """(B,) int64, tokens kept beside position 0; smaller than ``available`` where it pruned."""
    available: Tensor
    """(B,) int64, tokens that the sample had beside position 0."""


def countable(tokens: Tokens, *, coupled: bool) -> Tensor:
    """Return which tokens are scored, (B or 1, L) bool: all but position 0 and padding.

    Args:
        tokens: with their mask.
        coupled: True counts padding like any token, as the published code does.
    """
    behind_first = torch.arange(tokens.hidden.shape[1], device=tokens.hidden.device) > 0
    if coupled or tokens.mask is None:
        return behind_first[None, :]
    return tokens.mask & behind_first[None, :]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a layer is going to do with its tokens."""

    ranking: Tensor
    """(B, L) int64, positions: 0, then by falling importance; in their order where unpruned."""
    merged: Tensor
    """(B, 1, D), the tokens that go, as one."""
    kept: Tensor
    """(B,) int64, tokens kept beside position 0; smaller than ``available`` where it prunes."""
    available: Tensor
    """(B,) int64, tokens that the sample has beside position 0."""

    @property
    def prunes(self) -> Tensor:
        """(B,) bool."""
        return self.kept < self.available

    @property
    def length(self) -> Tensor:
        """(B,) int64, tokens of the result: position 0, the kept ones, the merged one."""
        return 1 + self.kept + self.prunes.long()


def cut(tokens: Tokens, evidence: Evidence, budget: Budget, *, coupled: bool, order: Order) -> Cut:
    """Keep the most important tokens and merge the rest, weighted by importance.

    Args:
        tokens: residual stream after the layer's attention.
        evidence: of the same tokens.
        budget: how many stay.
        coupled: True cuts all samples to one length, as published; the mask is carried along,
            and the merged token gets that of the most important token in it. False prunes
            each sample by itself: the mask of the result says which slots hold tokens.
        order: of the kept tokens in the result; a sample that is not pruned keeps its order.
    """
    planned = plan(tokens, evidence, budget)
    slot = torch.arange(_as_size(planned.length.amax(dim=0)), device=planned.ranking.device)
    # one length for all, and nothing to hide: no mask
    same = coupled or (isinstance(budget, Scheduled) and tokens.mask is None)
    if order == "published":
        planned = replace(planned, ranking=_published_ranking(planned, evidence.importance))
        order = "importance"
    return apply(tokens, planned, slot, same_length=same, order=order)


def plan(tokens: Tokens, evidence: Evidence, budget: Budget) -> Plan:
    """Decide, up to but without the length of the result, which depends on the data."""
    kept, available = kept_counts(
        evidence.scores, evidence.importance, budget, alive=evidence.alive
    )
    ranking = _ranking(evidence, kept < available)
    merged = _merged(tokens.hidden, evidence.importance, ranking, (kept, available))
    return Plan(ranking, merged, kept, available)


def apply(
    tokens: Tokens, planned: Plan, slot: Tensor, *, same_length: bool, order: Order = "importance"
) -> Cut:
    """Do what was planned.

    Args:
        tokens: those that were planned for.
        planned: what.
        slot: (K,) int64, 0 to K - 1, where K is at least the largest ``planned.length``.
        same_length: True carries the mask along (the merged token gets that of the best token
            in it); False makes one of what each slot holds.
        order: ``importance`` or ``position``.
    """
    prunes, slot = planned.prunes, slot[None, :]
    index = planned.ranking.gather(1, slot.expand(planned.ranking.shape[0], -1))
    if order == "position":
        index = _by_position(index, planned)
    hidden = tokens.hidden.gather(1, index[:, :, None].expand(-1, -1, tokens.hidden.shape[2]))
    is_merged = (slot == 1 + planned.kept[:, None]) & prunes[:, None]
    hidden = torch.where(is_merged[:, :, None], planned.merged, hidden)
    mask: Tensor | None = slot < planned.length[:, None]
    if same_length:
        mask = None if tokens.mask is None else tokens.mask.gather(1, index)
    return Cut(Tokens(hidden, mask), index, planned.kept, planned.available)


def _ranking(evidence: Evidence, prunes: Tensor) -> Tensor:
    """Position 0, then by falling importance, or in their order where nothing is pruned."""
    position = torch.arange(evidence.importance.shape[1], device=prunes.device)[None, :]
    key = torch.where(prunes[:, None], evidence.importance, -position.float())
    key = key.masked_fill(~evidence.alive, _LAST).masked_fill(position == 0, _FIRST)
    if evidence.always is not None:
        key = key.masked_fill(position == evidence.always[:, None], _FIRST)
    return _descending(key)


def _descending(key: Tensor) -> Tensor:
    """The order of falling keys (B, L); equal ones in the order of their positions.

    A stable sort has no translation to ONNX; ONNX's TopK is defined to be stable, torch's is not.
    """
    if torch.compiler.is_exporting():
        return key.topk(key.shape[1], dim=1).indices
    return key.sort(dim=1, descending=True, stable=True).indices


def _merged(
    hidden: Tensor, importance: Tensor, ranking: Tensor, counts: tuple[Tensor, Tensor]
) -> Tensor:
    """(B, 1, D): the tokens ranked behind the kept ones, weighted by importance."""
    kept, available = counts
    slot = torch.arange(ranking.shape[1], device=ranking.device)[None, :]
    goes = (slot > kept[:, None]) & (slot <= available[:, None])
    weights = torch.zeros_like(importance).scatter(1, ranking, goes.float()) * importance
    total = divisor(weights.sum(dim=1, keepdim=True))
    return (weights[:, None, :] @ hidden.float() / total[:, :, None]).to(hidden.dtype)


def _by_position(index: Tensor, planned: Plan) -> Tensor:
    """The kept tokens in their own order, then the merged one and filling as they are."""
    slot = torch.arange(index.shape[1], device=index.device)[None, :]
    behind = slot + planned.ranking.shape[1]
    place = torch.where(slot <= planned.kept[:, None], index, behind)
    return index.gather(1, _descending(-place.float()))


def _published_ranking(planned: Plan, importance: Tensor) -> Tensor:
    """The kept tokens of a coupled cut in the order of an unsorted top-k."""
    count, ranking = int(planned.kept[0]), planned.ranking
    if 1 + count == importance.shape[1]:
        return ranking
    unsorted = 1 + importance[:, 1:].topk(count, dim=1, sorted=False).indices
    return torch.cat([ranking[:, :1], unsorted, ranking[:, 1 + count :]], dim=1)


def _as_size(length: Tensor) -> int:
    """A number of the device as a size.

    An exporter does not know it, and would take a size of 1 for something to broadcast.
    """
    size = cast("int", length.item())
    if torch.compiler.is_exporting():
        check = cast("Callable[[bool], None]", torch._check)  # noqa: SLF001 - it is documented
        check(size >= 2)
    return size


__all__ = ["Cut", "Evidence", "Order", "Plan", "Tokens", "apply", "countable", "cut", "plan"]
