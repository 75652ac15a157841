"""Drop tokens, and heads, that little attention or little output fell on so far.

The attention that a token received is summed over heads and queries and goes on from layer to
layer, so that a token once dropped stays dropped and a late layer does not decide alone.

Source: SpAtten (Wang et al., HPCA 2021, arXiv:2012.09852), sections III-A and III-B. The code that
its authors released for language models (mit-han-lab/spatten @ a0f1388) does something else:
``prune_cache`` is that.

Departures: heads are weighed alike, so that the attention a token received is their mean times
the number of queries; this changes the order only where heads were removed between two sites. Heads
are dropped at build time or by a mask here, since no engine has a head axis that varies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, best, selector


@selector(
    "spatten",
    kind="cascade",
    source="SpAtten (Wang et al., HPCA 2021, arXiv:2012.09852), section III-A",
)
def score(column_mean: Tensor, accumulated: Tensor, valid: Tensor) -> Selection:
    """Attention received in this layer and at the sites before.

    Args:
        column_mean: (B, N), attention received, mean over heads and valid queries.
        accumulated: (B, N), ``state`` of the site before; 0 at the first.
        valid: (B, N) bool.
    """
    queries = valid.sum(dim=1, keepdim=True).float()
    made = accumulated.float() + column_mean.float() * queries
    return Selection(made, state=made)


def head_importance(head_outputs: Tensor, valid: Tensor) -> Tensor:
    """Sum of the magnitudes of what each head puts out.

    Args:
        head_outputs: (B, H, N, Dh), probabilities times values, before the output projection.
        valid: (B, N) bool.

    Returns:
        (B, H) float32. Its mean over calibration data says which heads to remove for good.
    """
    return (head_outputs.float().abs().sum(dim=-1) * valid[:, None].float()).sum(dim=2)


def cascade_heads(
    accumulated: Tensor, importance: Tensor, alive: Tensor, *, keep: int
) -> tuple[Tensor, Tensor]:
    """Add a layer's head importance and say which heads are left for the layers behind it.

    Args:
        accumulated: (B, H) float32, 0 before the first layer.
        importance: (B, H) float32 of this layer, as ``head_importance`` gives it.
        alive: (B, H) bool, heads that were not dropped before.
        keep: heads that stay, of those alive.

    Returns:
        The new sum and the new ``alive``; a head that was dropped stays dropped.
    """
    total = accumulated + importance * alive.float()
    lowest = torch.finfo(torch.float32).min
    wanted = torch.full_like(alive[:, 0], keep, dtype=torch.int64)
    return total, alive & best(total.masked_fill(~alive, lowest), wanted)


def prune_cache(  # noqa: PLR0913 - a cache, what it is judged by, and the four published sizes
    keys: Tensor,
    values: Tensor,
    logits: Tensor,
    *,
    start: int,
    recent: int,
    important: int,
    coming: int,
) -> dict[str, Tensor]:
    """Shorten the key-value cache of one layer, as the released code does, per head.

    Args:
        keys: (B, H, S, Dh).
        values: (B, H, S, Dh).
        logits: (B, H, Q, S), scaled products of the last queries with the keys, before mask
            and softmax.
        start: leading positions that stay.
        recent: positions at the end that stay, those to come among them.
        important: positions in between that stay, by the sum of their logits.
        coming: positions about to be appended.

    Returns:
        ``keys`` and ``values`` (B, H, K, Dh), positions in their order, all of them where the
        cache is short enough, and ``importance`` (B, H, S). The released code sums over the
        batch too and is right for one sample only; here every sample has its own sum.
    """
    length = keys.shape[2]
    importance = logits.float().sum(dim=2)
    if length + coming <= start + important + recent:
        return {"keys": keys, "values": values, "importance": importance}
    end = length - recent + coming
    order = importance[:, :, start:end].sort(dim=2, descending=True, stable=True).indices
    middle = order[:, :, :important].sort(dim=2).values + start
    position = torch.arange(length, device=keys.device).expand(*keys.shape[:2], length)
    index = torch.cat([position[:, :, :start], middle, position[:, :, end:]], dim=2)
    rows = index[..., None].expand(-1, -1, -1, keys.shape[3])
    return {
        "keys": keys.gather(2, rows),
        "values": values.gather(2, rows),
        "importance": importance,
    }


__all__ = ["cascade_heads", "head_importance", "prune_cache", "score"]
