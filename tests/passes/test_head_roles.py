"""Which units are heads, key-value heads and query heads: read off the axes, proved by a cut."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.laws.small_models import cut, network, shapes

from secateur.calibration.allocation import Allocation
from secateur.calibration.planning import Ranking, plan
from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse

_BROADCAST = """
    k = Unsqueeze(k1, one)
    v = Unsqueeze(v2, one)
"""
_EXPANDED = """
    k3 = Unsqueeze(k1, one)
    v3 = Unsqueeze(v2, one)
    k = Expand(k3, times)
    v = Expand(v3, times)
"""
_MULTI_QUERY = """
shared (float[batch, 5, 8] x) => (float[batch, 5, 8] y) {{
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v2 = MatMul(x, wv)
    q1 = Reshape(q0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k1 = Transpose <perm = [0, 2, 1]> (k0)
    {keys_and_values}
    s = MatMul(q, k)
    p = Softmax <axis = -1> (s)
    o = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape(t, merged)
    y = MatMul(m, wo)
}}
"""


def multi_query(keys_and_values: str) -> ir.Model:
    """Six query heads over one key and one value head, of width 4."""
    constants = {"split": [0, 0, 6, 4], "merged": [0, 0, 24], "one": [1], "times": [1, 6, 1, 1]}
    weights = {"wq": (8, 24), "wk": (8, 4), "wv": (8, 4), "wo": (24, 8)}
    return network(_MULTI_QUERY.format(keys_and_values=keys_and_values), weights, constants)


@pytest.fixture(params=[_BROADCAST, _EXPANDED], ids=["broadcast", "expanded"])
def model(request: pytest.FixtureRequest) -> ir.Model:
    return multi_query(request.param)


def test_heads_over_one_key_are_query_heads(model: ir.Model) -> None:
    analysis = analyse(model)
    assert not analysis.by_role("heads")
    assert [group.size for group in analysis.by_role("query_heads")] == [6]


def test_query_heads_go_and_the_key_stays(model: ir.Model) -> None:
    smaller = cut(model, {("wo", 0): (0, 2, 5)})
    found = shapes(smaller)
    assert (found["wq"], found["wk"], found["wo"]) == ((8, 12), (8, 4), (12, 8))


def test_the_width_behind_query_heads_is_head_width(model: ir.Model) -> None:
    assert [group.size for group in analyse(model).by_role("head_width")] == [4, 4]


def test_asking_for_the_only_key_value_head_names_the_query_heads(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match="no heads") as refused:
        plan(model, "heads", Allocation(0.5), Ranking("l1"))
    assert "query_heads" in refused.value.next_step


_TALKING = """
talking (float[batch, 5, 8] x) => (float[batch, 5, 8] y) {
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, split)
    k1 = Reshape(k0, split)
    v1 = Reshape(v0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s = MatMul(q, k)
    s1 = Transpose <perm = [0, 2, 3, 1]> (s)
    s2 = MatMul(s1, before)
    s3 = Transpose <perm = [0, 3, 1, 2]> (s2)
    p = Softmax <axis = -1> (s3)
    p1 = Transpose <perm = [0, 2, 3, 1]> (p)
    p2 = MatMul(p1, after)
    p3 = Transpose <perm = [0, 3, 1, 2]> (p2)
    o = MatMul(p3, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape(t, merged)
    y = MatMul(m, wo)
}
"""


def test_talking_heads_are_heads_before_and_behind_the_mix() -> None:
    weights = dict.fromkeys(("wq", "wk", "wv"), (8, 12))
    weights |= {"wo": (12, 8), "before": (4, 6), "after": (6, 4)}
    model = network(_TALKING, weights, {"split": [0, 0, 4, 3], "merged": [0, 0, 12]})
    assert sorted(group.size for group in analyse(model).by_role("heads")) == [4, 4, 6]
    smaller = cut(model, {("before", 0): (1, 3), ("before", 1): (0, 4, 5), ("after", 1): (0, 1)})
    found = shapes(smaller)
    assert (found["before"], found["after"], found["wq"]) == ((2, 3), (3, 2), (8, 6))
