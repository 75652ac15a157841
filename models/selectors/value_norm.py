"""Keep the tokens whose values are long: what they pass on weighs most.

Source: Kobayashi et al., Attention is Not Only a Weight: Analyzing Transformers with Vector
Norms, EMNLP 2020, arXiv:2004.10102. Only the length of the value is used here, without the
attention weight and the output projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import selector


@selector(
    "value_norm", source="Kobayashi et al. (EMNLP 2020, arXiv:2004.10102), value vectors only"
)
def score(values: Tensor) -> Tensor:
    """Mean over heads of the value length, (B, H, N, Dh) -> (B, N) float32."""
    length: Tensor = torch.linalg.vector_norm(values.float(), dim=-1)
    return length.mean(dim=1)
