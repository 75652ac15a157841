"""Which tokens of the chosen samples count in statistics, as an array beside the inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from secateur.calibration.activations import TOKEN_WEIGHTS, observe
from secateur.calibration.statistics.token_weights import normalised, spread
from secateur.calibration.token_choice import (
    best_share,
    neighbour_scores,
    token_losses,
    token_scores,
)
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.sites import site_named
from secateur.recipe import LearnedTokens, UncertainTokens
from secateur.runtime.backend import Array, Arrays
from secateur.workflow.data import Samples
from secateur.workflow.sources import load_model

_BATCH = 8
_MASK = "attention_mask"
_NO_TOKENS = frozenset({_MASK, "token_type_ids", "position_ids"})
_LOWEST = 0.005
"""What the least of a response's tokens weighs, as in RSQ."""

TokenRules = LearnedTokens | UncertainTokens


@dataclass(frozen=True, slots=True)
class Weighed:
    """Samples with an array of weights, and what a bundle keeps of them."""

    samples: Samples
    record: dict[str, Any]


def weigh_tokens(
    samples: Samples, model: ir.Model, rules: TokenRules, misconceived: Sequence[bool]
) -> Weighed:
    """Give every sample the weights of its tokens, (1, N) float32; 0 at those that do not count.

    Args:
        samples: that were chosen.
        model: the dense graph, which scores the next token.
        rules: of the recipe.
        misconceived: whether the model is surely wrong about each sample, for ``q_tuning``.

    Raises:
        BadInputError: a model that scores no tokens, another vocabulary before, or a sample
            without a response.
        PreconditionError: attention probabilities that do not show.
    """
    if isinstance(rules, LearnedTokens):
        weights = list(_learned(samples, model, rules))
    else:
        weights = list(_uncertain(samples, model, rules, misconceived))
    arrays = tuple(
        {**one, TOKEN_WEIGHTS: found} for one, found in zip(samples.arrays, weights, strict=True)
    )
    padding = {**samples.padding, TOKEN_WEIGHTS: 0.0}
    counted = sum(int((found > 0).sum()) for found in weights)
    record = {
        **rules.model_dump(),
        "counted": counted,
        "of": sum(int(_real(one).sum()) for one in samples.arrays),
        "sha256": hashlib.sha256(b"".join(found.tobytes() for found in weights)).hexdigest(),
    }
    return Weighed(replace(samples, arrays=arrays, padding=padding), record)


def _learned(samples: Samples, model: ir.Model, rules: LearnedTokens) -> Iterator[Array]:
    probabilities = _probabilities(model, rules.layer)
    before = load_model(rules.before).graph
    pairs = zip(
        _runs(samples, model, (probabilities,)), _runs(samples, before), strict=True
    )  # one sample at a time
    for i, ((ids, real, now, (attention,)), (_, _, then, _)) in enumerate(pairs):
        if now.shape != then.shape:
            raise BadInputError(
                "the earlier checkpoint scores other tokens",
                where=rules.before,
                got=str(list(then.shape)),
                wanted=str(list(now.shape)),
            )
        is_prompt = np.arange(len(ids)) < rules.prompt
        if is_prompt.all():
            raise BadInputError(
                "a sample has no response behind its prompt",
                where=f"sample {i}: {samples.labels[i]!r}",
                got=f"{len(ids)} tokens, of which {rules.prompt} are the prompt",
                next_step="lower calibrate: tokens: prompt, or leave the sample out",
            )
        labels = np.where(is_prompt, -1, ids)
        learned = token_losses(then, labels) - token_losses(now, labels)
        scores = token_scores(learned, attention.mean(axis=0), is_prompt, rules.balance)
        own = np.zeros(len(ids))
        own[~is_prompt] = _weights(scores, rules)
        yield _placed(own, real)


def _weights(scores: Array, rules: LearnedTokens) -> Array:
    """(tokens of a response,) 1 at the best share and 0 elsewhere, or spread, mean 1."""
    if rules.weigh:
        weights: Array = normalised(spread(scores[None], _LOWEST, 1.0))[0]
        return weights
    kept = np.zeros(len(scores))
    kept[best_share(scores, rules.keep)] = 1.0
    return kept


def _uncertain(
    samples: Samples, model: ir.Model, rules: UncertainTokens, misconceived: Sequence[bool]
) -> Iterator[Array]:
    for wrong, (ids, real, logits, _) in zip(misconceived, _runs(samples, model), strict=True):
        kept = np.ones(len(ids))
        if wrong:
            scores = neighbour_scores(token_losses(logits, ids), rules.neighbours)
            kept = np.zeros(len(ids))
            kept[best_share(scores, rules.keep)] = 1.0
        yield _placed(kept, real)


def _placed(weights: Array, real: Array) -> Array:
    """(1, N) float32, 0 at padding."""
    found = np.zeros((1, len(real)), np.float32)
    found[0, real] = weights
    return found


_Run = tuple[Array, Array, Array, tuple[Array, ...]]


def _runs(samples: Samples, model: ir.Model, others: tuple[str, ...] = ()) -> Iterator[_Run]:
    """Of each sample its real tokens (n,), which of all are real, their scores (n, V) and others.

    The other values are (H, n, n) of the tokens that are real.
    """
    output = str(model.graph.outputs[0].name)
    name = token_input(samples) or ""
    lengths = iter(one[name].shape[1] if name else 0 for one in samples.arrays)
    for batch, seen in observe(model, [output, *others], samples.batches(_BATCH)):
        logits, ids = seen[output], batch.get(name, np.zeros(0))
        check_scores(logits, ids, output, "calibrate: tokens")
        for i, padded in enumerate(_real(batch)):
            real = padded[: next(lengths)]  # the batch is as long as its longest sample
            at = np.flatnonzero(real)
            found = tuple(seen[other][i][:, at][:, :, at] for other in others)
            yield ids[i, at], real, logits[i, at], found


def check_scores(logits: Array, ids: Array, output: str, asked: str) -> None:
    """Raise BadInputError unless a model gave a score of every word for every token."""
    if logits.ndim == 3 and logits.shape[:2] == ids.shape and ids.max() < logits.shape[2]:
        return
    raise BadInputError(
        f"{asked} needs a model that scores the next token",
        where=f"output {output!r}",
        got=f"{list(logits.shape)} for " + (f"tokens {list(ids.shape)}" if ids.size else "none"),
        wanted="(batch, tokens, vocabulary)",
        next_step="calibrate: {choose: lexrank}",
    )


def token_input(samples: Samples) -> str | None:
    """The input that holds tokens: whole numbers, (1, N)."""
    found = [
        name
        for name, array in samples.arrays[0].items()
        if array.dtype.kind in "iu" and array.ndim == 2 and name not in _NO_TOKENS
    ]
    return "input_ids" if "input_ids" in found else found[0] if len(found) == 1 else None


def _real(batch: Arrays) -> Array:
    """(B, N) bool: not padding."""
    tokens = next(array for array in batch.values() if array.ndim == 2)
    mask: Array = batch.get(_MASK, np.ones(tokens.shape)).astype(bool)
    return mask


def _probabilities(model: ir.Model, layer: str) -> str:
    """The attention (B, H, N, N) of one layer."""
    sites = find_sites(model)
    if layer:
        sites = (site_named(sites, layer),)
    blocks = [site.attention for site in sites if site.attention is not None]
    shown = [str(block.weights.name) for block in blocks if block.weights is not None]
    if not shown:
        raise PreconditionError(
            "no attention probabilities are to be seen",
            where=layer,
            got="no attention, or one fused into an Attention node",
            next_step="calibrate: {tokens: {by: q_tuning}}, or export with attention decomposed",
        )
    return shown[-1]


__all__ = ["TokenRules", "Weighed", "check_scores", "token_input", "weigh_tokens"]
