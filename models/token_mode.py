"""Run a module at full length while chosen tokens count for nothing.

A dropped token keeps its row in every tensor. It is taken out where rows meet: as a key
of attention, and in sums, means, maxima and softmaxes over the tokens.
"""

# ruff: noqa: ANN401 (torch functions are passed on with whatever they were called with)

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secateur.errors import PreconditionError

_Function = Callable[..., Any]


@dataclass(slots=True)
class Attention:
    """What one attention block was seen to read."""

    query: Tensor
    """(B, H, N, Dh)"""
    key: Tensor
    """(B, Hkv, N, Dh)"""
    value: Tensor | None
    """(B, Hkv, N, Dh); None until the product with the probabilities was seen."""
    probabilities: Tensor
    """(B, H, N, N); rows sum to 1 over the keys that count, and are 0 without any.

    Where heads are mixed behind the softmax, what came of that: the weights of the values.
    """
    visible: Tensor
    """(B, N) keys that at least one query may look at."""


class TokenMode(TorchFunctionMode):
    """Hides the tokens outside ``alive`` from everything that combines tokens."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.alive: Tensor | None = None
        """(B, N) bool; None while every token counts."""
        self.prefix = 0
        """Leading tokens that were never dropped: reductions may leave them out."""
        self.seen: Attention | None = None
        """The last attention block that ran."""
        self.blocks: list[Attention] = []
        """All attention blocks that ran, in their order."""
        self.product: tuple[Tensor, Tensor, Tensor] | None = None
        """Left, right and result of the last product that looks like q k^T."""
        self.mixed: Tensor | None = None
        """What the last attention's heads were mixed to behind its softmax."""
        self.joined: dict[int, Tensor] = {}
        """By length: ``alive`` with what a concatenation put beside the tokens, which counts."""
        self.pointed: dict[int, list[Tensor]] = {}
        """By N: (B,) positions at which the module read one token of each sample behind a drop."""
        self.parts: list[tuple[Tensor, int, int]] = []
        """What was joined along axis 1, with how many rows before and behind it."""
        self.paused = False
        """True while the reference itself computes."""

    def __torch_function__(
        self,
        func: _Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Route the functions that combine tokens to their handler, run all others."""
        handler = _HANDLERS.get(func)
        if handler is None or self.paused:
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def alive_keys(self, scores: Tensor) -> Tensor | None:
        """Return ``alive`` shaped to broadcast over (..., Nq, N) scores.

        None before a drop and where the last axis holds other things than the tokens.
        The leading axis is B, or B*H where heads are folded into the batch.
        """
        leading, n_keys = scores.shape[0], scores.shape[-1]
        alive = self._alive_among(n_keys)
        if alive is None or leading % self.batch:
            return None
        rows = alive.repeat_interleave(leading // self.batch, dim=0)
        return rows.reshape(leading, *[1] * (scores.dim() - 2), n_keys)

    def alive_rows(self, x: Tensor, axis: int) -> Tensor | None:
        """Return ``alive`` shaped to broadcast over ``x``, (B, N, ...) reduced over axis 1.

        A reduction may skip leading tokens, as ``hidden[:, 1:].mean(1)`` does. None where
        the axis holds other things than the tokens.
        """
        if self.alive is None or axis != 1 or x.dim() > 3 or x.shape[0] != self.batch:
            return None
        alive = self.joined.get(x.shape[1], self.alive)
        skipped = alive.shape[1] - x.shape[1]
        is_mask = x.dim() == 2 and bool(((x == 0) | (x == 1)).all())
        if not 0 <= skipped <= self.prefix or (x.dim() == 2 and not is_mask):
            return None
        rows = alive[:, skipped:]
        return rows if x.dim() == 2 else rows[:, :, None]

    def join(self, parts: Sequence[Tensor], axis: int) -> None:
        """Note that others stand beside the tokens, such as a class token that comes late."""
        if axis == 1 and all(x.dim() == 3 for x in parts):
            lengths = [x.shape[1] for x in parts]
            for i, part in enumerate(parts):
                self.parts.append((part, sum(lengths[:i]), sum(lengths[i + 1 :])))
        if self.alive is None or axis != 1 or any(x.dim() != 3 for x in parts):
            return
        is_tokens = [x.shape[:2] == self.alive.shape for x in parts]
        if sum(is_tokens) == 1:
            rows = [
                self.alive if mine else self.alive.new_ones(x.shape[:2])
                for x, mine in zip(parts, is_tokens, strict=True)
            ]
            joined = torch.cat([row.expand(self.batch, -1) for row in rows], dim=1)
            if joined.shape[1] != self.alive.shape[1]:
                self.joined[joined.shape[1]] = joined

    def _alive_among(self, n_keys: int) -> Tensor | None:
        if self.alive is None or n_keys == self.alive.shape[1]:
            return self.alive
        return self.joined.get(n_keys)


def _heads(x: Tensor, batch: int) -> Tensor:
    """(B, H, N, D) stays; (B*H, N, D) is unfolded."""
    return x if x.dim() == 4 else x.reshape(batch, -1, *x.shape[-2:])


def _is_square(x: Tensor) -> bool:
    return x.dim() in {3, 4} and x.shape[-1] == x.shape[-2]


def _masked_softmax(mode: TokenMode, scores: Tensor) -> Tensor:
    """Softmax over keys, dropped ones at -inf; a row without any key is zero, not NaN."""
    alive = mode.alive_keys(scores)
    if alive is not None:
        scores = scores.masked_fill(~alive, -math.inf)
    empty = (scores == -math.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)


def _record(mode: TokenMode, qkv: tuple[Tensor, Tensor, Tensor | None], scores: Tensor) -> Tensor:
    """Remember an attention block by its (..., N, N) scores; return its probabilities."""
    probabilities = _masked_softmax(mode, scores)
    query, key, value = qkv
    seen = _heads(scores > torch.finfo(scores.dtype).min / 2, mode.batch)
    mode.seen = Attention(
        query=_heads(query, mode.batch),
        key=_heads(key, mode.batch),
        value=None if value is None else _heads(value, mode.batch),
        probabilities=_heads(probabilities, mode.batch),
        visible=seen.flatten(1, -2).any(dim=1),
    )
    mode.blocks.append(mode.seen)
    mode.mixed = None
    return probabilities


def _attention(  # noqa: PLR0913, PLR0917 (torch's own signature)
    mode: TokenMode,
    _func: _Function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention written out."""
    keys, values = key, value
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        keys, values = (x.repeat_interleave(repeats, dim=-3) for x in (key, value))
    scores = query @ keys.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    if not _is_square(scores):
        return _masked_softmax(mode, scores) @ values
    return _record(mode, (query, key, value), scores) @ values


def _softmax(
    mode: TokenMode, func: _Function, x: Tensor, dim: int | None = None, **kwargs: Any
) -> Tensor:
    """Attention probabilities, or a softmax that pools over the tokens."""
    kwargs = {name: value for name, value in kwargs.items() if name != "_stacklevel"}
    axis = x.dim() - 1 if dim is None else dim % x.dim()
    if axis == x.dim() - 1 and x.dim() >= 3:
        x = x.to(kwargs.get("dtype") or x.dtype)
        product = mode.product
        if product is None or not _is_square(x) or not _is_one(product[2], x):
            return _masked_softmax(mode, x)
        left, right, _ = product
        return _record(mode, (left, right.transpose(-2, -1), None), x)
    alive = mode.alive_rows(x, axis) if x.dim() == 3 else None
    if alive is not None:
        x = x.masked_fill(~alive, -math.inf)
    return torch.softmax(x, dim=axis, **kwargs)


def _product(mode: TokenMode, func: _Function, left: Tensor, right: Tensor) -> Tensor:
    """Note q k^T, and the values behind the probabilities."""
    seen = mode.seen
    if seen is not None and seen.value is None and _is_mixed(mode, left):
        alive = mode.alive_keys(left)  # a bias of mixed heads weighs what was masked
        left = left if alive is None else left.masked_fill(~alive, 0.0)
        seen.probabilities = _heads(left, mode.batch)
    out: Tensor = func(left, right)
    if min(left.dim(), right.dim()) < 3:
        _note_mixing(mode, (left, right), out)
    elif _is_square(out) and _is_token_product(mode, out):
        mode.product = (left, right, out)
    if seen is not None and seen.value is None and _same_data(left, seen.probabilities):
        seen.value = _heads(right, mode.batch)
    return out


def _mixing(mode: TokenMode, func: _Function, *args: Any, **kwargs: Any) -> Any:
    """A function of the weights of attention that may mix their heads."""
    out = func(*args, **kwargs)
    if isinstance(out, Tensor):
        _note_mixing(mode, (x for x in args if isinstance(x, Tensor)), out)
    return out


def _note_mixing(mode: TokenMode, tensors: Iterable[Tensor], out: Tensor) -> None:
    seen = mode.seen
    if seen is None or seen.value is not None:
        return
    here = seen.probabilities if mode.mixed is None else mode.mixed
    if any(_same_data(x, here) for x in tensors):
        mode.mixed = out


def _is_mixed(mode: TokenMode, left: Tensor) -> bool:
    return mode.mixed is not None and _same_data(left, mode.mixed) and _is_square(left)


def _is_token_product(mode: TokenMode, out: Tensor) -> bool:
    return mode.alive is None or out.shape[-1] == mode.alive.shape[1]


def _is_one(product: Tensor, scores: Tensor) -> bool:
    """Tell whether scores have the shape of a product, heads folded into the batch or not."""
    if product.dim() == scores.dim():
        return product.shape == scores.shape
    return product.numel() == scores.numel() and product.shape[-2:] == scores.shape[-2:]


def _same_data(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def _biased_product(
    mode: TokenMode,
    func: _Function,
    input: Tensor,  # noqa: A002
    batch1: Tensor,
    batch2: Tensor,
    **kwargs: Any,
) -> Tensor:
    """``torch.baddbmm``, which nn.MultiheadAttention uses to add its mask, or BLOOM its bias."""
    left, right = batch1, batch2
    out: Tensor = func(input, left, right, **kwargs)
    if _is_square(out):
        mode.product = (left, right, out)
    return out


def _multi_head(mode: TokenMode, func: _Function, *args: Any, **kwargs: Any) -> Any:
    """Look inside ``F.multi_head_attention_forward``, which would hide its attention."""
    with _overridable(), mode:
        return func(*args, **kwargs)


@contextmanager
def _overridable() -> Iterator[None]:
    """Let torch.nn.functional run its own body although a mode is active."""
    module = cast(Any, F)
    asked = module.has_torch_function
    module.has_torch_function = lambda _: False
    try:
        yield
    finally:
        module.has_torch_function = asked


def _axis(x: Tensor, dim: object) -> int | None:
    """Return the one reduced axis, None for several or all."""
    if isinstance(dim, (tuple, list)):
        dim = dim[0] if len(dim) == 1 else None
    return dim % x.dim() if isinstance(dim, int) else None


def _mean(
    mode: TokenMode,
    func: _Function,
    x: Tensor,
    dim: Any = None,
    keepdim: bool = False,
    **kwargs: Any,
) -> Any:
    """Mean over the tokens that count."""
    axis = _axis(x, dim)
    alive = None if axis is None else mode.alive_rows(x, axis)
    if alive is None:
        reduced = {} if dim is None else {"dim": dim, "keepdim": keepdim}
        return func(x, **reduced, **kwargs)
    total = x.masked_fill(~alive, 0.0).sum(dim=1, keepdim=keepdim, **kwargs)
    n_alive = alive.sum(dim=1).reshape(-1, *[1] * (total.dim() - 1))
    return total / n_alive


def _sum(mode: TokenMode, func: _Function, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Sum over the tokens that count."""
    return _filled(mode, func, 0.0, x, *args, **kwargs)


def _max(mode: TokenMode, func: _Function, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Maximum over the tokens that count."""
    return _filled(mode, func, -math.inf, x, *args, **kwargs)


def _filled(
    mode: TokenMode, func: _Function, neutral: float, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    dim = kwargs.get("dim", args[0] if args else None)
    axis = _axis(x, dim)
    alive = None if axis is None else mode.alive_rows(x, axis)
    return func(x if alive is None else x.masked_fill(~alive, neutral), *args, **kwargs)


def _concatenated(
    mode: TokenMode, func: _Function, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any
) -> Tensor:
    """Others may join the tokens."""
    out: Tensor = func(tensors, dim, **kwargs)
    mode.join(tensors, dim % out.dim())
    return out


def _refused(mode: TokenMode, func: _Function, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Functions that read neighbouring tokens have no meaning once tokens are dropped."""
    if mode.alive is not None and x.dim() == 3 and x.shape[-1] == mode.alive.shape[1]:
        raise PreconditionError(
            f"{getattr(func, '__name__', func)} over tokens that were dropped",
            got=f"input of shape {tuple(x.shape)}",
            next_step="restore the tokens before it, or choose an earlier layer to compare",
        )
    return func(x, *args, **kwargs)


def _read(mode: TokenMode, func: _Function, x: Tensor, index: Any) -> Tensor:
    """Note ``hidden[batch, position]``: these tokens must not be dropped."""
    if mode.alive is not None and x.dim() == 3 and x.shape[:2] == mode.alive.shape:
        position = _position(index, mode.batch)
        known = mode.pointed.setdefault(x.shape[1], [])
        if position is not None and not any(position.equal(other) for other in known):
            known.append(position)
    row: Tensor = func(x, index)
    return row


def _position(index: object, batch: int) -> Tensor | None:
    """Return the (B,) positions of an index that takes one token of each sample in turn."""
    if not isinstance(index, tuple) or len(index) != 2:
        return None
    rows, position = index
    if not isinstance(rows, Tensor) or not isinstance(position, Tensor):
        return None
    is_each = rows.shape == position.shape == (batch,) and rows.tolist() == list(range(batch))
    return position.long() if is_each and position.dtype != torch.bool else None


_TABLE: tuple[tuple[_Function, tuple[_Function, ...]], ...] = (
    (_attention, (F.scaled_dot_product_attention,)),
    (_softmax, (torch.softmax, F.softmax, Tensor.softmax)),
    (_product, (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)),
    (_biased_product, (torch.baddbmm, Tensor.baddbmm)),
    (_multi_head, (F.multi_head_attention_forward,)),
    (_mixing, (F.linear, F.conv2d, torch.conv2d, torch.einsum)),
    (_mean, (torch.mean, Tensor.mean)),
    (_sum, (torch.sum, Tensor.sum)),
    (_max, (torch.max, Tensor.max, torch.amax, Tensor.amax)),
    (_concatenated, (torch.cat, torch.concat)),
    (_read, (Tensor.__getitem__,)),
    (_refused, (F.conv1d, F.adaptive_avg_pool1d, F.avg_pool1d, F.max_pool1d)),
)
_HANDLERS: dict[_Function, _Function] = {
    func: handler for handler, functions in _TABLE for func in functions
}

__all__ = ["Attention", "TokenMode"]
