"""How much the token of each row counts when rows are summed: RSQ on a graph.

Source: Sung et al., RSQ, arXiv:2503.01820, section 4; scores are spread from 0.005 to 1, as in the
published scripts, and have the mean 1 in every sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.statistics import token_weights
from secateur.calibration.statistics.places import Place
from secateur.calibration.statistics.rows import Weights
from secateur.errors import PreconditionError
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.names import layer_of
from secateur.graph_passes.sites import Site

Tokens = Literal["uniform", "norm", "distance", "attention"]
Samples = Sequence[NDArray[Any]]

_LOWEST, _LARGEST = 0.005, 1.0


class TokenScaling:
    """Weights of tokens by length or distance of what a product reads, or by attention.

    The published code takes length and distance from the input of the whole layer; here it is
    that of each product, which a graph always has.
    """

    def __init__(self, model: ir.Model, places: Sequence[Place], tokens: Tokens) -> None:
        self._tokens = tokens
        self._attention: dict[Place, str] = {}
        if tokens == "attention":
            sites = find_sites(model)
            self._attention = {place: _probabilities(place, sites) for place in places}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Values that have to be looked at besides the activations."""
        return tuple(dict.fromkeys(self._attention.values()))

    def weights(
        self,
        place: Place,
        samples: Samples,
        seen: Mapping[str, NDArray[Any]],
        real: NDArray[np.bool_] | None,
    ) -> Weights:
        """How much each row counts, mean 1 in every sample."""
        if self._tokens == "uniform":
            return None
        result = []
        for i, rows in enumerate(samples):
            mask = None if real is None else real[i]
            scores = self._scores(place, i, rows, seen, mask)
            if scores.shape != (len(rows),):
                raise PreconditionError(
                    "tokens cannot be weighed here: a row is no token",
                    where=place.parameter,
                    next_step="leave tokens at uniform",
                )
            spread = token_weights.spread(scores[None], _LOWEST, _LARGEST)
            result.append(token_weights.normalised(spread)[0])
        return result

    def _scores(
        self,
        place: Place,
        sample: int,
        rows: NDArray[Any],
        seen: Mapping[str, NDArray[Any]],
        real: NDArray[np.bool_] | None,
    ) -> NDArray[np.float64]:
        """(T,) scores of one sample's tokens."""
        if self._tokens == "attention":
            probabilities = seen[self._attention[place]][sample]
            if real is not None:
                probabilities = probabilities[:, real][:, :, real]
            found = token_weights.by_attention(probabilities[None])
        else:
            by = {"norm": token_weights.by_norm, "distance": token_weights.by_distance}
            found = by[self._tokens](rows[None])
        scores: NDArray[np.float64] = found[0]
        return scores


def _probabilities(place: Place, sites: Sequence[Site]) -> str:
    """The attention of the layer that a weight belongs to."""
    layer = layer_of(place.parameter)
    for site in sites:
        same = layer == site.name or f".{layer}".endswith(f".{site.name}")
        weights = None if site.attention is None else site.attention.weights
        if same and weights is not None:
            return weights.name or ""
    raise PreconditionError(
        "no attention probabilities are to be seen for this weight",
        where=place.parameter,
        got="no attention in its layer, or one fused into an Attention node",
        next_step="weigh tokens by norm or distance, or leave them uniform",
    )


__all__ = ["TokenScaling", "Tokens"]
