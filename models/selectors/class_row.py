"""Keep the tokens that the class token looks at most.

Source: EViT (Liang et al., ICLR 2022, arXiv:2202.07800), attentive token identification.
The fused token of the inattentive rest is not made here.
"""

from __future__ import annotations

from torch import Tensor

from secateur.models.selectors.core import selector


@selector("class_row", source="EViT (Liang et al., ICLR 2022, arXiv:2202.07800), section 3.2")
def score(class_row: Tensor) -> Tensor:
    """Return the class token's attention as it is, (B, N) -> (B, N) float32."""
    return class_row.float()
