"""Concept tokens that the image and the text branch share: scores, alignment, loss.

*Source: Cao et al., CVPR 2024, multi-modality alignment guidance (MAG).*
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError


def concept_scores(queries: Tensor, concepts: Tensor) -> Tensor:
    """Return the dot product of every token with every concept, (B, N, T) float32.

    The product is neither scaled nor normalised, and it stays in float32 whatever the model
    computes in: thresholds compare it by its last bits.

    Args:
        queries: (B, N, Ds), tokens as the layer gets them, projected where the branch projects.
        concepts: (T, Ds).

    Raises:
        BadInputError: the tokens are not as wide as the concepts.
    """
    if queries.shape[-1] != concepts.shape[-1]:
        raise BadInputError(
            "tokens and concepts have different widths",
            got=f"tokens of width {queries.shape[-1]}",
            wanted=f"width {concepts.shape[-1]}, that of the concepts",
            next_step="project the tokens to the width of the concepts first",
        )
    return queries.float() @ concepts.float().transpose(0, 1)


def alignment_features(queries: Tensor, scores: Tensor) -> Tensor:
    """Return what each concept sees of the tokens, (B, T, Ds).

    Every concept takes the mean of all tokens (padding included, as published), weighted by
    the softmax over tokens of its scores divided by the root of the width.
    """
    weights = (scores / math.sqrt(queries.shape[-1])).softmax(dim=1)
    return weights.transpose(1, 2) @ queries.float()


def alignment_loss(image: Tensor, text: Tensor) -> Tensor:
    """Return how far the concepts of the image are from those of the text, in [0, 2].

    Args:
        image: (B, T, Ds), alignment features summed over the layers of the image branch.
        text: the same of the text branch.
    """
    return 1 - F.cosine_similarity(_unit(image), _unit(text), dim=-1).mean()


def _unit(features: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / (norms + 1e-10)


class Concepts(nn.Module):
    """The learnable concept tokens, one matrix for both branches and all layers."""

    def __init__(self, count: int = 100, width: int = 768) -> None:
        super().__init__()
        if count < 1 or width < 1:
            raise BadInputError(
                "no concept tokens", got=f"{count} of width {width}", wanted="at least 1 of each"
            )
        self.weight = nn.Parameter(torch.randn(count, width))


__all__ = ["Concepts", "alignment_features", "alignment_loss", "concept_scores"]
