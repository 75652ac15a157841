"""A stack of layers in which every layer may drop and merge tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from secateur.models.madtp.attention import Attended
from secateur.models.madtp.blocks import Block, Contexts
from secateur.models.madtp.budget import Budget, Scheduled
from secateur.models.madtp.concepts import alignment_features, concept_scores
from secateur.models.madtp.cut import Cut, Evidence, Order, Tokens, countable, cut
from secateur.models.madtp.rules import Rule, budget_of, judged


@dataclass(frozen=True, slots=True)
class Pruning:
    """How a branch is pruned; the default leaves it dense."""

    temperature: Tensor | float = 0.0
    """Larger prunes more; 0 does not prune. Under another rule than MADTP's: its strength."""
    coupled: bool = False
    """Counts of the batch's largest, as published, or (default) each sample's own."""
    counts: Tensor | None = None
    """(layers,) int64: keep so many tokens, whatever the temperature says."""
    by: Rule = "madtp"

    def budget(self, layer: int, floor: Tensor | int = 0) -> Budget | None:
        """The budget of a layer; None where it does not prune."""
        if self.counts is not None:
            return Scheduled(self.counts[layer])
        if not isinstance(self.temperature, Tensor) and self.temperature == 0:
            return None
        return budget_of(self.by, self.temperature, coupled=self.coupled, floor=floor)


DENSE = Pruning()


@dataclass(frozen=True, slots=True)
class Branch:
    """What of a model a stack is made of."""

    layers: Sequence[nn.Module]
    block: Block
    concepts: Tensor
    """(T, Ds)."""
    queries: Sequence[nn.Module] = ()
    """Per layer the projection of tokens to the width of the concepts; empty: none."""
    order: Order = "importance"
    """Of the kept tokens; matters only under a causal mask."""


@dataclass(frozen=True, slots=True)
class Start:
    """What goes into a stack."""

    hidden: Tensor
    """(B, 1 + N, D), position 0 is never pruned."""
    mask: Tensor | None = None
    """(B, 1 + N) bool."""
    contexts: Contexts = ()
    floor: Tensor | int = 0
    """Layers that would leave this many tokens or fewer do not prune; a number or (B,)."""
    end: Tensor | None = None
    """(B,) int64, position of the end-of-text token, which is followed through the layers."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What comes out of a stack."""

    hidden: Tensor
    """(B, 1 + K, D)."""
    mask: Tensor | None
    """(B, 1 + K) bool; None when every token counts."""
    features: Tensor | None
    """(B, T, Ds) alignment features summed over layers, where they were asked for."""
    end: Tensor | None
    """(B,) where the end-of-text token is now."""
    cuts: tuple[Cut, ...] = field(default=())
    """Of the layers that had a budget."""


def encode(branch: Branch, start: Start, pruning: Pruning, *, aligned: bool = False) -> Encoded:
    """Run the stack.

    Args:
        branch: layers, concepts.
        start: tokens.
        pruning: the same for all layers.
        aligned: also return the alignment features, for the training loss.
    """
    at = start
    features: list[Tensor] = []
    cuts: list[Cut] = []
    for i, layer in enumerate(branch.layers):
        budget = pruning.budget(i, start.floor)
        before = branch.queries[i](at.hidden) if branch.queries else at.hidden
        hidden, attended = branch.block.attend(layer, at.hidden, at.mask)
        at = replace(at, hidden=hidden)
        if aligned:
            features.append(_features(branch, before))
        if budget is not None:
            wants = pruning.by == "madtp"
            scores = concept_scores(before, branch.concepts) if wants else None
            at, made = _prune(at, (scores, attended, budget), pruning, branch.order)
            cuts.append(made)
        at = replace(at, hidden=branch.block.finish(layer, at.hidden, start.contexts))
    seen = torch.stack(features).sum(dim=0) if features else None
    return Encoded(at.hidden, at.mask, seen, at.end, tuple(cuts))


def _features(branch: Branch, queries: Tensor) -> Tensor:
    behind_first = queries[:, 1:]
    return alignment_features(behind_first, concept_scores(behind_first, branch.concepts))


def _prune(
    at: Start, seen: tuple[Tensor | None, Attended, Budget], pruning: Pruning, order: Order
) -> tuple[Start, Cut]:
    """Cut the tokens; follow the mask and the end of the text."""
    (scores, attended, budget), coupled = seen, pruning.coupled
    tokens, evidence = judge(at, (scores, attended), pruning)
    made = cut(tokens, evidence, budget, coupled=coupled, order=order)
    now = followed(made, evidence)
    end = at.end if now is None else now
    return replace(at, hidden=made.tokens.hidden, mask=made.tokens.mask, end=end), made


def judge(
    at: Start, seen: tuple[Tensor | None, Attended], pruning: Pruning
) -> tuple[Tokens, Evidence]:
    """What a layer cuts, and what it knows of it."""
    scores, attended = seen
    tokens = Tokens(at.hidden, at.mask)
    alive = countable(tokens, coupled=pruning.coupled)
    matters = judged(pruning.by, attended, scores, alive)
    return tokens, Evidence(scores, matters, alive, None if pruning.coupled else at.end)


def followed(made: Cut, evidence: Evidence) -> Tensor | None:
    """Where the token that always stays is now, (B,)."""
    if evidence.always is None:
        return None
    return (made.index == evidence.always[:, None]).long().argmax(dim=1)


__all__ = ["DENSE", "Branch", "Encoded", "Pruning", "Start", "encode", "followed", "judge"]
