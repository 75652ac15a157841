"""Selecting tokens inside a model's own forward, in a way that exports.

In PyTorch a call really drops tokens. Under ``torch.export`` it leaves the tokens alone and
one marker node, ``secateur::SelectTokens``, in the graph; the graph passes put the same cut
there that they make in a model that knows nothing of selection, and gather by themselves
whatever else carries the token axis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models import signals as signal_builders
from secateur.models.selectors import Selection, Selector, resolve_selector


@dataclass(frozen=True, slots=True)
class Keep:
    """How many tokens stay: a share of each sample's valid tokens, in thousandths."""

    permille: int
    protected: int = 1
    """Leading tokens (class, distillation) that always stay."""

    def __post_init__(self) -> None:
        if not 1 <= self.permille <= 1000:
            raise BadInputError(
                "keep is not a share of the tokens",
                got=f"{self.permille} permille",
                wanted="more than 0, at most 1 (1000 permille)",
            )
        if self.protected < 0:
            raise BadInputError("a negative number of protected tokens", got=str(self.protected))


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Which tokens of each sample were kept.

    ``index`` (B, K) int64 holds original positions in the first ``count[b]`` slots, ascending
    or by descending score as the method says; ``valid`` (B, K) is True there and False in the
    slots that only fill the rectangle.
    """

    index: Tensor
    valid: Tensor

    def gather(self, tensor: Tensor, axis: int = 1) -> Tensor:
        """Return the kept rows of ``axis`` of a tensor whose first axis is the batch."""
        shape = [1] * tensor.dim()
        shape[0], shape[axis] = self.index.shape
        sizes = list(tensor.shape)
        sizes[axis] = self.index.shape[1]
        return tensor.gather(axis, self.index.reshape(shape).expand(sizes))


@torch.library.custom_op("secateur::select_tokens", mutates_args=())
def _marker(  # noqa: PLR0913, PLR0917 - an operator's arguments are its attributes
    hidden: Tensor, by: str, site: str, permille: int, protected: int, options: str
) -> Tensor:
    """Stand for a selection in a traced program: the tokens come out as they went in."""
    del by, site, permille, protected, options
    return hidden.clone()


@_marker.register_fake
def _marker_shape(  # noqa: PLR0913, PLR0917
    hidden: Tensor, by: str, site: str, permille: int, protected: int, options: str
) -> Tensor:
    del by, site, permille, protected, options
    return torch.empty_like(hidden)


def select_tokens(
    hidden: Tensor,
    signals: Mapping[str, Tensor],
    *,
    by: str | Selector,
    site: str,
    keep: float | Keep,
) -> Tensor:
    """Keep the best tokens of ``hidden``.

    Call it on the residual stream at the end of the block ``site``, which is where the passes
    cut a model by default. All samples have to keep equally many tokens; with padding, use
    ``select_tokens_with``.

    Args:
        hidden: (B, N, D).
        signals: what the selector reads, by name; ``q``, ``k``, ``v`` (B, H, N, Dh) of the
            site's attention are enough for every built-in selector.
        by: name of a selector, or ``package.module:function``; a ``Selector`` where options
            are not left at their default.
        site: module path of the block whose attention the signals are from, e.g. ``blocks.2``.
        keep: share in (0, 1] of the tokens alive here, or a ``Keep``.

    Returns:
        (B, K, D), kept tokens in their order, merged ones behind them; (B, N, D) unchanged
        under ``torch.export``.
    """
    rows, alive = _select(hidden, signals, by=by, site=site, keep=keep)
    if alive is not None and not bool(alive.all()):
        raise BadInputError(
            "samples of one batch keep different numbers of tokens",
            where=f"site {site!r}",
            got=str(alive.sum(dim=1).tolist()),
            next_step="use select_tokens_with, and mask by the validity that it returns",
        )
    return rows


def select_tokens_with(
    hidden: Tensor,
    signals: Mapping[str, Tensor],
    *,
    by: str | Selector,
    site: str,
    keep: float | Keep,
) -> tuple[Tensor, Tensor]:
    """Keep the best tokens of padded samples; ``signals`` has to hold ``valid`` (B, N) bool.

    Returns:
        the rows (B, K, D) and their validity (B, K), K the largest count of the batch; under
        ``torch.export`` both inputs as they are. Build the attention mask from the validity.
    """
    if "valid" not in signals:
        raise BadInputError("no validity given", where=f"site {site!r}", wanted="signals['valid']")
    rows, alive = _select(hidden, signals, by=by, site=site, keep=keep)
    return rows, signals["valid"] if alive is None else alive


def _select(
    hidden: Tensor,
    signals: Mapping[str, Tensor],
    *,
    by: str | Selector,
    site: str,
    keep: float | Keep,
) -> tuple[Tensor, Tensor | None]:
    """Return the rows that go on and their validity, None where nothing was dropped yet."""
    share = keep if isinstance(keep, Keep) else Keep(round(keep * 1000))
    selector = by if isinstance(by, Selector) else resolve_selector(by)
    if torch.compiler.is_exporting():
        options = json.dumps(dict(selector.options), sort_keys=True)
        marked: Tensor = _marker(
            hidden, selector.name, site, share.permille, share.protected, options
        )
        return marked, None
    alive = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    available = {"hidden": hidden, "valid": alive, **signals}
    built = signal_builders.build(available, selector.signals)
    made = selector.decide(built, counts(available["valid"], share), share.protected)
    kept = choose(made, available["valid"], share)
    if selector.combine is None:
        return kept.gather(hidden), kept.valid
    merged = selector.merge(built, kept.index, kept.valid, share.protected)
    rows = (merged.weights @ hidden.float()).to(hidden.dtype)
    if merged.valid is not None:
        return rows, merged.valid
    n_appended = rows.shape[1] - kept.valid.shape[1]
    return rows, torch.nn.functional.pad(kept.valid, (0, n_appended), value=True)


def counts(valid: Tensor, keep: Keep) -> Tensor:
    """Return (B,) int64: how many tokens the share leaves of each sample."""
    n_valid = valid.sum(dim=1)
    share = (n_valid * keep.permille + 999) // 1000
    return torch.minimum(share.clamp(min=max(keep.protected, 1)), n_valid)


def choose(made: Selection | Tensor, valid: Tensor, keep: Keep) -> KeptTokens:
    """Return the kept positions of every sample.

    Protected tokens come first, then valid ones by score, then padding; equal scores in the
    order of their positions.

    Args:
        made: what a selector decided, or its score (B, N) alone, larger is kept.
        valid: (B, N) bool.
        keep: the share and the number of protected leading tokens.

    Raises:
        BadInputError: a score is NaN.
    """
    made = made if isinstance(made, Selection) else Selection(made)
    score = made.score
    if bool(score.isnan().any()):
        raise BadInputError(
            "a selector gave NaN scores",
            got=f"{int(score.isnan().sum())} NaN of {score.numel()}",
            next_step="check the model's weights and inputs for NaN or overflow",
        )
    n_tokens, largest = score.shape[1], torch.finfo(torch.float32).max
    first = valid.cumsum(dim=1) <= keep.protected  # the first valid ones, also behind padding
    rank = score.float().clamp(-largest, largest).masked_fill(first, torch.inf)
    rank = rank.masked_fill(~valid, -torch.inf)
    wanted = counts(valid, keep)
    if made.count is not None:
        least = torch.full_like(made.count, max(keep.protected, 1))
        wanted = torch.minimum(torch.maximum(made.count, least), valid.sum(dim=1))
    k = max(int(wanted.max()), 1)  # a batch of nothing but padding is no empty sequence
    best = rank.sort(dim=1, descending=True, stable=True).indices[:, :k]
    in_use = torch.arange(k, device=score.device) < wanted[:, None]
    if made.order == "score":
        return KeptTokens(best.masked_fill(~in_use, n_tokens - 1), in_use)
    index = best.masked_fill(~in_use, n_tokens).sort(dim=1).values
    return KeptTokens(index.clamp(max=n_tokens - 1), in_use)


__all__ = [
    "Keep",
    "KeptTokens",
    "choose",
    "counts",
    "select_tokens",
    "select_tokens_with",
]
