"""Removal and Reshape targets that are computed: what is open follows, the rest is respelled."""

from __future__ import annotations

import numpy as np
from tests.laws.small_models import cut, network, shapes

SPLIT_HEADS = """
heads (float[batch, tokens, 4] x) => (float[batch, tokens, 4] y) {
    size = Shape <end = 2> (x)
    target = Concat <axis = 0> (size, open, width)
    a = MatMul(x, w1)
    b = Reshape(a, target)
    c = Softmax <axis = 3> (b)
    merged = Concat <axis = 0> (size, open)
    d = Reshape(c, merged)
    y = MatMul(d, w2)
}
"""


def test_a_target_that_leaves_the_cut_axis_open_stays_as_it_is() -> None:
    spelled = {"open": np.array([-1]), "width": np.array([2])}
    model = network(SPLIT_HEADS, {"w1": (4, 6), "w2": (6, 4)}, spelled)
    smaller = cut(model, {("w1", 1): (0, 2)})
    assert shapes(smaller)["w1"] == (4, 4)
    assert [n.op_type for n in smaller.graph] == [n.op_type for n in model.graph]
