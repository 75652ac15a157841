"""Removal in a decoder block as LLaMA has it: rotary, grouped heads, a gate, RMS norms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import cut, group_of, network, shapes

from secateur.graph_passes.groups import analyse

_N = 5
_TEXT = f"""
llama (int64[batch, {_N}] ids) => (float[batch, {_N}, 11] logits) {{
    x = Gather(table, ids)
    s1 = Mul(x, x)
    m1 = ReduceMean <keepdims = 1> (s1, last)
    e1 = Add(m1, epsilon)
    r1 = Sqrt(e1)
    d1 = Div(x, r1)
    n1 = Mul(d1, norm1)
    q0 = MatMul(n1, wq)
    k0 = MatMul(n1, wk)
    v0 = MatMul(n1, wv)
    q1 = Reshape(q0, query_shape)
    k1 = Reshape(k0, key_shape)
    v1 = Reshape(v0, key_shape)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    qa = Slice(q2, zero, half, last)
    qb = Slice(q2, half, end, last)
    qn = Neg(qb)
    qr = Concat <axis = -1> (qn, qa)
    qc = Mul(q2, cos)
    qs = Mul(qr, sin)
    q = Add(qc, qs)
    ka = Slice(k2, zero, half, last)
    kb = Slice(k2, half, end, last)
    kn = Neg(kb)
    kr = Concat <axis = -1> (kn, ka)
    kc = Mul(k2, cos)
    ks = Mul(kr, sin)
    k3 = Add(kc, ks)
    k4 = Unsqueeze(k3, two)
    v4 = Unsqueeze(v2, two)
    k5 = Expand(k4, times)
    v5 = Expand(v4, times)
    k = Reshape(k5, repeated)
    v = Reshape(v5, repeated)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul(q, kt)
    t = Add(s, causal)
    p = Softmax <axis = -1> (t)
    o = MatMul(p, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o)
    o2 = Reshape(o1, merged)
    o3 = MatMul(o2, wo)
    y = Add(x, o3)
    n2 = RMSNormalization(y, norm2)
    g0 = MatMul(n2, gate)
    g1 = Sigmoid(g0)
    g2 = Mul(g0, g1)
    u = MatMul(n2, up)
    h = Mul(g2, u)
    z0 = MatMul(h, down)
    z = Add(y, z0)
    head = Transpose(table)
    logits = MatMul(z, head)
}}
"""


@pytest.fixture
def llama() -> ir.Model:
    angles = np.outer(np.arange(_N), [1.0, 0.1]).astype(np.float32)
    both = np.concatenate([angles, angles], axis=-1)[None, None]
    constants = {
        "cos": np.cos(both), "sin": np.sin(both), "last": [-1], "zero": [0], "half": [2],
        "end": [2**63 - 1], "two": [2], "epsilon": np.float32(0.1),
        "query_shape": [0, 0, 6, 4], "key_shape": [0, 0, 3, 4], "times": [1, 1, 2, 1, 1],
        "repeated": [0, 6, -1, 4], "merged": [0, 0, 24],
        "causal": np.triu(np.full((_N, _N), -1e9, np.float32), 1),
    }  # fmt: skip
    weights = {"table": (11, 8), "norm1": (8,), "norm2": (8,), "wq": (8, 24), "wk": (8, 12),
               "wv": (8, 12), "wo": (24, 8), "gate": (8, 20), "up": (8, 20),
               "down": (20, 8)}  # fmt: skip
    return network(_TEXT, weights, constants, opset=23)


def test_groups_of_a_decoder_are_found(llama: ir.Model) -> None:
    analysis = analyse(llama)
    sizes = {role: [g.size for g in analysis.by_role(role)]
             for role in ("heads", "query_heads", "head_width", "ffn", "residual")}  # fmt: skip
    assert sizes["heads"] == [3]
    assert sizes["query_heads"] == [2]
    assert sorted(sizes["head_width"]) == [2, 4], "halves of q and k are tied by the rotation"
    assert group_of(analysis, "gate", 1).size == 20


def test_heads_gates_and_value_width_go_together_exactly(llama: ir.Model) -> None:
    where = {("wk", 1, 0): (0, 2), ("gate", 1): tuple(range(0, 20, 2)), ("wv", 1, 1): (1, 2, 3)}
    found = shapes(cut(llama, where))
    assert found["wq"] == (8, 16)
    assert found["wk"] == (8, 8)
    assert found["wv"] == (8, 6)
    assert found["wo"] == (12, 8)
    assert found["gate"] == found["up"] == (8, 10)
    assert found["down"] == (10, 8)


def test_a_pair_of_rotary_positions_goes_from_both_halves_and_the_tables(llama: ir.Model) -> None:
    smaller = cut(llama, {("cos", 3): (1,)})
    found = shapes(smaller)
    assert (found["cos"], found["sin"]) == ((1, 1, _N, 2), (1, 1, _N, 2))
    assert (found["wq"], found["wk"], found["wv"]) == ((8, 12), (8, 6), (8, 12))


def test_the_residual_width_is_cut_against_the_same_norms_over_what_is_kept(
    llama: ir.Model,
) -> None:
    smaller = cut(llama, {("norm1", 0): (0, 1, 3, 4, 6)}, inexact=True)
    found = shapes(smaller)
    assert found["table"] == (11, 5), "embedding and head are one tensor"
    assert (found["wq"][0], found["wo"][1], found["norm2"]) == (5, 5, (5,))
