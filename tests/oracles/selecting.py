"""A selector on arrays, both ways, down to the positions that it keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from tests.oracles.onnx_form import both_ways
from torch import Tensor

from secateur.models.selectors import resolve_selector

Option = bool | int | float | str


@dataclass(frozen=True)
class Kept:
    """What one of the two forms decided.

    Attributes:
        scores: (B, N - protected), behind the protected tokens.
        count: (B,), how many of them stay.
        by_score: whether kept tokens stand by descending score.
    """

    scores: np.ndarray
    count: np.ndarray
    by_score: bool

    def positions(self, sample: int = 0) -> np.ndarray:
        """Kept positions, counted from behind the protected tokens."""
        best = np.argsort(-self.scores[sample], kind="stable")[: self.count[sample]]
        return best if self.by_score else np.sort(best)


def select_both_ways(
    name: str,
    signals: Mapping[str, np.ndarray],
    n_kept: int,
    *,
    protected: int = 0,
    fixed: tuple[str, ...] = ("heads", "query_heads", "head_dim", "width", "layers"),
    **options: Option,
) -> tuple[Kept, Kept]:
    """Keep ``n_kept`` tokens behind the protected ones, in PyTorch and in ONNX Runtime.

    Args:
        name: of the selector.
        signals: arrays by name; all tokens are valid where ``valid`` is not among them.
        n_kept: the budget of every sample.
        protected: leading tokens that stay.
        fixed: axes whose size the graph keeps; the others are dynamic.
        options: of the selector.
    """
    chosen = resolve_selector(name, options)
    axes = {key: chosen.axes(key) for key in chosen.signals}
    first = next(key for key in axes if key in signals)
    sizes = dict(zip(axes[first], signals[first].shape, strict=True))
    alive = np.ones((sizes["batch"], sizes["tokens"]), dtype=bool)
    inputs = {key: {"valid": alive, **signals}[key] for key in axes}
    inputs["count"] = np.full(sizes["batch"], n_kept + protected)
    dynamic = {
        key: tuple("" if dim in fixed else dim for dim in dims)
        for key, dims in {**axes, "count": ("batch",)}.items()
    }
    decide = _decision(name, tuple(sorted(options.items())), protected)
    found = both_ways(decide, inputs, dynamic)
    by_score = "by_score" in found[0]
    direct, made = (
        Kept(one["score"][:, protected:], one["count_kept"] - protected, by_score) for one in found
    )
    np.testing.assert_allclose(made.scores, direct.scores, rtol=1e-5, atol=1e-6)
    return direct, made


@functools.cache
def _decision(
    name: str, options: tuple[tuple[str, Option], ...], protected: int
) -> Callable[..., dict[str, Tensor]]:
    """One function per method and options, so that its graph is exported once."""
    chosen = resolve_selector(name, dict(options))

    def decide(count: Tensor, **signals: Tensor) -> dict[str, Tensor]:
        made = chosen.decide(signals, count, protected)
        found = {"score": made.score, "count_kept": count if made.count is None else made.count}
        if made.order == "score":
            found["by_score"] = made.score.amax(dim=1)
        return found

    return decide


__all__ = ["Kept", "Option", "select_both_ways"]
