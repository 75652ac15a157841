"""The parts of a MADTP model that are traced one by one.

A layer is cut where its length depends on the data: what comes before decides, what comes after
does. Both then have nothing but ordinary dynamic axes, which torch traces ten times as fast as
sizes that it cannot know, and one trace serves all layers of a branch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from secateur.models.madtp.attention import Attended
from secateur.models.madtp.blocks import Block, Context
from secateur.models.madtp.budget import Scheduled
from secateur.models.madtp.concepts import concept_scores
from secateur.models.madtp.cut import Order, Plan, Tokens, apply, plan
from secateur.models.madtp.encoder import Pruning, Start, judge
from secateur.models.madtp.rules import Rule, budget_of

Form = Literal["decoupled", "faithful", "schedule", "dense"]
"""``decoupled``: every sample its own count; ``faithful``: one count for the batch, its largest,
as published; ``schedule``: counts are an input; ``dense``: nothing is pruned."""


DECISIONS = "*.decision"
"""Modules of a graph in which tokens are judged and counted: a pattern of their paths."""


@dataclass(frozen=True, slots=True)
class How:
    """What is the same in all layers of a branch."""

    block: Block
    form: Form = "decoupled"
    rule: Rule = "madtp"
    order: Order = "importance"

    @property
    def coupled(self) -> bool:
        """As published."""
        return self.form == "faithful"


class Decision(nn.Module):
    """What a layer does with its tokens; a module of its own, so that its nodes have a scope.

    The scope is what precision asks for: the decision stays in float32, see ``DECISIONS``.
    """

    def __init__(self, concepts: Tensor, how: How) -> None:
        super().__init__()
        self.how = how
        self.concepts = nn.Parameter(concepts.detach().clone())

    def forward(self, before: Tensor, at: Start, attended: Attended, knob: Tensor) -> Plan:
        """Judge the tokens, and plan.

        Args:
            before: (B, L, Ds), what the layer was given, as wide as the concepts.
            at: what is to be cut, behind the attention.
            attended: the attention.
            knob: () temperature, or (1,) int64 count of a schedule.
        """
        how = self.how
        scores = concept_scores(before, self.concepts) if how.rule == "madtp" else None
        pruning = Pruning(coupled=how.coupled, by=how.rule)
        tokens, evidence = judge(at, (scores, attended), pruning)
        if how.form == "schedule":
            return plan(tokens, evidence, Scheduled(knob))
        budget = budget_of(how.rule, knob, coupled=how.coupled, floor=at.floor)
        return plan(tokens, evidence, budget)


class Front(nn.Module):
    """A layer up to its decision."""

    def __init__(
        self, layer: nn.Module, concepts: Tensor, query: nn.Module | None, how: How
    ) -> None:
        super().__init__()
        self.layer, self.query, self.how = layer, query, how
        self.decision = Decision(concepts, how)

    def forward(
        self,
        hidden: Tensor,
        knob: Tensor,
        mask: Tensor | None = None,
        end: Tensor | None = None,
        floor: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the residual stream and what is to be done with it.

        Args:
            hidden: (B, L, D).
            knob: () temperature, or (1,) int64 count of a schedule.
            mask: (B, L) bool.
            end: (B,) int64, of a token that stays.
            floor: (B,) int64.
        """
        before = hidden if self.query is None else self.query(hidden)
        stream, attended = self.how.block.attend(self.layer, hidden, mask)
        at = Start(stream, mask, floor=0 if floor is None else floor, end=end)
        made = self.decision(before, at, attended, knob)
        shape = made.available.shape  # counts that are the batch's become each sample's
        return {
            "stream": stream,
            "ranking": made.ranking,
            "merged": made.merged,
            "kept": made.kept.expand(shape),
            "available": made.available.clone(),
        }


class Back(nn.Module):
    """The rest of a layer, on the tokens that stay."""

    def __init__(self, layer: nn.Module, how: How) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(  # noqa: PLR0913, PLR0917 - an exporter names inputs after arguments
        self,
        stream: Tensor,
        ranking: Tensor,
        merged: Tensor,
        kept: Tensor,
        available: Tensor,
        slot: Tensor,
        mask: Tensor | None = None,
        end: Tensor | None = None,
        image0: Tensor | None = None,
        image1: Tensor | None = None,
        image_mask0: Tensor | None = None,
        image_mask1: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``hidden`` (B, K, D), and ``mask`` and ``end`` where there are any."""
        planned = Plan(ranking, merged, kept, available)
        made = apply(
            Tokens(stream, mask),
            planned,
            slot,
            same_length=self.how.coupled or (self.how.form == "schedule" and mask is None),
            order=self.how.order,
        )
        images = ((image0, image_mask0), (image1, image_mask1))
        contexts = tuple(Context(image, seen) for image, seen in images if image is not None)
        result = {"hidden": self.how.block.finish(self.layer, made.tokens.hidden, contexts)}
        if made.tokens.mask is not None:
            result["mask"] = made.tokens.mask
        if end is not None:
            result["end"] = (made.index == end[:, None]).long().argmax(dim=1)
        return result


class Whole(nn.Module):
    """A layer that does not prune."""

    def __init__(self, layer: nn.Module, how: How) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        image0: Tensor | None = None,
        image1: Tensor | None = None,
        image_mask0: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``hidden_out`` (B, L, D)."""
        images = ((image0, image_mask0), (image1, None))
        contexts = tuple(Context(image, seen) for image, seen in images if image is not None)
        stream, _ = self.how.block.attend(self.layer, hidden, mask)
        return {"hidden_out": self.how.block.finish(self.layer, stream, contexts)}


class PairedPixels(nn.Module):
    """Embeddings of pairs of images, first ones first."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.embeddings = cast("Any", vision).embeddings

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 2, 3, H, W) -> ``hidden`` (2 B, 1 + N, D), ``mask`` of ones."""
        hidden = self.embeddings(pixel_values.transpose(0, 1).flatten(0, 1))
        return {"hidden": hidden, "mask": _ones(hidden)}


class Pixels(nn.Module):
    """Embeddings of images."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.embeddings = cast("Any", vision).embeddings
        self.pre_layrnorm = getattr(vision, "pre_layrnorm", None)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> ``hidden`` (B, 1 + N, D), ``mask`` of ones."""
        hidden = self.embeddings(pixel_values)
        if self.pre_layrnorm is not None:
            hidden = self.pre_layrnorm(hidden)
        return {"hidden": hidden, "mask": _ones(hidden)}


class Words(nn.Module):
    """Embeddings of texts."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.embeddings = cast("Any", text).embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(B, N) twice -> ``hidden`` (B, N, D), ``mask`` (B, N) bool."""
        return {"hidden": self.embeddings(input_ids=input_ids), "mask": attention_mask != 0}


def _ones(hidden: Tensor) -> Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def stand_in(layer: nn.Module) -> nn.Module:
    """A copy with random weights, to trace: equal ones would become one initialiser."""
    made = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


__all__ = [
    "DECISIONS",
    "Back",
    "Decision",
    "Form",
    "Front",
    "How",
    "PairedPixels",
    "Pixels",
    "Whole",
    "Words",
    "stand_in",
]
