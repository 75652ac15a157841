"""Cases of the recurrent ops."""

from __future__ import annotations

from onnx import helper
from tests.laws.given import c, x
from tests.laws.law import Case

_TIME = "a step of the recurrence needs the one before it"
_LENGTHS = c(values=[5, 3], dtype="int32")

_FORM = helper.make_tensor_value_info
_SUMS = helper.make_graph(
    [
        helper.make_node("Add", ["sum", "step"], ["more"], "add"),
        helper.make_node("Identity", ["more"], ["told"], "tell"),
    ],
    "sums",
    [_FORM("sum", 1, [2, 3]), _FORM("step", 1, [2, 3])],
    [_FORM("more", 1, [2, 3]), _FORM("told", 1, [2, 3])],
)
_SCAN = {"body": _SUMS, "num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [-2]}

RECURRENT: list[Case] = [
    Case("RNN", (x(5, 2, 6), c(1, 4, 6), c(1, 4, 4)), {"hidden_size": 4}, free=3, frozen=_TIME),
    Case("RNN", (x(5, 2, 6), x(1, 4, 6), x(1, 4, 4), x(1, 8)), {"hidden_size": 4}, outputs=2,
         free=3, frozen=_TIME),
    Case("GRU", (x(5, 2, 6), c(1, 12, 6), c(1, 12, 4)), {"hidden_size": 4}, outputs=2, free=3,
         frozen=_TIME),
    Case("GRU", (x(5, 2, 6), c(2, 12, 6), c(2, 12, 4), c(2, 24), _LENGTHS, x(2, 2, 4)),
         {"hidden_size": 4, "direction": "bidirectional", "linear_before_reset": 1}, outputs=2,
         free=3, frozen="the directions are an attribute"),
    Case("LSTM", (x(5, 2, 6), c(1, 16, 6), c(1, 16, 4)), {"hidden_size": 4}, outputs=3, free=3,
         frozen=_TIME),
    Case("LSTM", (x(5, 2, 6), c(2, 16, 6), c(2, 16, 4), c(2, 32), None, c(2, 2, 4), c(2, 2, 4)),
         {"hidden_size": 4, "direction": "bidirectional"}, outputs=3, free=3,
         frozen="a unit has all its gates"),
    Case("LSTM", (x(5, 2, 6), c(1, 16, 6), c(1, 16, 4), c(1, 32), _LENGTHS, x(1, 2, 4),
                  x(1, 2, 4), c(1, 12)),
         {"hidden_size": 4, "direction": "reverse", "clip": 3.0}, outputs=3, free=3, frozen=_TIME),
    Case("LSTM", (x(2, 5, 6), c(1, 16, 6), c(1, 16, 4)), {"hidden_size": 4, "layout": 1}, free=0,
         frozen="LSTM says nothing about axis 2 of input 0"),
    Case("Scan", (x(2, 3), x(2, 5, 3)), _SCAN, outputs=2, free=0, frozen=_TIME),
    Case("Scan", (x(2, 3), x(2, 5, 3)), {**_SCAN, "scan_output_directions": [1]}, outputs=2, free=0,
         frozen="the graph inside the Scan reads or makes it"),
]  # fmt: skip
