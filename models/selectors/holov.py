"""Share the budget out to crops of the image, then keep the best patches of each crop.

A crop is a run of patches. Its share follows from the class token's attention and from how
unevenly its patches resemble each other; inside a crop only the attention counts.

Source: HoloV (Zou et al., NeurIPS 2025, arXiv:2510.02912), code obananas/HoloV at 1d2e65e.
As in the published code, what a crop is granted beyond its size is lost; ``fill`` gives it to
the patches with most attention elsewhere. Departures: kept patches stay in their order, with
``faithful`` they stand crop by crop by attention; a lost place is no row of zeros but no token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.core import Order, Selection, ranks, selector
from secateur.models.selectors.parts import ordinals, patches

EPSILON = 1e-6
ATTENTION_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class Crops:
    """Patches laid out by crop, padded to the largest one.

    Attributes:
        place: (B, C, S) int64, position of a slot's patch among the tokens.
        inside: (B, C, S) bool, whether the slot holds a patch.
        slot: (B, N) int64, where a token stands in the flattened (C, S).
        start: (B, C) int64, number of the crop's first patch among a sample's patches.
    """

    place: Tensor
    inside: Tensor
    slot: Tensor
    start: Tensor

    @property
    def sizes(self) -> Tensor:
        """(B, C) int64."""
        return self.inside.sum(dim=2)

    def rows(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, C, S, D), zeros outside."""
        flat = self.place.flatten(1)[:, :, None].expand(-1, -1, tokens.shape[2])
        laid: Tensor = tokens.gather(1, flat).view(*self.place.shape, tokens.shape[2])
        return laid * self.inside[..., None]

    def values(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, C, S), zeros outside."""
        return tokens.gather(1, self.place.flatten(1)).view(self.place.shape) * self.inside


@selector(
    "holov",
    kind="sets",
    source="HoloV (Zou et al., NeurIPS 2025, arXiv:2510.02912)",
    cost="one row of attention, and all pairs of tokens inside a crop",
)
def score(  # noqa: PLR0913 - signals, and four options by name
    class_row: Tensor,
    hidden: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    crops: int = 16,
    beta: float = 0.09,
    fill: bool = False,
    faithful: bool = False,
) -> Selection:
    """Number kept patches downwards in the published order, others by attention below them.

    Args:
        class_row: (B, N), attention of the class token.
        hidden: (B, N, D), visual tokens after the projector.
        valid: (B, N) bool; the valid tokens stand together.
        count: (B,) int64, tokens to keep with the protected ones.
        protected: leading tokens that are no patches.
        crops: number of runs; the first ones hold one patch more where they are uneven.
        beta: weight of the variance of similarities.
        fill: give places that a crop cannot use to other crops.
        faithful: let kept patches stand in the published order.

    Raises:
        BadInputError: no crop at all.
    """
    if crops < 1:
        raise BadInputError(
            "an image has at least one crop", where="selector 'holov'", got=str(crops)
        )
    patch = patches(valid, protected)
    laid = lay_out(patch, crops)
    attention = laid.values(class_row.float())
    weight = crop_scores(laid, laid.rows(hidden.float()), attention, beta)
    granted = grants(weight, count - protected)
    kept, key = _keep(laid, attention, granted)
    n_patches = patch.sum(dim=1)[:, None, None]  # not slots: their number is the batch's
    place = (n_patches - key).flatten(1).gather(1, laid.slot)
    others = -ranks(class_row.float()) - 1
    stays = kept.flatten(1).gather(1, laid.slot) & patch
    ranked = torch.where(stays, place, others).float()
    order: Order = "score" if faithful else "spatial"
    if fill:
        return Selection(ranked, order=order)
    return Selection(ranked, count=stays.sum(dim=1) + protected, order=order)


def lay_out(patch: Tensor, n_crops: int) -> Crops:
    """Cut each sample's patches, (B, N) bool, into runs."""
    n_tokens = patch.shape[1]
    size = patch.sum(dim=1, keepdim=True)
    ordinal = ordinals(patch)
    position = torch.arange(n_tokens, device=patch.device).expand_as(ordinal)
    # Where each patch stands; what is no patch writes behind them all.
    blank = torch.zeros_like(torch.nn.functional.pad(ordinal, (0, 1)))
    stands = blank.scatter(1, torch.where(patch, ordinal, n_tokens), position)
    base, extra = size // n_crops, size % n_crops
    crop = torch.arange(n_crops, device=patch.device)
    start = crop * base + torch.minimum(crop, extra)
    slots = torch.arange(n_tokens // n_crops + 2, device=patch.device)
    inside = slots < (base + (crop < extra))[:, :, None]
    number = (start[:, :, None] + slots).clamp(max=n_tokens - 1)
    place = stands.gather(1, number.flatten(1)).view(number.shape)
    ordinal = ordinal.clamp(min=0)
    longer = extra * (base + 1)
    of_longer = torch.div(ordinal, base + 1, rounding_mode="floor")
    of_others = extra + torch.div(ordinal - longer, base.clamp(min=1), rounding_mode="floor")
    of_crop = torch.where(ordinal < longer, of_longer, of_others).clamp(0, n_crops - 1)
    return Crops(
        place, inside, of_crop * slots.shape[0] + ordinal - start.gather(1, of_crop), start
    )


def crop_scores(crops: Crops, rows: Tensor, attention: Tensor, beta: float) -> Tensor:
    """Return the worth of every crop, (B, C): mean attention and spread of similarity.

    Args:
        crops: where the patches are.
        rows: (B, C, S, D), zeros outside.
        attention: (B, C, S), zeros outside.
        beta: weight of the spread.
    """
    unit = rows / (torch.linalg.vector_norm(rows, dim=3, keepdim=True) + EPSILON)
    slot = torch.arange(rows.shape[2], device=rows.device)
    alike = (unit @ unit.transpose(2, 3)).masked_fill(slot[:, None] == slot, 0.0)
    size = crops.sizes[:, :, None]
    others = (size - 1).clamp(min=1)
    mean = alike.sum(dim=3) / others
    apart = (alike - mean[..., None]).square() * crops.inside[:, :, None, :]
    spread = apart.sum(dim=3) / others * crops.inside
    scaled = ATTENTION_SCALE * attention
    size = size.clamp(min=1)
    levels = scaled.abs().sum(dim=2, keepdim=True) / size
    matched = spread * levels / (spread.abs().sum(dim=2, keepdim=True) / size + EPSILON)
    worth = (scaled + beta * matched).sum(dim=2) / size[..., 0]
    return torch.where(crops.sizes == 1, attention.sum(dim=2), worth)


def grants(weight: Tensor, n_kept: Tensor) -> Tensor:
    """Share ``n_kept`` (B,) out by weight (B, C); what rounding leaves goes to the heaviest."""
    share = weight / (weight.sum(dim=1, keepdim=True) + EPSILON)
    whole = torch.floor(share * n_kept[:, None]).long()
    rest = n_kept - whole.sum(dim=1)
    return whole + (ranks(share) < rest[:, None])


def _keep(crops: Crops, attention: Tensor, granted: Tensor) -> tuple[Tensor, Tensor]:
    """Return which slots stay, (B, C, S) bool, and their place in the published order."""
    n_slots = attention.shape[2]
    slot = torch.arange(n_slots, device=attention.device)
    left, right = attention[..., None], attention[:, :, None, :]
    before = (right > left) | ((right == left) & (slot < slot[:, None]))
    rank = (before & crops.inside[:, :, None, :]).sum(dim=3)
    whole = (granted >= crops.sizes)[:, :, None]
    kept = crops.inside & (whole | (rank < granted[:, :, None]))
    return kept, crops.start[:, :, None] + torch.where(whole, slot, rank)
