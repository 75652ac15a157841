"""What a layer costs at how many tokens, from measured times of whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ATTENTION_SHARE = 1 / 3
"""Of a layer's products: q, k, v and o are four of twelve widths squared."""


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Milliseconds of one layer and of one selection, by tokens (batch times length)."""

    tokens: tuple[int, ...]
    """Ascending."""
    layer_ms: tuple[float, ...]
    rest_ms: float
    """What does not depend on the tokens inside the layers."""
    site_ms: tuple[tuple[float, ...], ...]
    """Per kind of selection what one costs, by the same tokens."""

    def layer(self, tokens: float) -> float:
        """Interpolated; beyond the largest measured number, in proportion."""
        return self._at(tokens, self.layer_ms)

    def schedule(
        self, counts: Sequence[tuple[float, float]], sites: Sequence[float] = (), kind: int = 0
    ) -> float:
        """Milliseconds of a model whose layers see ``counts``.

        Args:
            counts: per layer, tokens that its attention sees and tokens that its FFN sees.
            sites: per selection, tokens that it chooses from.
            kind: of the selections.
        """
        total = self.rest_ms + sum(self._at(tokens, self.site_ms[kind]) for tokens in sites)
        for attention, ffn in counts:
            total += _ATTENTION_SHARE * self.layer(attention)
            total += (1 - _ATTENTION_SHARE) * self.layer(ffn)
        return total

    def _at(self, tokens: float, measured: tuple[float, ...]) -> float:
        if tokens > self.tokens[-1]:
            return measured[-1] * tokens / self.tokens[-1]
        return float(np.interp(tokens, self.tokens, measured))


def layer_times(
    whole_ms: Mapping[int, float], with_site_ms: Sequence[Mapping[int, float]], n_layers: int
) -> LayerTimes:
    """Split whole times into layers and rest, by a straight line through the smallest numbers.

    Args:
        whole_ms: time of the model without a selection, by tokens; two numbers at least.
        with_site_ms: per kind of selection, with one that keeps everything, by the same tokens.
        n_layers: of the model.
    """
    tokens = tuple(sorted(whole_ms))
    times = np.maximum.accumulate([whole_ms[n] for n in tokens])  # a larger batch is not faster
    slope = (times[1] - times[0]) / (tokens[1] - tokens[0])
    rest = float(np.clip(times[0] - slope * tokens[0], 0.0, times[0]))
    more = [[max(one[n] - whole_ms[n], 0.0) for n in tokens] for one in with_site_ms]
    sites = tuple([tuple(np.maximum.accumulate(one).tolist()) for one in more])
    return LayerTimes(tokens, tuple(((times - rest) / n_layers).tolist()), rest, sites)


__all__ = ["LayerTimes", "layer_times"]
