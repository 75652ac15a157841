"""Cases of the attention, embedding and convolution ops of com.microsoft."""

from __future__ import annotations

from tests.laws.given import c, x
from tests.laws.law import Case

_INSIDE = "head width"
_LAST = c(values=[4, 4], dtype="int32")
_TOTAL = c(values=5, dtype="int32")
_POSITIONS = c(values=[[0, 1, 2], [3, 4, 5]], dtype="int64")
_TABLE = c(8, 2)

MICROSOFT: list[Case] = [
    Case("com.microsoft:Attention", (x(2, 5, 6), c(6, 36), c(36)), {"num_heads": 4}, free=4,
         frozen=_INSIDE),
    Case("com.microsoft:Attention",
         (x(2, 5, 6), c(6, 36), c(36), c(values=[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype="int32")),
         {"num_heads": 4, "unidirectional": 1}, free=4, frozen=_INSIDE),
    Case("com.microsoft:Attention", (x(2, 5, 6), c(6, 36), c(36), c(values=[4, 5], dtype="int32")),
         {"num_heads": 4}, free=2, frozen="counts the tokens"),
    Case("com.microsoft:GroupQueryAttention",
         (x(2, 5, 48), x(2, 5, 24), x(2, 5, 24), None, None, _LAST, _TOTAL),
         {"num_heads": 6, "kv_num_heads": 3}, outputs=3, free=2, frozen=_INSIDE),
    Case("com.microsoft:RotaryEmbedding", (x(2, 3, 12), _POSITIONS, _TABLE, _TABLE),
         {"num_heads": 3, "rotary_embedding_dim": 4}, free=3, frozen="rotated together"),
    Case("com.microsoft:RotaryEmbedding", (x(2, 4, 3, 4), _POSITIONS, _TABLE, _TABLE), free=3,
         frozen="rotated together"),
    Case("com.microsoft:EmbedLayerNormalization",
         (x(2, 3, dtype="int32", low=0, high=9), x(2, 3, dtype="int32", low=0, high=2), c(9, 4),
          c(8, 4), c(2, 4), c(4), c(4)), outputs=2, free=2, frozen="counted from 0"),
    Case("com.microsoft:FusedConv", (x(2, 4, 5, 5), c(6, 4, 3, 3), c(6)),
         {"activation": "Relu", "kernel_shape": [3, 3]}, free=3, frozen="neighbours in space"),
    Case("com.microsoft:FusedConv", (x(2, 4, 5, 5), c(4, 1, 3, 3)),
         {"activation": "Relu", "kernel_shape": [3, 3], "group": 4}, free=2,
         frozen="neighbours in space"),
    Case("com.microsoft:FusedGemm", (x(3, 4), c(4, 5), c(5)), {"activation": "Relu"}, free=3),
]  # fmt: skip
