"""Keep the tokens that receive most attention from all others.

Source: PoWER-BERT (Goyal et al., ICML 2020, arXiv:2001.08950), significance scores; the mean
here instead of the sum there does not change the order.
"""

from __future__ import annotations

from torch import Tensor

from secateur.models.selectors.core import selector


@selector("column_mean", source="PoWER-BERT (Goyal et al., ICML 2020, arXiv:2001.08950), section 3")
def score(column_mean: Tensor) -> Tensor:
    """Return the attention received as it is, (B, N) -> (B, N) float32."""
    return column_mean.float()
