"""Keep the patches that stand out, recover what the text asks for, and merge the rest.

How many patches the class token's attention keeps is the number of outliers in it; how many more
the similarity with the text recovers is the number of outliers in that. Outliers in the attention
of the rest are centres: each takes up its 32 nearest, and one token takes up what is left.

Source: Recoverable Compression (Chen et al., AAAI 2025, arXiv:2409.01179), code
DamonZhao-sfu/RecoverableCompression @ b53840f, RCEncoder.py; outliers are those of the local
outlier factor (Breunig et al., SIGMOD 2000), below -1.5.

Departures, undone by ``faithful``: the number of centres is the number of outliers in the rest
(published: their share times the width of the features, through a variable that is overwritten),
and a patch is compared by its own key (published: by the key at its position within the rest).
A centre with fewer than 32 others takes all of them, where the published code fails. At a site,
attention is the mean over heads of the class row; the published code does not split heads, which
``full_width_row`` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.models.selectors.core import Merge, Selection, best, ranks, selector

_OUTLIER = -1.5
_TEXT_WEIGHT = 50.0
_NEIGHBOURS = (20, 20, 10)
_MEMBERS = 32
_DENSITY_FLOOR = 1e-10
_LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Parts:
    """What becomes of each patch; all (B, N) bool.

    Attributes:
        by_vision: kept for the attention it gets.
        by_text: kept for what the text asks.
        centres: of the rest, those that take up others.
        rest: all that are not kept, centres among them.
    """

    by_vision: Tensor
    by_text: Tensor
    centres: Tensor
    rest: Tensor


def full_width_row(query: Tensor, key: Tensor) -> Tensor:
    """Attention of the first token without heads, (B, N, C), (B, N, C) -> (B, N) float32."""
    scale = math.sqrt(query.shape[-1])
    return ((query[:, :1].float() @ key.float().transpose(1, 2))[:, 0] / scale).softmax(dim=-1)


def text_similarity(text: Tensor, projected: Tensor) -> Tensor:
    """Cosine over the root of the width, (B, P), (B, N, P) -> (B, N) float32."""
    direction = F.normalize(text.float(), dim=-1)[:, :, None]
    cosine = (F.normalize(projected.float(), dim=-1) @ direction)[:, :, 0]
    return cosine / math.sqrt(projected.shape[-1])


def outlier_factor(values: Tensor, valid: Tensor, *, neighbours: int) -> Tensor:
    """Negative local outlier factor of numbers among numbers.

    Args:
        values: (B, N) float32.
        valid: (B, N) bool; others are neither judged nor neighbours.
        neighbours: how many are compared with, or all others where there are fewer.

    Returns:
        (B, N) float32: about -1 among equals, less for outliers, 0 where not valid.
    """
    itself = _identity(values)
    apart = (values[:, :, None] - values[:, None, :]).abs()
    apart = apart.masked_fill(itself | ~valid[:, None, :], torch.inf)
    # Columns at infinity, so that there are enough to choose from in a short row.
    apart = F.pad(apart, (0, neighbours), value=math.inf)
    near, index = apart.sort(dim=2, stable=True)
    near, index = near[:, :, :neighbours], index[:, :, :neighbours]
    there = near < math.inf
    n_near = there.sum(dim=2).clamp(min=1).float()
    reach_of = near.masked_fill(~there, 0.0).amax(dim=2)
    index = torch.where(there, index, 0)
    reach = torch.maximum(near, _at(reach_of, index)).masked_fill(~there, 0.0)
    density = 1.0 / (reach.sum(dim=2) / n_near + _DENSITY_FLOOR)
    around = (_at(density, index) * there.float()).sum(dim=2) / n_near
    return (-around / density).masked_fill(~valid, 0.0)


def _identity(values: Tensor) -> Tensor:
    """(B, N) -> (N, N) bool, True on the diagonal."""
    position = torch.arange(values.shape[1], device=values.device)
    return position[:, None] == position


def _at(values: Tensor, index: Tensor) -> Tensor:
    """(B, N), (B, N, K) -> (B, N, K): the values at the indices."""
    return values.gather(1, index.flatten(1)).reshape(index.shape)


def outlier_number(values: Tensor, valid: Tensor, *, neighbours: int, of: Tensor) -> Tensor:
    """The share of outliers among the valid numbers, times ``of``, rounded down, (B,) int64.

    Where ``of`` is the number of valid ones this is the number of outliers.
    """
    factor = outlier_factor(values, valid, neighbours=neighbours)
    found = ((factor < _OUTLIER) & valid).sum(dim=1)
    return found * of // valid.sum(dim=1).clamp(min=1)


def divide(
    attention: Tensor, similarity: Tensor, valid: Tensor, *, width: int, faithful: bool
) -> Parts:
    """Decide what becomes of each patch.

    Args:
        attention: (B, N) float32, of the class token to the patches.
        similarity: (B, N) float32, of the patches with the text.
        valid: (B, N) bool.
        width: of the features; read only by ``faithful``.
        faithful: take the width times the share of outliers for the number of centres.
    """
    for_vision, for_text, for_centres = _NEIGHBOURS
    n_present = valid.sum(dim=1)
    ranked = attention.masked_fill(~valid, _LOWEST)
    n_vision = outlier_number(attention, valid, neighbours=for_vision, of=n_present)
    by_vision = best(ranked, n_vision) & valid
    lowest = similarity.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    asked = torch.where(by_vision, lowest, similarity)
    n_text = outlier_number(asked, valid, neighbours=for_text, of=n_present - n_vision)
    by_text = best(asked.masked_fill(~valid, _LOWEST), n_text) & valid
    rest = valid & ~by_vision & ~by_text
    of = torch.full_like(n_present, width) if faithful else rest.sum(dim=1)
    n_centres = outlier_number(attention, rest, neighbours=for_centres, of=of)
    centres = best(attention.masked_fill(~rest, _LOWEST), n_centres) & rest
    return Parts(by_vision, by_text, centres, rest)


def divide_at_once(attention: Tensor, similarity: Tensor, *, faithful: bool) -> Parts:
    """The variant that the published file holds and does not call: two independent filters.

    Args:
        attention: (B, N) float32.
        similarity: (B, N) float32.
        faithful: take all patches times the share of outliers for the number of centres.
    """
    neighbours = _NEIGHBOURS[2]
    valid = torch.ones_like(attention, dtype=torch.bool)
    n_present = valid.sum(dim=1)
    n_vision = outlier_number(attention, valid, neighbours=neighbours, of=n_present)
    n_text = outlier_number(similarity, valid, neighbours=neighbours, of=n_present)
    by_vision, by_text = best(attention, n_vision), best(similarity, n_text)
    rest = ~by_vision & ~by_text
    of = n_present if faithful else rest.sum(dim=1)
    n_centres = outlier_number(attention, rest, neighbours=neighbours, of=of)
    centres = best(attention.masked_fill(~rest, _LOWEST), n_centres) & rest
    return Parts(by_vision, by_text, centres, rest)


def asked_similarity(similarity: Tensor, parts: Parts, valid: Tensor) -> Tensor:
    """(B, N): the similarity, at its lowest where vision has kept a patch already."""
    lowest = similarity.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(parts.by_vision, lowest, similarity)


def members(parts: Parts, keys: Tensor, similarity: Tensor, *, faithful: bool) -> Tensor:
    """Which of the rest each patch would take up as a centre, (B, N, N) bool.

    Args:
        parts: what becomes of each patch.
        keys: (B, N, C), heads side by side.
        similarity: (B, N) float32, of the patches with the text.
        faithful: compare by the keys at the positions within the rest.
    """
    if faithful:
        place = (parts.rest.to(torch.int64).cumsum(dim=1) - 1).clamp(min=0)
        keys = keys.gather(1, place[:, :, None].expand_as(keys))
    unit = F.normalize(keys.float(), dim=-1)
    alike = unit @ unit.transpose(1, 2) + _TEXT_WEIGHT * similarity[:, None, :]
    itself = _identity(similarity)
    others = parts.rest[:, None, :] & ~itself
    # Columns at the bottom, so that there are enough to choose from in a short row.
    alike = F.pad(alike.masked_fill(~others, _LOWEST), (0, _MEMBERS), value=_LOWEST)
    nearest = alike.sort(dim=2, descending=True, stable=True).indices[:, :, :_MEMBERS]
    taken = torch.zeros_like(alike).scatter(2, nearest, 1.0)[:, :, : others.shape[2]]
    return (taken > 0) & others


def mixing(parts: Parts, taken: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the patches at their places, and of the one token behind them.

    Args:
        parts: what becomes of each patch.
        taken: (B, N, N) bool, as ``members`` gives it.
        attention: (B, N) float32.

    Returns:
        (B, N, N): a centre is itself plus what it takes up by attention, all others are
        themselves; (B, 1, N): the rest without the centres, by attention.
    """
    itself = _identity(attention).float()
    adds = (taken & parts.centres[:, :, None]).float() * attention[:, None, :]
    left = (parts.rest & ~parts.centres).float() * attention
    return itself + adds, left[:, None, :]


def placing(parts: Parts, attention: Tensor) -> Tensor:
    """Scores by which the kept come in their order, centres by attention behind them, (B, N)."""
    n_tokens = attention.shape[1]
    position = torch.arange(n_tokens, device=attention.device)
    order = ranks(attention.masked_fill(~parts.centres, _LOWEST))
    made = torch.where(parts.centres, n_tokens - order, -position)
    made = torch.where(parts.rest, made, 3 * n_tokens - position)
    return made.float()


def _at_site(  # noqa: PLR0913, PLR0917 - signals and options of both functions
    class_row: Tensor,
    text_similarity: Tensor,
    keys: Tensor,
    valid: Tensor,
    protected: int,
    faithful: bool,
) -> tuple[Parts, Tensor, Tensor, Tensor]:
    """The parts of a site's patches, with their attention, similarity and keys."""
    patches = valid[:, protected:]
    attention = class_row[:, protected:].float()
    similarity = text_similarity[:, protected:].float()
    wide = keys[:, :, protected:].transpose(1, 2).flatten(2)
    parts = divide(attention, similarity, patches, width=wide.shape[2], faithful=faithful)
    return parts, attention, asked_similarity(similarity, parts, patches), wide


def combine(  # noqa: PLR0913, PLR0917 - signals, what was kept, and an option
    class_row: Tensor,
    text_similarity: Tensor,
    keys: Tensor,
    valid: Tensor,
    index: Tensor,
    valid_kept: Tensor,
    protected: int,
    *,
    faithful: bool = False,
) -> Merge:
    """Let centres take up others, and append what is left where there is a centre."""
    parts, attention, asked, wide = _at_site(
        class_row, text_similarity, keys, valid, protected, faithful
    )
    taken = members(parts, wide, asked, faithful=faithful)
    places, left = mixing(parts, taken, attention)
    places = F.pad(places, (protected, 0, protected, 0))
    in_front = torch.arange(valid.shape[1], device=valid.device) < protected
    places = places + (_identity(valid) & in_front).float()
    rows = index[:, :, None].expand(-1, -1, valid.shape[1])
    weights = torch.cat([places.gather(1, rows), F.pad(left, (protected, 0))], dim=1)
    there = torch.cat([valid_kept, parts.centres.any(dim=1, keepdim=True)], dim=1)
    return Merge(weights, there)


@selector(
    "recoverable",
    kind="merge",
    source="Recoverable Compression (Chen et al., AAAI 2025, arXiv:2409.01179), section 3",
    cost="three comparisons of every token with every other",
    given={"text_similarity": ("batch", "tokens")},
    combine=combine,
)
def score(  # noqa: PLR0913 - signals and an option
    class_row: Tensor,
    text_similarity: Tensor,
    keys: Tensor,
    valid: Tensor,
    protected: int,
    *,
    faithful: bool = False,
) -> Selection:
    """Keep what stands out or is asked for, and the centres of the rest; as many as there are.

    Args:
        class_row: (B, N), the class token's attention.
        text_similarity: (B, N), of each token with the text; not read where protected.
        keys: (B, H, N, Dh).
        valid: (B, N) bool.
        protected: leading tokens that are no patches.
        faithful: do as the published code does, its defects included.
    """
    parts, attention, _, _ = _at_site(class_row, text_similarity, keys, valid, protected, faithful)
    stays = parts.centres | (~parts.rest & valid[:, protected:])
    made = placing(parts, attention)
    # A score that is no number stays none, for the caller to refuse.
    doubt = attention + text_similarity[:, protected:].float()
    made = torch.where(doubt.isnan(), doubt, made)
    count = stays.sum(dim=1) + protected
    return Selection(F.pad(made, (protected, 0)), count=count, order="score")


__all__ = [
    "Parts",
    "asked_similarity",
    "combine",
    "divide",
    "divide_at_once",
    "full_width_row",
    "members",
    "mixing",
    "outlier_factor",
    "outlier_number",
    "placing",
    "score",
    "text_similarity",
]
