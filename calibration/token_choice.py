"""Which tokens of a text to calibrate on.

Source: ``token_scores``: Qin et al., ssToken: Self-modulated and Semantic-aware Token Selection
for LLM Fine-tuning, arXiv:2510.18250; as in jianke0604/ssToken: tokens that were learned and that
look at the prompt. ``neighbour_scores``: the second stage of Q-Tuning (the pages of
Q-tuning/Q-tuning and gszfwsb/Q-tuning), which keeps the top of the scores by its formula and speaks
of removing noise in its prose; the formula is followed. Both select tokens for training; a choice
for calibration made with them is not those methods.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]

_TINY = 1e-8


def token_losses(logits: NDArray[Any], labels: NDArray[np.int64]) -> Vector:
    """Cross-entropy of each token given those before it, (S, V) and (S,) -> (S,).

    The first token and tokens with a negative label have loss 0.
    """
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=1, keepdims=True)
    log_probabilities = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    losses = np.zeros(len(labels))
    scored = np.flatnonzero(labels[1:] >= 0) + 1
    losses[scored] = -log_probabilities[scored - 1, labels[scored]]
    return losses


def token_scores(
    learned: Vector, attention: NDArray[Any], is_prompt: NDArray[np.bool_], ratio: float
) -> Vector:
    """Score the tokens of the response, in order.

    Args:
        learned: (S,) loss before minus loss now.
        attention: (S, S) mean over heads of one layer, rows are queries.
        is_prompt: (S,) bool.
        ratio: weight of ``learned`` (spread over 0 to 1) against attention to the prompt.
    """
    gain = np.asarray(learned, dtype=np.float64)[~is_prompt]
    gain = (gain - gain.min()) / (gain.max() - gain.min() + _TINY)
    to_prompt = np.asarray(attention, np.float64)[np.ix_(~is_prompt, is_prompt)].sum(axis=1)
    scores: Vector = ratio * gain + (1 - ratio) * to_prompt
    return scores


def neighbour_scores(losses: NDArray[Any], share: float) -> Vector:
    """Perplexity of each token, and of those beside it, (S,) -> (S,).

    Args:
        losses: of the tokens; a token without a prediction, the first, has perplexity 0 here.
        share: of the neighbours.
    """
    perplexity = np.exp(np.asarray(losses, dtype=np.float64))
    perplexity[:1] = 0.0
    around = np.zeros(len(perplexity))
    around[1:] += perplexity[:-1]
    around[:-1] += perplexity[1:]
    scores: Vector = (1 - share) * perplexity + share * around
    return scores


def best_share(scores: Vector, share: float) -> NDArray[np.int64]:
    """Positions of the best ``share`` of scores, rounded up, ascending."""
    count = math.ceil(share * len(scores))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


__all__ = ["best_share", "neighbour_scores", "token_losses", "token_scores"]
