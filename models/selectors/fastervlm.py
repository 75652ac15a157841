"""Keep the patches that the class token of the second-to-last layer looks at most.

Source: FasterVLM (Zhang et al., 2024, arXiv:2412.01818), code Theia-4869/FasterVLM at f5d5f12.
The published code reads the attention of the layer whose output is used as features, which in
LLaVA is the second to last: put the site there.
"""

from __future__ import annotations

from torch import Tensor

from secateur.models.selectors.core import selector


@selector("fastervlm", source="FasterVLM (Zhang et al., 2024, arXiv:2412.01818)")
def score(class_row: Tensor) -> Tensor:
    """Return the class token's attention as it is, (B, N) -> (B, N) float32."""
    return class_row.float()
