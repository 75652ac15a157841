"""Keep, in a state-space model, the tokens whose scan output is large, in their order.

A Vision Mamba has its class token in the middle and reads the tokens as a sequence, so that what
is kept has to stay in order and the class token has to come out in the middle again.

Source: Exploring Token Pruning in Vision State Space Models (Zhan et al., NeurIPS 2024,
arXiv:2409.18962), code ZLKong/ToP-ViM @ b5bc231.

Departures, all of them undone by ``faithful``: the scores are turned back into the order of the
tokens (the published code leaves them flipped, so that a token gets another one's), scores are
clipped at 0 as the paper says, and the class token is taken out of the choice in every sample
(published: only in the first, so that others can have it twice).

What is kept are neighbours from there on: nothing of a token that left reaches the scan behind
it. The paper also aligns hidden states, with a kernel that goes through the removed positions; the
released Python has nothing of it, the reference vectors hold the released form, and without that
kernel the alignment would save no time. So it is not made here, ``faithful`` or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, ranks, selector


@selector(
    "top_vim",
    kind="sets",
    source="ToP-ViM (Zhan et al., NeurIPS 2024, arXiv:2409.18962), section 4",
    cost="linear in the tokens: a sum over channels of an output that is there anyway",
    given={"ssm_out_backward": ("batch", "channels", "tokens")},
)
def score(
    ssm_out_backward: Tensor, valid: Tensor, count: Tensor, *, flipped: bool = True
) -> Selection:
    """Keep the class token in the middle and an even number of others around it.

    All tokens have to be there, an odd number with the class token in the middle; nothing
    leads, so that recipes set ``protected`` to 0.

    Args:
        ssm_out_backward: (B, E, N), output of the scan that runs backwards.
        valid: (B, N) bool.
        count: (B,) int64; an even one is made odd.
        flipped: Whether that output stands in the order of its scan, the last token first, as
            in the published code; False where it stands in the order of the tokens, as in
            ``models.families.vision_mamba``.

    Returns:
        Scores by which the kept tokens come in their order with the class token exactly in
        the middle, and the odd count.
    """
    n_tokens = valid.shape[1]
    middle = n_tokens // 2
    position = torch.arange(n_tokens, device=valid.device)
    wanted = odd(count).clamp(max=n_tokens)
    made = channel_score(ssm_out_backward)
    made = made if flipped else made.flip(1)
    place = ranks(made.masked_fill(position == middle, torch.inf))
    others = (place > 0) & (place < wanted[:, None])
    before = others.to(torch.int64).cumsum(dim=1) - 1
    half = (wanted[:, None] - 1) // 2
    slot = torch.where(before < half, before, before + 1)
    slot = torch.where(position == middle, half, slot)
    kept = others | (position == middle)
    order = torch.where(kept, 2 * n_tokens - slot, -place).float()
    # A score that is no number stays none, for the caller to refuse.
    return Selection(torch.where(made.isnan(), made, order), count=wanted, order="score")


def channel_score(ssm_out_backward: Tensor, *, faithful: bool = False) -> Tensor:
    """Sum of the clipped output over channels, (B, E, N) -> (B, N) float32 in token order."""
    output = ssm_out_backward.float()
    if faithful:
        return output.sum(dim=1)
    return output.clamp(min=0.0).sum(dim=1).flip(1)


def odd(count: Tensor) -> Tensor:
    """The count, or the next number where it is even."""
    return count + 1 - count % 2


def kept_number(n_tokens: int, keep: float) -> int:
    """Tokens that the published schedule leaves of ``n_tokens``, class token included."""
    share = (n_tokens - 1) * keep
    number = int(share) + (int(share) < share)
    return number + 1 - number % 2


def select_published(
    hidden: Tensor, residual: Tensor, ssm_out_backward: Tensor, *, kept: int
) -> dict[str, Tensor]:
    """What the published code keeps after a block, its defects included.

    Args:
        hidden: (B, N, D), N odd, class token in the middle.
        residual: (B, N, D), gathered alike.
        ssm_out_backward: (B, E, N).
        kept: odd number of tokens that stay, as ``kept_number`` says.

    Returns:
        ``score`` (B, N), ``index`` (B, kept - 1) ascending, ``hidden`` and ``residual``
        (B, kept, D).
    """
    middle = hidden.shape[1] // 2
    made = channel_score(ssm_out_backward, faithful=True)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    sample = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    choice = made.masked_fill((position == middle) & (sample == 0), -torch.inf)
    index = choice.topk(kept - 1, dim=1).indices.sort(dim=1).values
    half = (kept - 1) // 2
    centre = torch.full_like(index[:, :1], 0) + middle
    order = torch.cat([index[:, :half], centre, index[:, half:]], dim=1)
    return {
        "score": made,
        "index": index,
        "hidden": _rows(hidden, order),
        "residual": _rows(residual, order),
    }


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


__all__ = ["channel_score", "kept_number", "odd", "score", "select_published"]
