"""Keep the patches that the class tokens of several layers look at most, summed.

Source: VTC-CLS (Wang et al., 2024, arXiv:2412.05819), code THU-MIG/VTC-CLS at e41ac9b.
The last layer of the encoder never counts there, so the site is the second to last one; the
default is that layer and the six before it, layers 16 to 22 of CLIP ViT-L. Published code takes
one image at a time and fails where one token is kept; neither holds here.
"""

from __future__ import annotations

from torch import Tensor

from secateur.models.selectors.core import selector


@selector(
    "vtc_cls",
    source="VTC-CLS (Wang et al., 2024, arXiv:2412.05819)",
    cost="one row of attention per layer",
)
def score(class_rows: Tensor, *, layers: str = "-7:") -> Tensor:
    """Sum over layers, (B, L, N) -> (B, N) float32; ``layers`` says which rows are read."""
    del layers  # the signal is built from it
    return class_rows.float().sum(dim=1)
