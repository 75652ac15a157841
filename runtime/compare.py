"""Comparison of values and of selections, and the one table of tolerances."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Bounds fixed before anything is compared.

    ``value`` bounds the relative error of an output, ``score`` that of a site's scores
    (times max|score|), ``cosine`` the cosine of an output with the reference from below.
    """

    value: float
    score: float
    cosine: float


TOLERANCES: dict[str, Tolerance] = {
    "float32": Tolerance(value=1e-4, score=1e-5, cosine=0.999999),
    "float16": Tolerance(value=2e-2, score=5e-3, cosine=0.999),
    "bfloat16": Tolerance(value=1e-1, score=4e-2, cosine=0.99),
    "int8": Tolerance(value=3e-1, score=1e-1, cosine=0.95),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output against its reference. ``worst`` is the index of the largest difference."""

    name: str
    relative_error: float
    p99: float
    cosine: float
    worst: tuple[int, ...]
    bound: float
    passed: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SelectionReference:
    """What the reference selected at one site, in the positions of that site.

    ``score`` (B, N) float, larger is kept; ``index`` (B, K) int64, ascending, -1 where a
    sample keeps fewer; ``valid`` (B, N) bool, False on padding.
    """

    score: Array
    index: Array
    valid: Array


@dataclass(frozen=True, slots=True)
class SelectionComparison:
    """Scores and indices of one site against the reference's, given equal tokens upstream.

    ``flips`` counts tokens kept by one side only; ``worst_margin`` is the largest difference
    in reference score across a flip, allowed below ``2 * score_bound``.
    """

    site: str
    score_error: float
    score_bound: float
    flips: int
    worst_margin: float
    passed: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)


def relative_error(got: Array, wanted: Array) -> float:
    """``max|got - wanted| / max|wanted|``; inf for NaN and for unequal infinities."""
    difference = _difference(got, wanted)
    if difference.size == 0:
        return 0.0
    worst = float(difference.max())
    scale = _scale(wanted)
    if worst == 0.0:
        return 0.0
    return worst / scale if scale > 0.0 else float("inf")


def percentile99(got: Array, wanted: Array) -> float:
    """99th percentile of ``|got - wanted|``, over ``max|wanted|``."""
    difference = _difference(got, wanted)
    scale = _scale(wanted)
    if difference.size == 0 or not difference.any():
        return 0.0
    return float(np.percentile(difference, 99)) / scale if scale > 0.0 else float("inf")


def cosine(got: Array, wanted: Array) -> float:
    """Cosine of the two arrays as vectors; 1 for two zero vectors, 0 for one, nan kept."""
    a, b = _as_float(got).ravel(), _as_float(wanted).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(a @ b) / norms


def compare(name: str, got: Array, wanted: Array, *, tolerance: Tolerance) -> Comparison:
    """Compare one output with its reference; another shape is a failed comparison."""
    if got.shape != wanted.shape:
        reason = f"shape {list(got.shape)} instead of {list(wanted.shape)}"
        nowhere = float("inf")
        return Comparison(name, nowhere, nowhere, 0.0, (), tolerance.value, False, reason)
    error, angle = relative_error(got, wanted), cosine(got, wanted)
    reasons = []
    if not error <= tolerance.value:
        reasons.append(f"relative error {error:.3g} exceeds {tolerance.value:.3g}")
    if not angle >= tolerance.cosine:
        reasons.append(f"cosine {angle:.6f} is below {tolerance.cosine}")
    return Comparison(
        name=name,
        relative_error=error,
        p99=percentile99(got, wanted),
        cosine=angle,
        worst=_worst(got, wanted),
        bound=tolerance.value,
        passed=not reasons,
        reason="; ".join(reasons),
    )


def compare_selection(
    site: str, score: Array, index: Array, *, reference: SelectionReference, bound: float
) -> SelectionComparison:
    """Compare a site's would-be scores (B, N) and indices (B, K) with the reference's.

    ``bound`` is relative: the score error may reach ``bound * max|score|`` over valid tokens
    with a finite reference score. A flip is allowed when rounding within that bound explains
    it, which is when the reference scores across it differ by less than twice the bound.
    """
    absolute = bound * _scale(reference.score[reference.valid])
    error = _score_error(score, reference)
    flips, margin, uneven = _flips(index, reference)
    reasons = []
    if not error <= absolute:
        reasons.append(f"score error {error:.3g} exceeds its bound {absolute:.3g}")
    if uneven:
        reasons.append(f"samples {uneven} keep another number of tokens than the reference")
    if margin > 0.0 and not margin < 2 * absolute:
        reasons.append(f"a flip across a margin of {margin:.3g} is not a near-tie")
    return SelectionComparison(
        site=site,
        score_error=error,
        score_bound=absolute,
        flips=flips,
        worst_margin=margin,
        passed=not reasons,
        reason="; ".join(reasons),
    )


def _worst(got: Array, wanted: Array) -> tuple[int, ...]:
    """Index of the largest difference."""
    difference = _difference(got, wanted)
    if not difference.size:
        return ()
    return tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))


def _score_error(score: Array, reference: SelectionReference) -> float:
    wanted = np.where(reference.valid, _as_float(reference.score), 0.0)
    if score.shape != wanted.shape:
        return float("inf")
    difference = _difference(np.where(reference.valid, score, 0.0), wanted)
    return float(difference.max()) if difference.size else 0.0


def _flips(index: Array, reference: SelectionReference) -> tuple[int, float, list[int]]:
    """Number of flips, largest margin across one, and the samples whose counts differ."""
    flips, worst, uneven = 0, 0.0, []
    for sample, (kept, score) in enumerate(zip(reference.index, _ranks(reference), strict=True)):
        wanted = kept[kept >= 0]
        got = _filled(index[sample], len(wanted), len(score)) if sample < len(index) else kept[:0]
        gained = np.setdiff1d(got, wanted)
        lost = np.setdiff1d(wanted, got)
        if len(got) != len(wanted) or len(gained) != len(lost):
            uneven.append(sample)
        if (gained >= len(score)).any():
            worst, gained = float("inf"), gained[gained < len(score)]
        flips += len(gained) + len(lost)
        worst = max(worst, _margin(score[lost], score[gained]))
    return flips, worst, uneven


def _ranks(reference: SelectionReference) -> Array:
    """(B, N) scores, with +inf on tokens kept whatever their score and -inf on padding."""
    kept = np.zeros(reference.valid.shape, bool)
    for sample, row in enumerate(reference.index):
        kept[sample, row[row >= 0]] = True
    outside = np.where(kept, np.inf, -np.inf)
    ranks: Array = np.where(reference.valid, _as_float(reference.score), outside)
    return ranks


def _filled(row: Array, count: int, n_tokens: int) -> Array:
    """The slots of a row that hold a token: empty ones are -1, or repeat the last position."""
    row = row[row >= 0]
    if len(row) > count and (row[count:] == n_tokens - 1).all():
        return row[:count]
    return row


def _margin(lost: Array, gained: Array) -> float:
    """Largest reference score difference between a lost and a gained token; a tie is 0."""
    if not lost.size or not gained.size:
        return 0.0
    left, right = np.broadcast_arrays(lost[:, None], gained[None, :])
    return float(_difference(left, right).max())


def _difference(got: Array, wanted: Array) -> Array:
    """``|got - wanted|`` in float64; equal infinities differ by 0, NaN differs by inf."""
    if got.shape != wanted.shape:
        raise BadInputError(
            "arrays of different shapes cannot be compared",
            got=str(list(got.shape)),
            wanted=str(list(wanted.shape)),
        )
    a, b = _as_float(got), _as_float(wanted)
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))
    result: Array = np.where(np.isnan(difference), np.inf, difference)
    return result


def _scale(wanted: Array) -> float:
    finite = np.abs(_as_float(wanted)[np.isfinite(wanted)])
    return float(finite.max()) if finite.size else 0.0


def _as_float(array: Array) -> Array:
    return np.asarray(array, dtype=np.float64)


def on_kept_rows(
    got: Array, wanted: Array, kept: Array | None, *, is_restored: bool
) -> tuple[Array, Array]:
    """Cut an output with a row per token to the rows of kept tokens, (n_kept, ...) each.

    Args:
        got: the engine's output.
        wanted: the reference's, which has a row for every token of the input.
        kept: (B, K) positions alive at the end, -1 for none; None where nothing is dropped.
        is_restored: the engine put its rows back to their places.

    Returns:
        Both as they are where the output has no row per token.
    """
    if kept is None or (got.shape == wanted.shape and not is_restored):
        return got, wanted
    is_kept = kept >= 0
    rows = is_kept.nonzero()[0], kept[is_kept]
    if is_restored and got.shape == wanted.shape:
        return got[rows], wanted[rows]
    if got.shape[:2] == kept.shape:
        return got[is_kept], wanted[rows]
    return got, wanted


__all__ = [
    "TOLERANCES",
    "Comparison",
    "SelectionComparison",
    "SelectionReference",
    "Tolerance",
    "compare",
    "compare_selection",
    "cosine",
    "on_kept_rows",
    "percentile99",
    "relative_error",
]
