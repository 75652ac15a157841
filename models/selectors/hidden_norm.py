"""Keep the tokens with the longest hidden states.

Source: Darcet et al., Vision Transformers Need Registers, ICLR 2024, arXiv:2309.16588, which
finds that high-norm tokens carry what the model knows about the whole input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import selector


@selector("hidden_norm", source="Darcet et al. (ICLR 2024, arXiv:2309.16588), high-norm tokens")
def score(hidden: Tensor) -> Tensor:
    """Length of the residual stream, (B, N, D) -> (B, N) float32."""
    length: Tensor = torch.linalg.vector_norm(hidden.float(), dim=-1)
    return length
