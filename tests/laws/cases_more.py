"""Cases of quantised products, of images read at computed places, and of what stays whole."""

from __future__ import annotations

from tests.laws.given import c, ints, x
from tests.laws.law import Case, Given

_NEIGHBOURS = "neighbours in space"
_PLACES = "it holds coordinates"


def u8(*shape: int) -> Given:
    return x(*shape, dtype="uint8", low=0, high=200)


def i8(*shape: int) -> Given:
    return c(*shape, dtype="int8", low=-90, high=90)


def scalar(value: float, dtype: str = "float32") -> Given:
    return c(values=value, dtype=dtype)


_STEP, _ZERO = scalar(0.02), scalar(100, "uint8")
_SIGNED = scalar(3, "int8")
_PER_3 = (c(3, low=0.01, high=0.1), c(values=[0, 0, 0], dtype="int8"))

_QUANTISED = [
    Case("QuantizeLinear", (x(2, 3, 4), _STEP, _ZERO), free=3),
    Case("QuantizeLinear", (x(2, 3, 4), _STEP), free=3),
    Case("QuantizeLinear", (x(2, 3, 4), *_PER_3), {"axis": 1}, opset=13, free=3),
    Case("DequantizeLinear", (i8(3, 4), _STEP, _SIGNED), free=2),
    Case("DequantizeLinear", (i8(3, 4), *_PER_3), {"axis": 0}, free=2),
    Case("DequantizeLinear", (i8(4, 6), c(4, 2, low=0.01, high=0.1)),
         {"axis": 1, "block_size": 3}, opset=21, free=2, frozen="a block of positions"),
    Case("com.microsoft:QuantizeLinear", (x(2, 3, 4), _STEP, _ZERO), free=3),
    Case("com.microsoft:DequantizeLinear", (i8(3, 4), _STEP, _SIGNED), free=2),
    Case("DynamicQuantizeLinear", (x(3, 4),), outputs=3, free=2),
    Case("MatMulInteger", (u8(2, 3, 4), i8(4, 5), _ZERO, _SIGNED), free=4),
    Case("MatMulInteger", (u8(3, 4), i8(4, 5)), free=3),
    Case("MatMulInteger", (u8(3, 4), i8(4, 3), _ZERO, _PER_3[1]), free=3),
    Case("MatMulInteger", (u8(3, 4), i8(4, 2), _ZERO, c(values=[1, 2], dtype="int8")), free=2,
         frozen="the zero points along it differ"),
    Case("QLinearMatMul", (u8(3, 4), _STEP, _ZERO, i8(4, 5), _STEP, _SIGNED, scalar(0.5), _ZERO),
         free=3),
    Case("QLinearMatMul", (u8(2, 4), _STEP, _ZERO, i8(4, 3), *_PER_3, scalar(0.5), _ZERO), free=3),
    Case("ConvInteger", (u8(2, 4, 5, 5), c(6, 4, 3, 3, dtype="uint8", low=0, high=90)),
         {"kernel_shape": [3, 3]}, free=3, frozen=_NEIGHBOURS),
    Case("QLinearConv",
         (u8(2, 4, 5, 5), _STEP, _ZERO, i8(3, 4, 3, 3), *_PER_3, scalar(0.5), _ZERO,
          c(3, dtype="int32", low=-9, high=9)),
         {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, free=3, frozen=_NEIGHBOURS),
    Case("QLinearConv",
         (u8(2, 4, 5, 5), _STEP, _ZERO, i8(4, 1, 3, 3), _STEP, scalar(0, "int8"), scalar(0.5),
          _ZERO), {"kernel_shape": [3, 3], "group": 4}, free=2, frozen=_NEIGHBOURS),
]  # fmt: skip

_BOXES = c(values=[[0, 0, 4, 4], [1, 2, 6, 7], [0, 3, 5, 5], [2, 2, 7, 7]])
_SAMPLED = [
    Case("GridSample", (x(2, 3, 4, 5), x(2, 6, 7, 2)), free=4, frozen=_PLACES),
    Case("RoiAlign", (x(2, 3, 8, 8), _BOXES,
                      c(values=[0, 1, 1, 0], dtype="int64")),
         {"output_height": 2, "output_width": 3}, free=1, frozen=_PLACES),
    Case("MaxRoiPool", (x(1, 3, 8, 8), c(values=[[0, 1, 1, 6, 6], [0, 0, 2, 5, 7]])),
         {"pooled_shape": [2, 2]}, free=1, frozen=_PLACES),
    Case("Col2Im", (x(2, 12, 4), ints(4, 4), ints(2, 2)), {"strides": [2, 2]}, free=2,
         frozen="it goes to space"),
    Case("CenterCropPad", (x(3, 8, 4), ints(5)), {"axes": [1]}, free=2, frozen="cropped"),
    Case("ReverseSequence", (x(5, 3, 4), c(values=[5, 2, 3], dtype="int64")), free=2,
         frozen="turned round"),
    Case("TensorScatter", (x(2, 3, 8, 4), x(2, 3, 2, 4), c(values=[1, 3], dtype="int64")),
         opset=24, free=3, frozen="computed positions"),
]  # fmt: skip

_CONSTANTS = {name: (scalar(5, "int64"),) for name in
              ("BlackmanWindow", "HammingWindow", "HannWindow")}  # fmt: skip

_WHOLE = [
    *(Case(op, given, frozen="its positions are values", free=0)
      for op, given in _CONSTANTS.items()),
    Case("AffineGrid", (x(2, 2, 3), ints(2, 3, 4, 5)), free=0, frozen="coordinates"),
    Case("Compress", (x(3, 4), x(3, dtype="bool")), {"axis": 0}, free=0, frozen="is computed"),
    Case("DFT", (x(2, 8, 1), None, scalar(1, "int64")), free=0, frozen="a transform"),
    Case("DeformConv", (x(1, 2, 4, 4), c(3, 2, 2, 2), x(1, 8, 3, 3)), opset=19, free=0,
         frozen="offsets of its own"),
    Case("Det", (x(2, 3, 3),), free=0, frozen="make one number"),
    Case("MaxUnpool", (x(1, 2, 2, 2), c(values=[[[[0, 3], [8, 11]], [[16, 18], [25, 31]]]],
                                       dtype="int64")),
         {"kernel_shape": [2, 2], "strides": [2, 2]}, free=0, frozen="count all axes"),
    Case("MelWeightMatrix",
         (scalar(4, "int64"), scalar(8, "int64"), scalar(800, "int64"), scalar(0.0),
          scalar(300.0)), free=0, frozen="its positions are values"),
    Case("Multinomial", (x(2, 5),), {"sample_size": 3}, free=0, frozen="random numbers"),
    Case("NonMaxSuppression", (x(1, 4, 4), x(1, 2, 4)), free=0, frozen="come out as numbers"),
    Case("NonZero", (x(3, 4),), free=0, frozen="come out as numbers"),
    Case("RandomNormal", (), {"shape": [3, 4]}, free=0, frozen="random numbers"),
    Case("RandomUniform", (), {"shape": [3, 4]}, free=0, frozen="random numbers"),
    Case("STFT", (x(1, 32, 1), scalar(4, "int64"), None, scalar(8, "int64")), free=0,
         frozen="a transform"),
    Case("Unique", (x(6),), free=0, frozen="is computed"),
    Case("com.microsoft:MatMulNBits",
         (x(3, 32), c(8, 1, 16, dtype="uint8", low=0, high=200), c(8)),
         {"K": 32, "N": 8, "bits": 4, "block_size": 32}, free=0, frozen="are packed"),
    Case("Scatter", (x(3, 4), c(values=[[0, 1, 0, 2]], dtype="int64"), x(1, 4)), {"axis": 0},
         opset=10, free=1, frozen="computed positions"),
]  # fmt: skip

MORE: list[Case] = [*_QUANTISED, *_SAMPLED, *_WHOLE]
