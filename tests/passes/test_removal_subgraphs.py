"""Weights and values that the body of an If or a Loop reads too: never a wrong graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network, shapes

from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan

_SHARED_WEIGHT = """
shared (float[batch, 4] x, bool flag) => (float[batch, 3] y, float[4, 6] z) {
    a = MatMul(x, w1)
    b = Relu(a)
    y = MatMul(b, w2)
    z = If (flag) <
        then_branch = yes () => (float[4, 6] t) { t = Neg(w1) },
        else_branch = no () => (float[4, 6] e) { e = Abs(w1) }
    >
}
"""
_WEIGHTS = {"w1": (4, 6), "w2": (6, 3)}


def _network(text: str) -> ir.Model:
    return network(text, _WEIGHTS)


def test_a_weight_that_a_body_reads_too_is_split() -> None:
    """The body reads all of it as before; the product reads what is left of it."""
    import onnxruntime as ort

    model = _network(_SHARED_WEIGHT)
    group = group_of(analyse(model), "w2", 0)
    smaller = _removed(model, group.name)
    assert shapes(smaller)["w1"] == (4, 6)
    assert sorted(shapes(smaller).values()) == [(2, 3), (4, 2), (4, 6)]
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    feeds = {"x": np.ones((2, 4), np.float32), "flag": np.array(True)}
    session = ort.InferenceSession(ir.to_proto(smaller).SerializeToString())
    y, z = session.run(None, feeds)
    w1, w2 = (model.graph.initializers[name].const_value.numpy() for name in ("w1", "w2"))
    hidden = np.maximum(feeds["x"] @ w1, 0)[:, [0, 3]]
    np.testing.assert_allclose(y, hidden @ w2[[0, 3]], rtol=1e-5)
    np.testing.assert_array_equal(z, -w1)


def _removed(model: ir.Model, name: str) -> ir.Model:
    from secateur.graph_passes.removal import remove

    return remove(model, make_plan(analyse(model), {name: (0, 3)}))


_SHARED_VALUE = """
captured (float[batch, 4] x, bool flag) => (float[batch, 3] y, float[batch, 6] z) {
    a = MatMul(x, w1)
    y = MatMul(a, w2)
    z = If (flag) <
        then_branch = yes () => (float[batch, 6] t) { t = Neg(a) },
        else_branch = no () => (float[batch, 6] e) { e = Abs(a) }
    >
}
"""


def test_a_value_that_a_body_reads_is_not_cut_and_the_node_is_named() -> None:
    analysis = analyse(_network(_SHARED_VALUE))
    group = group_of(analysis, "w1", 1)
    with pytest.raises(BadInputError, match="cannot be cut") as refused:
        make_plan(analysis, {group.name: (0, 3)})
    assert "If" in refused.value.got


def test_what_no_body_reads_is_cut_beside_it() -> None:
    text = _SHARED_VALUE.replace(
        "y = MatMul(a, w2)", "c = MatMul(a, w2)\n d = Relu(c)\n y = MatMul(d, w3)"
    )
    model = network(text, {"w1": (4, 6), "w2": (6, 5), "w3": (5, 3)})
    group = group_of(analyse(model), "w3", 0)
    assert group.removable
