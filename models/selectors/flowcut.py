"""Drop, every second layer, the patches that carry little information flow.

A patch counts by how much the class token attends to it, how alike its value is to the class
token's, and how long its value is; the numbers of earlier layers go on with half their weight.
How many patches go is decided by the entropy of the class token's attention: the more evenly it
looks around, the fewer.

Source: FlowCut (Tong et al., NeurIPS 2025, arXiv:2505.19536), code TungChintao/FlowCut @ a2ecd24,
the CLIP encoder.

Departure: the published code takes the largest number to prune over the batch for all images of
it; here every sample has its own, unless ``faithful`` is set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, behind_protected, selector

_TINY = torch.finfo(torch.float32).tiny


@selector(
    "flowcut",
    kind="threshold",
    source="FlowCut (Tong et al., NeurIPS 2025, arXiv:2505.19536), sections 3.2 and 3.3",
    cost="one row of attention and one product of the class token's value with all others",
)
def score(  # noqa: PLR0913, PLR0917 - signals, what the budget says, and options
    class_row: Tensor,
    class_value: Tensor,
    values: Tensor,
    accumulated: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    remaining: int = 0,
    faithful: bool = False,
) -> Selection:
    """Decide after one layer which patches stay, and how many.

    Args:
        class_row: (B, N), the class token's attention, mean over heads.
        class_value: (B, H, Dh), its value vector.
        values: (B, H, N, Dh).
        accumulated: (B, N), ``state`` of the site before; 0 at the first.
        valid: (B, N) bool.
        count: (B,) int64, tokens that are left at the end, protected ones among them.
        protected: leading tokens that are no patches; 1 where the class token is still there.
        remaining: layers that follow before the last one that may prune. Even: some patches
            go; 0: all but ``count``; odd: nothing goes, and the score is only carried on.
        faithful: prune equally many patches in all samples, as the published code does.

    Returns:
        The running score as score and state, and how many tokens stay.
    """
    patches = valid[:, protected:]
    attended = class_row[:, protected:].float().clamp(min=0.0).masked_fill(~patches, 0.0)
    now = layer_score(attended, class_value, values[:, :, protected:], patches)
    before = accumulated[:, protected:].float()
    started = (before != 0).any(dim=1, keepdim=True)
    running = behind_protected(torch.where(started, (before + now) / 2, now), protected)
    wanted = (count - protected).clamp(min=0)
    layers = torch.as_tensor(remaining, device=valid.device)
    left = number_left(attended, patches.sum(dim=1), wanted, layers, faithful=faithful)
    return Selection(running, count=left + protected, state=running)


def layer_score(attended: Tensor, class_value: Tensor, values: Tensor, patches: Tensor) -> Tensor:
    """Score the patches of one layer.

    Args:
        attended: (B, P) float32, attention of the class token to the patches.
        class_value: (B, H, Dh).
        values: (B, H, P, Dh) of the patches.
        patches: (B, P) bool, False on padding.

    Returns:
        (B, P) float32: (share of attention + share of alikeness) * length of the mean value.
    """
    of_class, of_patches = class_value.float(), values.float()
    logits = torch.einsum("bhd,bhpd->bhp", of_class, of_patches)
    logits = logits.masked_fill(~patches[:, None], torch.finfo(torch.float32).min)
    own = (of_class * of_class).sum(dim=-1, keepdim=True)
    alike = torch.cat([own, logits], dim=-1).softmax(dim=-1)[:, :, 1:].mean(dim=1)
    length = of_patches.mean(dim=1).abs().sum(dim=-1)
    return (_share(attended) + _share(alike)) * length


def number_left(
    attended: Tensor, present: Tensor, wanted: Tensor, remaining: Tensor, *, faithful: bool = False
) -> Tensor:
    """How many patches a layer leaves, (B,) int64.

    Args:
        attended: (B, P) float32, 0 on padding.
        present: (B,) int64, patches that are there.
        wanted: (B,) int64, patches that are left at the end.
        remaining: () int64, layers that follow before the last one that prunes.
        faithful: prune as many in each sample as in the one where most go.
    """
    share = _share(attended)
    entropy = -(share * share.clamp(min=_TINY).log()).sum(dim=1)
    even = entropy / present.clamp(min=2).float().log()
    wanted = torch.minimum(wanted, present)
    excess = (present - wanted).float() / remaining.clamp(min=1).float().sqrt()
    pruned = (excess * (1.0 - even * even)).clamp(min=0.0).round().to(torch.int64)
    if faithful:
        pruned = pruned.amax(dim=0, keepdim=True)
    left = torch.where(remaining == 0, wanted, torch.maximum(present - pruned, wanted))
    return torch.where(remaining % 2 == 1, present, left)


def _share(amount: Tensor) -> Tensor:
    return amount / amount.sum(dim=1, keepdim=True).clamp(min=_TINY)


__all__ = ["layer_score", "number_left", "score"]
