"""``torch.nn.TransformerEncoder``: hidden states and a padding mask in, hidden states out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.families.core import Adopter, Arrays, FamilyModel


class MaskedEncoder(Adopter):
    """An encoder fed as the text encoders are: the mask is 1 on real tokens."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(B, N, D) and (B, N) to ``last_hidden_state`` (B, N, D)."""
        padding = attention_mask == 0
        return {"last_hidden_state": self._adopted(hidden, src_key_padding_mask=padding)}


def wrap(encoder: nn.TransformerEncoder) -> FamilyModel:
    """Make an encoder exportable, with example inputs and dynamic batch and tokens.

    Raises:
        BadInputError: the encoder was not built with ``batch_first=True``.
    """
    attention = next(m for m in encoder.modules() if isinstance(m, nn.MultiheadAttention))
    if not attention.batch_first:
        raise BadInputError(
            "the encoder takes tokens before the batch",
            wanted="nn.TransformerEncoderLayer(..., batch_first=True)",
        )
    seeded = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    inputs = {
        "hidden": torch.randn(2, 12, attention.embed_dim, generator=seeded),
        "attention_mask": mask,
    }
    dynamic = {name: {0: "batch", 1: "tokens"} for name in inputs}
    return FamilyModel(MaskedEncoder(encoder).eval(), inputs, dynamic, pad, None)


def pad(samples: list[object]) -> Arrays:
    """Pad (N_i, D) arrays to the longest, with their mask."""
    rows = [np.asarray(sample, dtype=np.float32) for sample in samples]
    longest = max(len(row) for row in rows)
    hidden = np.zeros((len(rows), longest, rows[0].shape[1]), np.float32)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        hidden[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"hidden": hidden, "attention_mask": mask}


__all__ = ["MaskedEncoder", "pad", "wrap"]
