"""Let tokens leave a segmentation model as soon as their class is certain.

An auxiliary head predicts masks from the tokens that are still there. A token whose best class
is more certain than a threshold leaves and keeps its prediction; the most certain few of each
class stay as context for the others.

Source: Dynamic Token Pruning (Tang et al., ICCV 2023, arXiv:2308.01045), code
zbwxp/Dynamic-Token-Pruning @ 2baefff, prune_head.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, selector


@dataclass(frozen=True, slots=True)
class Exit:
    """State after one head.

    Attributes:
        exited: (B, N) bool, tokens that compute no further.
        canvas: (B, C, N) mask logits, each token's from the last head that saw it.
        prediction: (B, C, N) probability of each class at each token.
    """

    exited: Tensor
    canvas: Tensor
    prediction: Tensor


@selector(
    "dtop",
    kind="exit",
    source="DToP (Tang et al., ICCV 2023, arXiv:2308.01045), section 3.2",
    cost="linear in tokens times classes; the auxiliary head is the model's own",
    given={
        "mask_logits": ("batch", "classes", "tokens"),
        "class_logits": ("batch", "classes", "presence"),
    },
)
def score(  # noqa: PLR0913 - what it reads, and options
    mask_logits: Tensor,
    class_logits: Tensor,
    valid: Tensor,
    protected: int,
    *,
    threshold: float = 0.9,
    keep_per_class: int = 5,
) -> Selection:
    """Keep the tokens whose class is not certain yet; how many is up to the sample.

    Args:
        mask_logits: (B, C, N) of an auxiliary head at this site, of the tokens there.
        class_logits: (B, C, 2), the class is there or not.
        valid: (B, N) bool.
        protected: leading tokens that stay.
        threshold: a token leaves above this probability; 1.0 lets none go.
        keep_per_class: certain tokens of each class that stay.
    """
    prediction = predict(mask_logits, class_logits)
    prediction = prediction.masked_fill(~valid[:, None], 0.0)
    certain = prediction.amax(dim=1)
    leaves = leaving(prediction, threshold=threshold, keep_per_class=keep_per_class)
    position = torch.arange(valid.shape[1], device=valid.device)
    stays = (~leaves & valid) | (position < protected)
    return Selection(stays.float() * 2.0 - certain, count=stays.sum(dim=1))


def exit_tokens(  # noqa: PLR0913 - a head's outputs, the state, and the method's two numbers
    mask_logits: Tensor,
    class_logits: Tensor,
    exited: Tensor,
    canvas: Tensor,
    *,
    threshold: float = 0.9,
    keep_per_class: int = 5,
) -> Exit:
    """Decide at one head which tokens exit, and freeze what those that did exit predict.

    Args:
        mask_logits: (B, C, N), of this head; not read where a token has exited.
        class_logits: (B, C, 2).
        exited: (B, N) bool, before this head.
        canvas: (B, C, N), logits that exited tokens left with.
        threshold: a token exits above this probability.
        keep_per_class: certain tokens of each class that do not exit at this head.
    """
    painted = torch.where(exited[:, None], canvas, mask_logits)
    prediction = predict(painted, class_logits)
    leaves = leaving(prediction, threshold=threshold, keep_per_class=keep_per_class)
    return Exit(exited | leaves, painted, prediction)


def predict(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """(B, C, N), (B, C, 2) -> (B, C, N) float32: class there times token in its mask."""
    there = class_logits.float().softmax(dim=-1)[:, :, :1]
    return there * mask_logits.float().sigmoid()


def leaving(prediction: Tensor, *, threshold: float, keep_per_class: int) -> Tensor:
    """(B, C, N) -> (B, N) bool: certain, and not among the most certain few of a class."""
    certain, label = prediction.max(dim=1)
    classes = torch.arange(prediction.shape[1], device=prediction.device)
    position = torch.arange(prediction.shape[2], device=prediction.device)
    own = torch.where(label[:, None] == classes[:, None], prediction, -1.0)
    context = torch.zeros_like(certain, dtype=torch.bool)
    # Picks one after the other rather than top-k, which promises nothing among equal ones.
    for _ in range(keep_per_class):
        picked = position == own.argmax(dim=2, keepdim=True)
        context = context | (picked & (own > threshold)).any(dim=1)
        own = own.masked_fill(picked, -1.0)
    return (certain > threshold) & ~context


__all__ = ["Exit", "exit_tokens", "leaving", "predict", "score"]
