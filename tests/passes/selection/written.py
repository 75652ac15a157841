"""Attention as models write it by hand: queries and values (B, H, N, Dh), keys (B, N, H, Dh)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from tests.passes.selection.sizes import DH, H

if TYPE_CHECKING:
    from tests.passes.selection.models import Writer

_SCALE = 1 / np.sqrt(DH)
_BUCKETS = 3
_TALKING = 3
"""Heads at the softmax of talking heads, more than there are queries."""

Form = Callable[["Writer", str, str, str, str], str]


def _joined(w: Writer, x: str) -> str:
    """(B, H, N, Dh) -> (B * H, N, Dh)."""
    target = w.op("Concat", w.const([-1]), w.size(x, 2), w.const([DH]), axis=0)
    return w.op("Reshape", x, target)


def _apart(w: Writer, x: str, like: str) -> str:
    """(B * H, ...) -> (B, H, ...)."""
    rest = [w.size(x, 1), w.size(x, 2)]
    return w.op("Reshape", x, w.op("Concat", w.size(like, 0), w.const([H]), *rest, axis=0))


def _parts(w: Writer, q: str, k: str, v: str) -> tuple[str, str, str]:
    k = w.op("Transpose", k, perm=[0, 2, 1, 3])
    q, k, v = (_joined(w, x) for x in (q, k, v))
    return q, w.op("Transpose", k, perm=[0, 2, 1]), v


def merged(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    """torch.baddbmm of a bias (B * H, 1, N) made from the mask; heads apart at the softmax."""
    left, right, values = _parts(w, q, k, v)
    s = w.op("Mul", w.op("MatMul", left, right), w.number(_SCALE))
    at = w.op("CumSum", "mask", w.const(1)) if mask else ""
    if at:
        rows = w.op("Cast", w.op("Unsqueeze", at, w.const([1])), to=w.kind)
        slopes = w.const(np.array([[-0.5], [-0.1]]), np.float32)
        bias = w.op("Mul", slopes, rows)
        target = w.op("Concat", w.const([-1, 1]), w.size(bias, 2), axis=0)
        s = w.op("Add", s, w.op("Reshape", bias, target))
    p = w.op("Softmax", w.masked(_apart(w, s, q), mask), axis=-1)
    n = w.size(p, 2)
    p = w.op("Reshape", p, w.op("Concat", w.const([-1]), n, n, axis=0))
    return _apart(w, w.op("MatMul", p, values), q)


def folded(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    """nn.MultiheadAttention: heads never apart, the mask (B * H, 1, N) repeated for them."""
    left, right, values = _parts(w, q, k, v)
    s = w.op("MatMul", w.op("Mul", left, w.number(_SCALE)), right)
    if mask:
        low = w.op("Where", mask, w.number(0.0), w.number(w.low))
        each = w.op("Expand", low, w.const([1, H, 1, 1]))
        target = w.op("Concat", w.const([-1, 1]), w.size(each, 3), axis=0)
        s = w.op("Add", w.op("Reshape", each, target), s)
    return _apart(w, w.op("MatMul", w.op("Softmax", s, axis=-1), values), q)


def einsum(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    """Keys as the projection gives them, values turned, both products Einsums."""
    v = w.op("Transpose", v, perm=[0, 2, 1, 3])
    s = w.op("Einsum", k, q, equation="bmhd, bhnd -> bhnm")
    p = w.op("Softmax", w.masked(w.op("Mul", s, w.number(_SCALE)), mask), axis=-1)
    return w.op("Einsum", p, v, equation="bhnm,bmhd->bhnd")


def disentangled(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    """Scores of tokens against relative positions, gathered by position, both ways."""
    left, right, values = _parts(w, q, k, v)
    s = w.op("MatMul", left, w.op("Mul", right, w.number(_SCALE)))
    last = w.op("Squeeze", w.size(q, 2))
    at = w.op("Range", w.const(0), last, w.const(1))
    apart = w.op("Sub", w.op("Unsqueeze", at, w.const([1])), at)
    place = w.op("Add", w.op("Clip", apart, w.const(1 - _BUCKETS), w.const(_BUCKETS - 1)), _two(w))
    n = w.size(q, 2)
    each = w.op("Concat", w.op("Mul", w.size(q, 0), w.const([H])), n, n, axis=0)
    place = w.op("Expand", w.op("Unsqueeze", place, w.const([0])), each)
    table = w.weight(f"{w.scope}.places", DH, 2 * _BUCKETS - 1)
    to_place = w.op("GatherElements", w.op("MatMul", left, table), place, axis=-1)
    keys = w.op("Transpose", right, perm=[0, 2, 1])
    to_token = w.op("GatherElements", w.op("MatMul", keys, table), place, axis=-1)
    turned = w.op("Transpose", to_token, perm=[0, 2, 1])
    s = _apart(w, w.op("Add", s, w.op("Add", to_place, turned)), q)
    p = w.op("Softmax", w.masked(s, mask), axis=-1)
    n = w.size(p, 2)
    p = w.op("Reshape", p, w.op("Concat", w.const([-1]), n, n, axis=0))
    return _apart(w, w.op("MatMul", p, values), q)


def _two(w: Writer) -> str:
    return w.const(_BUCKETS - 1)


def _talking(mix: Callable[[Writer, str, str, tuple[int, int], bool], str]) -> Form:
    """Talking heads: three of them at the softmax, mixed there and back."""

    def form(w: Writer, q: str, k: str, v: str, mask: str) -> str:
        turned = w.op("Transpose", k, perm=[0, 2, 3, 1])
        s = w.op("Mul", w.op("MatMul", q, turned), w.number(_SCALE))
        s = mix(w, s, f"{w.scope}.before", (H, _TALKING), True)
        p = w.op("Softmax", w.masked(s, mask), axis=-1)
        p = mix(w, p, f"{w.scope}.behind", (_TALKING, H), w.variant.guard)
        w.names[f"weights.{w.scope.split('.')[2]}"] = p
        return w.op("MatMul", p, v)

    return form


def _by_linear(w: Writer, x: str, name: str, sizes: tuple[int, int], biased: bool) -> str:
    """nn.Linear over the last axis, as torch writes it."""
    x = w.op("Transpose", x, perm=[0, 2, 3, 1])
    x = w.op("MatMul", x, w.weight(f"{name}.weight", *sizes))
    if biased:
        x = w.op("Add", x, w.weight(f"{name}.bias", sizes[1]))
    return w.op("Transpose", x, perm=[0, 3, 1, 2])


def _by_matrix(w: Writer, x: str, name: str, sizes: tuple[int, int], biased: bool) -> str:
    """A matrix from the left, heads as the last axis but one."""
    x = w.op("Transpose", x, perm=[0, 2, 1, 3])
    x = w.op("MatMul", w.weight(f"{name}.weight", *reversed(sizes)), x)
    if biased:
        x = w.op("Add", w.weight(f"{name}.bias", sizes[1], 1), x)
    return w.op("Transpose", x, perm=[0, 2, 1, 3])


def _by_gemm(w: Writer, x: str, name: str, sizes: tuple[int, int], biased: bool) -> str:
    """Gemm, for which all axes but that of heads are made one."""
    x = w.op("Transpose", x, perm=[0, 2, 3, 1])
    target = w.op("Concat", w.size(x, 0), w.size(x, 1), w.size(x, 2), w.const([sizes[1]]), axis=0)
    x = w.op("Reshape", x, w.const([-1, sizes[0]]))
    bias = [w.weight(f"{name}.bias", sizes[1])] if biased else []
    weight = w.weight(f"{name}.weight", *reversed(sizes))
    x = w.op("Gemm", x, weight, *bias, transB=1, alpha=0.5, beta=2.0)
    return w.op("Transpose", w.op("Reshape", x, target), perm=[0, 3, 1, 2])


def _by_einsum(w: Writer, x: str, name: str, sizes: tuple[int, int], biased: bool) -> str:
    """The paper's own spelling; the bias has one number per head."""
    made = w.op("Einsum", w.weight(f"{name}.weight", *sizes), x, equation="hg,bhij->bgij")
    return w.op("Add", made, w.weight(f"{name}.bias", sizes[1], 1, 1)) if biased else made


def _by_conv(w: Writer, x: str, name: str, sizes: tuple[int, int], biased: bool) -> str:
    """A convolution with a kernel of size 1: heads are its channels."""
    weight = w.weight(f"{name}.weight", *reversed(sizes), 1, 1)
    return w.op("Conv", x, weight, *([w.weight(f"{name}.bias", sizes[1])] if biased else []))


WRITTEN: dict[str, Form] = {
    "merged": merged,
    "folded": folded,
    "einsum": einsum,
    "disentangled": disentangled,
    "talking": _talking(_by_linear),
    "talking_matrix": _talking(_by_matrix),
    "talking_gemm": _talking(_by_gemm),
    "talking_einsum": _talking(_by_einsum),
    "talking_conv": _talking(_by_conv),
}

__all__ = ["WRITTEN"]
