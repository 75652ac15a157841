"""Cases of the ops of ai.onnx.ml."""

from __future__ import annotations

from tests.laws.given import c, x
from tests.laws.law import Case

_LISTED = "are attributes"

CLASSICAL: list[Case] = [
    Case("ai.onnx.ml:Scaler", (x(3, 4),), {"offset": [0.1] * 4, "scale": [2.0] * 4}, free=1,
         frozen=_LISTED),
    Case("ai.onnx.ml:Imputer", (x(3, 4),),
         {"imputed_value_floats": [0.1] * 4, "replaced_value_float": 0.5}, free=1, frozen=_LISTED),
    Case("ai.onnx.ml:LabelEncoder", (x(5, dtype="int64", low=0, high=4),),
         {"keys_int64s": [0, 1, 2, 3], "values_floats": [1.0, 0.0, 3.0, 2.0]}, free=1),
    Case("ai.onnx.ml:Normalizer", (x(3, 4),), {"norm": "L2"}, free=2),
    Case("ai.onnx.ml:Normalizer", (x(3, 4),), {"norm": "L1"}, free=2),
    Case("ai.onnx.ml:Normalizer", (x(3, 4),), {"norm": "MAX"}, free=2),
    Case("ai.onnx.ml:ArrayFeatureExtractor", (x(3, 4), c(values=[2, 0], dtype="int64")), free=1,
         frozen="computed positions"),
]  # fmt: skip
