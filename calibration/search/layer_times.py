"""What a layer costs at how many tokens, from measured times of whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ATTENTION_SHARE = 1 / 3
"""Of a layer's products: q, k, v and o are four of twelve widths squared."""


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Milliseconds of one layer by its number of tokens (batch times length), and of a site."""

    tokens: tuple[int, ...]
    """Ascending."""
    layer_ms: tuple[float, ...]
    rest_ms: float
    """What does not depend on the tokens inside the layers."""
    site_ms: float
    """What one more selection costs."""

    def layer(self, tokens: float) -> float:
        """Interpolated; beyond the largest measured number, in proportion."""
        if tokens > self.tokens[-1]:
            return self.layer_ms[-1] * tokens / self.tokens[-1]
        return float(np.interp(tokens, self.tokens, self.layer_ms))

    def schedule(self, counts: Sequence[tuple[float, float]], n_sites: int) -> float:
        """Milliseconds of a model whose layers see ``counts``.

        Args:
            counts: per layer, tokens that its attention sees and tokens that its FFN sees.
            n_sites: selections in the model.
        """
        total = self.rest_ms + n_sites * self.site_ms
        for attention, ffn in counts:
            total += _ATTENTION_SHARE * self.layer(attention)
            total += (1 - _ATTENTION_SHARE) * self.layer(ffn)
        return total


def layer_times(
    whole_ms: Mapping[int, float], with_site_ms: Mapping[int, float], n_layers: int
) -> LayerTimes:
    """Split whole times into layers and rest, by a straight line through the smallest numbers.

    Args:
        whole_ms: time of the model without a selection, by tokens; two numbers at least.
        with_site_ms: with one selection that keeps everything, by the same tokens.
        n_layers: of the model.
    """
    tokens = tuple(sorted(whole_ms))
    times = np.maximum.accumulate([whole_ms[n] for n in tokens])  # a larger batch is not faster
    slope = (times[1] - times[0]) / (tokens[1] - tokens[0])
    rest = float(np.clip(times[0] - slope * tokens[0], 0.0, times[0]))
    site = float(np.median([max(with_site_ms[n] - whole_ms[n], 0.0) for n in tokens]))
    return LayerTimes(tokens, tuple((times - rest) / n_layers), rest, site)


__all__ = ["LayerTimes", "layer_times"]
