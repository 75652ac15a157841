"""Attention and rotary positions as single ops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call

_UNSUPPORTED = ((4, "past keys"), (5, "past values"), (6, "padded key-value lengths"))


@TORCH_OPS.register("Attention")
def attention(call: Call) -> Tensor:
    """Queries, keys, values (B, H, N, D) or (B, N, H * D), mask -> the queries' layout.

    Key-value heads may be fewer than query heads. Caches and soft caps are refused.
    """
    reasons = [what for slot, what in _UNSUPPORTED if call.has(slot)]
    reasons += ["softcap"] if call.get_float("softcap", 0.0) else []
    reasons += ["more than one output"] if any(call.wants(i) for i in (1, 2, 3)) else []
    if reasons:
        raise call.refuse(", ".join(reasons))
    q, k, v = (call.tensor(slot) for slot in range(3))
    is_flat = q.dim() == 3
    if is_flat:
        counts = call.get_int("q_num_heads", 0), *(call.get_int("kv_num_heads", 0),) * 2
        q, k, v = (_split_heads(x, n) for x, n in zip((q, k, v), counts, strict=True))
    scale = call.get_float("scale", 0.0) if "scale" in call.step.attributes else None
    mixed = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=call.optional(3),
        is_causal=bool(call.get_int("is_causal", 0)),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return mixed.transpose(1, 2).flatten(2) if is_flat else mixed


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H * D) to (B, H, N, D)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


@TORCH_OPS.register("RotaryEmbedding")
def rotary(call: Call) -> Tensor:
    """(B, H, N, D) or (B, N, H * D), cosines and sines (..., R / 2), positions (B, N) -> same.

    Without positions the tables are (B, N, R / 2); only the first R of a head's D turn.
    """
    x, cos, sin = (call.tensor(slot) for slot in range(3))
    is_flat = x.dim() == 3
    heads = _split_heads(x, call.get_int("num_heads", 0)) if is_flat else x
    if call.has(3):
        cos, sin = cos[call.tensor(3)], sin[call.tensor(3)]
    width = call.get_int("rotary_embedding_dim", 0) or heads.shape[-1]
    cos, sin = (table.unsqueeze(1)[..., : width // 2] for table in (cos, sin))
    is_interleaved = bool(call.get_int("interleaved", 0))
    turned = _turn(heads[..., :width], (cos, sin), is_interleaved=is_interleaved)
    turned = torch.cat([turned, heads[..., width:]], dim=-1)
    return turned.transpose(1, 2).flatten(2) if is_flat else turned


def _turn(x: Tensor, tables: tuple[Tensor, Tensor], *, is_interleaved: bool) -> Tensor:
    """Rotate pairs of features: neighbours where interleaved, else feature i and i + R / 2."""
    cos, sin = tables
    first, second = (x[..., 0::2], x[..., 1::2]) if is_interleaved else x.chunk(2, dim=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if is_interleaved:
        return torch.stack([real, imaginary], dim=-1).flatten(-2)
    return torch.cat([real, imaginary], dim=-1)
