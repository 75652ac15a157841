"""Give each frame of a video as many tokens as it matters for the question.

Source: QuoTA (Luo et al., 2025, arXiv:2503.08689), section 3.3, code MAC-AutoML/QuoTA @ ec194d7.
How much a frame matters is what another model says of it; here it comes in as a number per frame.

Five ways to make a frame smaller: v1 bilinear, v2 average pooling, v3 evenly spaced tokens, v4
repeated merging of pairs, v5 merging along rows and then along columns. All have slots for the
largest quota and say which of them are filled, so that counts need not be known when a graph is
made. As a selector, at a site, each frame keeps evenly spaced tokens (v3); there, what a frame
would get beyond what it has goes to the others by their share, all at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.selectors.core import Selection, behind_protected, ranks, selector

VERSIONS = ("v1", "v2", "v3", "v4", "v5")


@dataclass(frozen=True, slots=True)
class Compressed:
    """Frames in slots.

    Attributes:
        tokens: (F, S, D); rows of zeros where not valid.
        valid: (F, S) bool, the first ones of each frame.
        height: (F,) int64, rows of the frame's new grid; the number of tokens for v3 and v4.
        width: (F,) int64, columns; 0 for v3 and v4.
    """

    tokens: Tensor
    valid: Tensor
    height: Tensor
    width: Tensor


@selector(
    "quota",
    kind="threshold",
    source="QuoTA (Luo et al., 2025, arXiv:2503.08689), section 3.3",
    cost="linear in the tokens; the relevance of the frames comes from another model",
    given={"relevance": ("batch", "frames")},
)
def score(relevance: Tensor, valid: Tensor, count: Tensor, protected: int) -> Selection:
    """Keep evenly spaced tokens of each frame, as many as it matters.

    Args:
        relevance: (B, F), not negative, how much each frame matters.
        valid: (B, N) bool; behind the protected tokens, F frames of equally many tokens.
        count: (B,) int64, the budget for all frames, protected tokens among it.
        protected: leading tokens that stay.
    """
    patches = valid[:, protected:]
    position = torch.arange(patches.shape[1], device=valid.device)
    most = torch.ones_like(position).sum() // torch.ones_like(relevance[0]).sum().long()
    weight, tiny = relevance.float().clamp(min=0.0), torch.finfo(torch.float32).tiny
    share = weight / weight.sum(dim=1, keepdim=True).clamp(min=tiny)
    wanted = share * (count - protected).clamp(min=0)[:, None]
    capped = torch.minimum(wanted, most.float())
    spare = (wanted - capped).sum(dim=1, keepdim=True)
    open_share = capped.masked_fill(wanted >= most, 0.0)
    open_total = open_share.sum(dim=1, keepdim=True).clamp(min=tiny)
    raised = torch.minimum(capped + open_share / open_total * spare, most.float())
    frame = (position // most).clamp(max=weight.shape[1] - 1)
    quota = raised.to(torch.int64)[:, frame]
    place, gaps = position % most, (quota - 1).clamp(min=0)
    span = (most - 1).clamp(min=1)
    nearest = (place * gaps + span - 1) // span
    # A single token is the first one; whole numbers, so that no engine rounds another way.
    at_slot = torch.where(gaps == 0, 0, nearest * span // gaps.clamp(min=1)) == place
    picked = at_slot & (quota > 0) & patches
    made = picked.float() * 2.0 + raised[:, frame] / most
    return Selection(behind_protected(made, protected), count=picked.sum(dim=1) + protected)


def frame_quotas(relevance: Tensor, *, total: int, most: int, version: str) -> Tensor:
    """Tokens for each frame, (F,) int64, together no more than ``total``.

    Args:
        relevance: (F,) float, not negative; the published code squares a probability.
        total: tokens for all frames.
        most: tokens that a frame has. What it would get beyond that goes to the others in one
            pass from the first frame to the last; not for v1, which can make frames larger.
        version: one of ``VERSIONS``.
    """
    share = relevance / relevance.sum()
    if version != "v1":
        share = _capped(share, most / total)
    return (share * total).to(torch.int64)


def _capped(share: Tensor, limit: float) -> Tensor:
    capped = share.clamp(max=limit)
    excess = (share - capped).sum()
    total = capped.sum()
    made = []
    for one in capped.unbind():
        raised = torch.where(one < limit, one + one / total * excess, one)
        excess = excess + (raised - limit).clamp(min=0)
        made.append(raised.clamp(max=limit))
    return torch.stack(made)


def grid(quota: Tensor) -> tuple[Tensor, Tensor]:
    """(F,) -> rows and columns (F,) int64 of the largest near-square grid in a quota."""
    side = quota.float().sqrt().floor().to(torch.int64)
    return side + ((side + 1) * side <= quota).to(torch.int64) * (side > 0), side


def compress(frames: Tensor, quota: Tensor, *, slots: int, version: str) -> Compressed:
    """Make each frame as small as its quota says.

    Args:
        frames: (F, P, D); P a square number but for v3 and v4.
        quota: (F,) int64; 0 drops a frame.
        slots: at least the largest quota. Fixed, so that a graph has a size.
        version: one of ``VERSIONS``.

    Raises:
        BadInputError: an unknown version, or frames that are no squares.
    """
    if version not in VERSIONS:
        raise BadInputError("unknown version", got=version, wanted=", ".join(VERSIONS))
    quota = quota.clamp(max=slots)
    slot = torch.arange(slots, device=frames.device)
    if version == "v3":
        weights = spaced(quota, slots=slots, n_tokens=frames.shape[1])
        return _filled(weights @ frames.float(), slot < quota[:, None], quota, quota * 0)
    if version == "v4":
        made = merge_to(frames.float(), quota)
        made = F.pad(made, (0, 0, 0, max(0, slots - frames.shape[1])))[:, :slots]
        return _filled(made, slot < quota[:, None], quota, quota * 0)
    height, width = grid(quota)
    side = _side(frames.shape[1])
    valid = slot < (height * width)[:, None]
    if version == "v5":
        made = _merged_grid(
            frames.float().reshape(-1, side, side, frames.shape[2]), height, width, slots
        )
        return _filled(made, valid, height, width)
    across = width.clamp(min=1)[:, None]
    rows = resampling(height, slot // across, side=side, version=version)
    columns = resampling(width, slot % across, side=side, version=version)
    weights = (rows[:, :, :, None] * columns[:, :, None, :]).flatten(2)
    return _filled(weights @ frames.float(), valid, height, width)


def _filled(tokens: Tensor, valid: Tensor, height: Tensor, width: Tensor) -> Compressed:
    return Compressed(tokens * valid[:, :, None], valid, height, width)


def _side(n_tokens: int) -> int:
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise BadInputError(
            "the tokens of a frame make no square",
            got=f"{n_tokens} tokens",
            wanted="a square number",
            next_step="use version v3 or v4, which need no grid",
        )
    return side


def resampling(target: Tensor, place: Tensor, *, side: int, version: str) -> Tensor:
    """Weights along one edge of a grid.

    Args:
        target: (F,) int64, new length of the edge.
        place: (F, S) int64, for which places along it.
        side: old length.
        version: ``v1`` bilinear between centres, ``v2`` mean of all that a place touches.

    Returns:
        (F, S, side) float32.
    """
    length = target.clamp(min=1)[:, None]
    old = torch.arange(side, device=target.device)
    if version == "v1":
        centre = ((place.float() + 0.5) * (side / length.float()) - 0.5).clamp(0, side - 1)
        return (1.0 - (centre[:, :, None] - old).abs()).clamp(min=0.0)
    start = place * side // length
    end = ((place + 1) * side + length - 1) // length
    inside = ((old >= start[:, :, None]) & (old < end[:, :, None])).float()
    return inside / inside.sum(dim=2, keepdim=True).clamp(min=1.0)


def spaced(quota: Tensor, *, slots: int, n_tokens: int) -> Tensor:
    """One-hot rows at evenly spaced tokens, ends included, (F, S, P) float32.

    Counted from both ends in float32, as ``torch.linspace`` counts.
    """
    slot = torch.arange(slots, device=quota.device)
    gaps = (quota - 1).clamp(min=1)[:, None]
    step = (n_tokens - 1) / gaps.float()
    from_end = (n_tokens - 1) - step * (gaps - slot).float()
    chosen = torch.where(slot < quota[:, None] // 2, step * slot.float(), from_end)
    chosen = torch.where(quota[:, None] == 1, 0.0, chosen)
    position = torch.arange(n_tokens, device=quota.device)
    return (chosen.to(torch.int64)[:, :, None] == position).float()


def merge_to(frames: Tensor, quota: Tensor) -> Tensor:
    """Merge pairs of alike tokens until each frame has as many as its quota.

    In a round every second token can go, those most like one of the others first; what stays
    stands by how unlike it is, before the tokens that it could have gone to.

    Args:
        frames: (F, P, D) float32.
        quota: (F,) int64, at least 1 where anything is wanted.

    Returns:
        (F, P, D): the first ``quota`` rows, others 0.
    """
    count = torch.full_like(quota, frames.shape[1])
    rounds = (frames.shape[1] - 1).bit_length()
    for _ in range(rounds):
        frames, count = _merge_round(frames, count, quota)
    return frames


def _merge_round(frames: Tensor, count: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    slot = torch.arange(frames.shape[1], device=frames.device)
    present = slot < count[:, None]
    source, destination = present & (slot % 2 == 0), present & (slot % 2 == 1)
    unit = F.normalize(frames, dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).masked_fill(~destination[:, None, :], -2.0)
    alike, target = cosine.max(dim=2)
    removed = torch.minimum((count - quota).clamp(min=0), count // 2)[:, None]
    rank = ranks(alike.masked_fill(~source, -3.0))
    n_left = (count[:, None] + 1) // 2 - removed
    to_slot = torch.where(source, rank - removed, n_left + slot // 2)
    to_slot = torch.where(source & (rank < removed), n_left + target // 2, to_slot)
    to_slot = torch.where(removed == 0, slot, to_slot).masked_fill(~present, -1)
    member = (to_slot[:, None, :] == slot[:, None]).float()
    mean = member / member.sum(dim=2, keepdim=True).clamp(min=1.0)
    return mean @ frames, count - removed[:, 0]


def _merged_grid(frames: Tensor, height: Tensor, width: Tensor, slots: int) -> Tensor:
    """(F, G, G, D) -> (F, S, D): each row merged to the width, then each column."""
    n_frames, side, _, channels = frames.shape
    rows = merge_to(frames.flatten(0, 1), width.repeat_interleave(side))
    columns = rows.reshape(n_frames, side, side, channels).transpose(1, 2).flatten(0, 1)
    made = merge_to(columns, height.repeat_interleave(side))
    made = made.reshape(n_frames, side, side, channels).transpose(1, 2).flatten(1, 2)
    slot = torch.arange(slots, device=frames.device)
    across = width.clamp(min=1)[:, None]
    place = (slot // across * side + slot % across).clamp(max=side * side - 1)
    return made.gather(1, place[:, :, None].expand(-1, -1, frames.shape[3]))


__all__ = [
    "VERSIONS",
    "Compressed",
    "compress",
    "frame_quotas",
    "grid",
    "merge_to",
    "resampling",
    "score",
    "spaced",
]
