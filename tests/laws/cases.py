"""The table of cases: every op of the rule table, in every form that its rule tells apart."""

from __future__ import annotations

from tests.laws.cases_classical import CLASSICAL
from tests.laws.cases_dynamic import DYNAMIC
from tests.laws.cases_layout import LAYOUT
from tests.laws.cases_microsoft import MICROSOFT
from tests.laws.cases_more import MORE
from tests.laws.cases_products import PRODUCTS
from tests.laws.cases_recurrent import RECURRENT
from tests.laws.given import c, ints, x
from tests.laws.law import Case


def _words(text: str) -> list[str]:
    return text.split()


_DOMAINS = {  # where the function is defined, for ops that are not defined everywhere
    "Acosh": (1.1, 3.0),
    "Log": (0.1, 2.0),
    "Sqrt": (0.1, 2.0),
    "Reciprocal": (0.5, 2.0),
}
_ONE_INPUT = _words(
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu "
    "com.microsoft:QuickGelu com.microsoft:Gelu"
)
_FLOATS = _words("Add Div Max Mean Min Mul Pow Sub Sum")
_COMPARED = _words("Equal Greater GreaterOrEqual Less LessOrEqual")
_BITS = _words("BitwiseAnd BitwiseOr BitwiseXor")
_LOGIC = _words("And Or Xor")


def _one_input(op: str) -> Case:
    low, high = _DOMAINS.get(op, (-0.9, 0.9))
    return Case(op, (x(3, 4, low=low, high=high),), free=2)


def _two(op: str, dtype: str = "float32", low: float = 0.5, high: float = 2.0) -> list[Case]:
    def g(*shape: int, constant: bool = False):
        maker = c if constant else x
        return maker(*shape, dtype=dtype, low=low, high=high)

    return [
        Case(op, (g(3, 4), g(3, 4)), free=2),
        Case(op, (g(2, 3, 4), g(4, constant=True)), free=3),
        Case(op, (g(3, 1), g(1, 4)), free=2),
        Case(op, (g(1), g(3, 4)), free=2),
    ]


_ELEMENTWISE = [
    *(_one_input(op) for op in _ONE_INPUT),
    Case("Swish", (x(3, 4),), opset=24, free=2),
    Case("BitwiseNot", (x(3, 4, dtype="int32", low=0, high=9),), free=2),
    Case("Not", (x(3, 4, dtype="bool"),), free=2),
    Case("Cast", (x(3, 4, low=0, high=9),), {"to": 7}, free=2),
    Case("Cast", (x(3, 4, dtype="bool"),), {"to": 1}, free=2),
    *(case for op in _FLOATS for case in _two(op)),
    *(case for op in _COMPARED for case in _two(op)),
    *(case for op in _BITS for case in _two(op, "int32", 0, 9)),
    *(case for op in _LOGIC for case in _two(op, "bool")),
    *_two("Mod", "int64", 1, 9),
    Case("Mod", (x(3, 4), x(3, 4, low=0.5)), {"fmod": 1}, free=2),
    Case("BitShift", (x(3, 4, dtype="uint8", high=9), c(4, dtype="uint8", low=0, high=3)),
         {"direction": "LEFT"}, free=2),
    Case("Sum", (x(3, 4), x(4), x(3, 1)), free=2),
    Case("Max", (x(3, 4), c(1), x(4)), free=2),
    Case("Clip", (x(3, 4),), free=2),
    Case("Clip", (x(3, 4), c(values=-0.5), c(values=0.5)), free=2),
    Case("Clip", (x(3, 4), None, c(values=0.5)), free=2),
    Case("PRelu", (x(2, 3, 4), c(3, 1)), free=3),
    Case("PRelu", (x(2, 3, 4), c(1)), free=3),
    Case("Where", (x(3, 4, dtype="bool"), x(3, 4), x(3, 4)), free=2),
    Case("Where", (x(1, 4, dtype="bool"), x(2, 3, 1), c(values=-9.0)), free=3),
    Case("com.microsoft:BiasGelu", (x(3, 4), c(4)), free=2),
    Case("com.microsoft:FastGelu", (x(3, 4), c(4)), free=2),
    Case("com.microsoft:FastGelu", (x(3, 4),), free=2),
    Case("Dropout", (x(3, 4),), free=2),
    Case("secateur:SelectTokens", (x(2, 3, 4),), free=3),
    Case("Dropout", (x(3, 4), c(values=0.5)), outputs=2, free=2),
    Case("CastLike", (x(3, 4), x(2, 5, dtype="float64")), free=4),
]  # fmt: skip

_NORMALISATION = [
    *(
        case
        for op in ("Softmax", "LogSoftmax")
        for case in (
            Case(op, (x(3, 4, 5),), free=3),
            Case(op, (x(3, 4, 5),), {"axis": 1}, free=3),
            Case(op, (x(3, 4, 5),), {"axis": 1}, opset=12, free=3),
            Case(op, (x(3, 4, 5),), opset=11, free=3),
            Case(op, (x(3, 4, 5),), {"axis": -1}, opset=11, free=3),
        )
    ),
    Case("Hardmax", (x(3, 5),), free=2),
    Case("Hardmax", (x(3, 5),), opset=11, free=2),
    Case("LayerNormalization", (x(2, 3, 4), c(4), c(4)), free=3),
    Case("LayerNormalization", (x(2, 3, 4), c(4)), {"axis": -1}, free=3),
    Case("LayerNormalization", (x(2, 3, 4), c(3, 4), c(3, 4)), {"axis": 1}, free=3),
    Case("LayerNormalization", (x(2, 3, 4), c(4), c(4)), outputs=3, free=3),
    Case("RMSNormalization", (x(2, 3, 4), c(4)), opset=23, free=3),
    Case("SimplifiedLayerNormalization", (x(2, 3, 4), c(4)), free=3),
    Case("com.microsoft:SkipLayerNormalization", (x(2, 3, 4), x(2, 3, 4), c(4), c(4), c(4)),
         free=3),
    Case("com.microsoft:SkipLayerNormalization", (x(2, 3, 4), x(2, 3, 4), c(4)), free=3),
    Case("com.microsoft:SkipLayerNormalization", (x(2, 3, 4), x(1, 3, 4), c(4)), free=3),
    Case("com.microsoft:SkipSimplifiedLayerNormalization", (x(2, 3, 4), x(2, 3, 4), c(4)), free=3),
    Case("BatchNormalization", (x(2, 3, 4, 5), c(3), c(3), c(3), c(3, low=0.5)), free=4),
    Case("BatchNormalization", (x(2, 3), c(3), c(3), c(3), c(3, low=0.5)), opset=11, free=2),
    Case("InstanceNormalization", (x(2, 3, 4, 5), c(3), c(3)), free=4),
    Case("GroupNormalization", (x(2, 6, 4), c(6), c(6)), {"num_groups": 3}, opset=21,
         free=2, frozen="statistics of a group"),
    Case("GroupNormalization", (x(2, 6, 4), c(3), c(3)), {"num_groups": 3}, opset=18,
         free=2, frozen="statistics of a group"),
    Case("LpNormalization", (x(3, 4),), {"axis": 1, "p": 2}, free=2),
    Case("LpNormalization", (x(3, 4),), {"axis": 0, "p": 1}, free=2),
    Case("MeanVarianceNormalization", (x(2, 3, 4, 5),), free=4),
    Case("MeanVarianceNormalization", (x(2, 3, 4, 5),), {"axes": [0, 1]}, free=4),
    Case("LRN", (x(2, 6, 3, 3),), {"size": 3}, free=4),
]  # fmt: skip


def _reduction(op: str) -> list[Case]:
    low = 0.2 if op.startswith("ReduceLogSum") else -1.0
    return [
        Case(op, (x(3, 4, 5, low=low), ints(1)), free=3),
        Case(op, (x(3, 4, 5, low=low), ints(-1, 0)), {"keepdims": 0}, free=3),
        Case(op, (x(3, 4, low=low),), {"keepdims": 0}, free=2),
        Case(op, (x(3, 4, low=low),), {"noop_with_empty_axes": 1}, free=2),
        Case(op, (x(3, 4, 5, low=low),), {"axes": [1]}, opset=11, free=3),
        Case(op, (x(3, 4, low=low), x(1, dtype="int64", low=0, high=1)), free=0,
             frozen="says nothing about axis 0 of input 0"),
    ]  # fmt: skip


_SEARCHED = "positions are a graph output"
_REDUCTION = [
    *(
        case
        for op in (
            "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum",
            "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean",
        )
        for case in _reduction(op)
    ),
    *(
        case
        for op in ("ArgMax", "ArgMin")
        for case in (
            Case(op, (x(3, 4, 5),), {"axis": 1}, free=2, frozen=_SEARCHED),
            Case(op, (x(3, 4, 5),), {"axis": -1, "keepdims": 0}, free=2, frozen=_SEARCHED),
        )
    ),
    Case("CumSum", (x(3, 4), c(values=1, dtype="int64")), free=2),
    Case("CumSum", (x(3, 4), ints(-1)), {"reverse": 1, "exclusive": 1}, free=2),
    Case("CumSum", (x(3, 4), x(dtype="int64", low=0, high=1)), free=0, frozen="axis is computed"),
    Case("TopK", (x(3, 6), ints(2)), outputs=2, free=1, frozen="number of the largest"),
    Case("TopK", (x(3, 6, 2), ints(2)), {"axis": 1}, outputs=2, free=2,
         frozen="number of the largest"),
]  # fmt: skip

CASES: list[Case] = [
    *_ELEMENTWISE,
    *_NORMALISATION,
    *_REDUCTION,
    *PRODUCTS,
    *RECURRENT,
    *LAYOUT,
    *DYNAMIC,
    *CLASSICAL,
    *MICROSOFT,
    *MORE,
]
