"""Keep the tokens whose keys are short: they draw most attention.

Source: Devoto et al., A Simple and Effective L2 Norm-Based Strategy for KV Cache
Compression, EMNLP 2024, arXiv:2406.11430. Written there for decoders; on other models it is a
baseline that needs no attention map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import selector


@selector("key_norm", source="Devoto et al. (EMNLP 2024, arXiv:2406.11430), low key norm is kept")
def score(keys: Tensor) -> Tensor:
    """Minus the mean over heads of the key length, (B, H, N, Dh) -> (B, N) float32."""
    length: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1)
    return -length.mean(dim=1)
