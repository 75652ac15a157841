"""Removal: what is sliced, what is shared, what is respelled, and what is left alone."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.laws.small_models import (
    MLP,
    MLP_WEIGHTS,
    TWIN_WEIGHTS,
    TWINS,
    cut,
    digest,
    group_of,
    network,
    run,
    shapes,
)

from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan, resolve_plan
from secateur.graph_passes.removal import remove, remove_atoms


def test_a_hidden_unit_goes_from_every_weight_that_holds_it() -> None:
    smaller = cut(network(MLP, MLP_WEIGHTS), {("w1", 1): (0, 2, 5)})
    assert shapes(smaller) == {"w1": (4, 3), "b1": (3,), "w2": (3, 3)}


def test_the_right_units_stay() -> None:
    model = network(MLP, MLP_WEIGHTS)
    smaller = cut(model, {("w1", 1): (0, 2, 5)})
    old, new = (m.graph.initializers["w2"].const_value for m in (model, smaller))
    assert old is not None
    assert new is not None
    assert np.array_equal(new.numpy(), old.numpy()[[0, 2, 5]])


def test_weights_that_changed_after_the_analysis_are_cut_as_they_are_then() -> None:
    analysis = analyse(network(MLP, MLP_WEIGHTS))
    group = next(group for group in analysis.groups if group.removable)
    held = analysis.model.graph.initializers["w2"]
    assert held.const_value is not None
    changed = held.const_value.numpy() + 1
    held.const_value = ir.tensor(changed, name="w2")
    plan = make_plan(analysis, {group.name: (0, 2, 5)})
    smaller = remove_atoms(analysis, resolve_plan(analysis, plan))
    found = smaller.graph.initializers["w2"].const_value
    assert found is not None
    assert np.array_equal(found.numpy(), changed[[0, 2, 5]])


def test_the_removal_is_written_into_the_file() -> None:
    smaller = cut(network(MLP, MLP_WEIGHTS), {("w1", 1): (0, 2, 5)})
    (record,) = json.loads(smaller.metadata_props["secateur.removals"])
    (entry,) = record.values()
    assert (entry["size"], entry["kept"]) == (6, [0, 2, 5])


def test_a_second_removal_goes_on_from_the_first() -> None:
    once = cut(network(MLP, MLP_WEIGHTS), {("w1", 1): (0, 2, 4, 5)})
    twice = cut(once, {("w1", 1): (1, 3)})
    assert shapes(twice)["w2"] == (2, 3)
    assert len(json.loads(twice.metadata_props["secateur.removals"])) == 2


# --- shared initialisers -----------------------------------------------------------------


def test_a_shared_tensor_is_split_where_its_uses_are_cut_differently() -> None:
    smaller = cut(network(TWINS, TWIN_WEIGHTS), {("w1", 1): (0, 1, 2), ("w3", 1): (1, 2, 3, 5)})
    biases = sorted(shape for name, shape in shapes(smaller).items() if "shared" in name)
    assert biases == [(3,), (4,)], "two new tensors, and the old one is gone"


def test_a_shared_tensor_stays_whole_for_the_use_that_is_not_cut() -> None:
    smaller = cut(network(TWINS, TWIN_WEIGHTS), {("w3", 1): (1, 2, 3, 5)})
    biases = sorted(shape for name, shape in shapes(smaller).items() if "shared" in name)
    assert biases == [(4,), (6,)]


def test_a_shared_tensor_stays_one_where_its_uses_are_cut_alike() -> None:
    smaller = cut(network(TWINS, TWIN_WEIGHTS), {("w1", 1): (0, 4), ("w3", 1): (0, 4)})
    assert [shape for name, shape in shapes(smaller).items() if "shared" in name] == [(2,)]


def test_uses_that_are_cut_one_after_the_other_get_names_of_their_own() -> None:
    text = """
    three (float[batch, 4] x) => (float[batch, 3] y) {
        a1 = MatMul(x, w1)
        b1 = Add(a1, shared)
        c1 = Tanh(b1)
        d1 = MatMul(c1, v1)
        a2 = MatMul(x, w2)
        b2 = Add(a2, shared)
        c2 = Tanh(b2)
        d2 = MatMul(c2, v2)
        a3 = MatMul(x, w3)
        b3 = Add(a3, shared)
        c3 = Tanh(b3)
        d3 = MatMul(c3, v3)
        y = Sum(d1, d2, d3)
    }
    """
    weights = {"shared": (6,), **{f"w{i}": (4, 6) for i in (1, 2, 3)},
               **{f"v{i}": (6, 3) for i in (1, 2, 3)}}  # fmt: skip
    model = network(text, weights)
    for number, units in ((1, (0, 1, 2, 3, 4)), (2, (0, 1, 2, 3)), (3, (0, 1, 2))):
        model = cut(model, {(f"w{number}", 1): units})
    assert sorted(s for n, s in shapes(model).items() if "shared" in n) == [(3,), (4,), (5,)]


TIED = """
tied (int64[batch, 5] ids) => (float[batch, 5, 9] y) {
    e = Gather(table, ids)
    a = MatMul(e, w1)
    b = Tanh(a)
    c = MatMul(b, w2)
    h = Add(e, c)
    head = Transpose(table)
    y = MatMul(h, head)
}
"""


def test_a_tied_embedding_and_head_stay_one_tensor() -> None:
    model = network(TIED, {"table": (9, 8), "w1": (8, 6), "w2": (6, 8)})
    smaller = cut(model, {("table", 1): (0, 2, 3, 7)})
    assert shapes(smaller) == {"table": (9, 4), "w1": (4, 6), "w2": (6, 4)}


def test_a_tensor_that_a_subgraph_reads_is_left_alone() -> None:
    text = """
    branches (float[batch, 4] x, bool flag) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        b = Relu(a)
        c = MatMul(b, w2)
        d = If (flag) <
            then_branch = yes () => (float[6, 3] t) { t = Identity(w2) },
            else_branch = no () => (float[6, 3] f) { f = Neg(w2) }
        >
        e = ReduceSum <keepdims = 0> (d)
        y = Add(c, e)
    }
    """
    model = network(text, {"w1": (4, 6), "w2": (6, 3)})
    analysis = analyse(model)
    plan = make_plan(analysis, {group_of(analysis, "w1", 1).name: (0, 2, 5)})
    smaller = remove(model, plan)
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    assert shapes(smaller)["w2"] == (6, 3), "the branches read it whole"
    assert sorted(s for n, s in shapes(smaller).items() if n.startswith("w2")) == [(3, 3), (6, 3)]


def test_a_tensor_that_is_a_graph_output_is_left_alone() -> None:
    text = MLP.replace("(float[batch, 3] y)", "(float[batch, 3] y, float[6, 3] w2)")
    smaller = cut(network(text, MLP_WEIGHTS), {("w1", 1): (0, 2, 5)})
    assert shapes(smaller)["w2"] == (6, 3)


# --- laziness and the input --------------------------------------------------------------


def _unreadable(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    def refuse() -> ir.Tensor:
        raise AssertionError(f"{name} was read")

    return ir.LazyTensor(refuse, dtype=tensor.dtype, shape=tensor.shape, name=name)


def test_no_weight_is_read_by_a_removal() -> None:
    model = network(MLP, {"w1": (4, 600), "b1": (600,), "w2": (600, 3)})
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        value.const_value = _unreadable(value.const_value, name)
    analysis = analyse(model)
    plan = make_plan(analysis, {group_of(analysis, "w1", 1).name: (0, 2, 5)})
    smaller = remove(model, plan)
    assert shapes(smaller) == {"w1": (4, 3), "b1": (3,), "w2": (3, 3)}
    weight = smaller.graph.initializers["w2"].const_value
    assert weight is not None
    with pytest.raises(AssertionError, match="w2 was read"):
        weight.numpy()


def test_a_refused_removal_changes_nothing() -> None:
    model = network(MLP, MLP_WEIGHTS)
    before = digest(model)
    analysis = analyse(model)
    name = group_of(analysis, "w1", 1).name
    with pytest.raises(BadInputError):
        make_plan(analysis, {name: ()})
    assert digest(model) == before


def test_weights_as_constant_nodes_are_cut_too() -> None:
    text = """
    constants (float[batch, 2] x) => (float[batch, 1] y) {
        w1 = Constant <value = float[2, 3] {1., 2., 3., 4., 5., 6.}> ()
        a = MatMul(x, w1)
        b = Relu(a)
        w2 = Constant <value = float[3, 1] {1., -1., 2.}> ()
        y = MatMul(b, w2)
    }
    """
    smaller = cut(network(text, {}), {("w1", 1): (0, 2)})
    assert shapes(smaller) == {"w1": (2, 2), "w2": (2, 1)}


def test_a_tensor_of_half_precision_keeps_its_type() -> None:
    text = MLP.replace("float[", "float16[")
    weights = {n: np.ones(s, np.float16) for n, s in MLP_WEIGHTS.items()}
    smaller = cut(network(text, {}, weights), {("w1", 1): (0, 2, 5)})
    assert {v.dtype for v in smaller.graph.initializers.values()} == {ir.DataType.FLOAT16}


# --- what spells sizes -------------------------------------------------------------------


def test_a_computed_reshape_target_is_respelled_where_it_is_cut() -> None:
    text = """
    computed (float[batch, tokens, 4] x) => (float[batch, tokens, 3] y) {
        a = MatMul(x, w1)
        sizes = Shape(x)
        front = Slice(sizes, zero, two)
        wanted = Concat <axis = 0> (front, four, three)
        b = Reshape(a, wanted)
        c = Softmax <axis = 3> (b)
        back = Concat <axis = 0> (front, minus)
        d = Reshape(c, back)
        y = MatMul(d, w2)
    }
    """
    numbers = {"zero": 0, "two": 2, "four": 4, "three": 3, "minus": -1}
    constants = {name: np.array([value]) for name, value in numbers.items()}
    model = network(text, {"w1": (4, 12), "w2": (12, 3)}, constants)
    smaller = cut(model, {("w1", 1, 0): (0, 3), ("w1", 1, 1): (0, 2)})
    assert shapes(smaller)["w1"] == (4, 4)
    assert [out.shape for out in run(smaller, {"batch": 2, "tokens": 5})] == [(2, 5, 3)]


def test_a_computed_target_of_an_expand_counts_the_heads_that_stay() -> None:
    text = """
    mask_per_head (float[batch, tokens, 4] x) => (float[batch, tokens, 3] y) {
        sizes = Shape(x)
        count = Slice(sizes, zero, one)
        length = Slice(sizes, one, two)
        rows = Mul(count, four)
        split = Concat <axis = 0> (count, length, four, three)
        a = MatMul(x, w1)
        b = Reshape(a, split)
        c = Transpose <perm = [0, 2, 1, 3]> (b)
        flat = Concat <axis = 0> (rows, length, three)
        d = Reshape(c, flat)
        wanted = Concat <axis = 0> (rows, one, three)
        row = Expand(pattern, wanted)
        e = Add(d, row)
        back = Concat <axis = 0> (count, four, length, three)
        f = Reshape(e, back)
        g = Transpose <perm = [0, 2, 1, 3]> (f)
        joined = Concat <axis = 0> (count, length, minus)
        h = Reshape(g, joined)
        y = MatMul(h, w2)
    }
    """
    numbers = {"zero": 0, "one": 1, "two": 2, "four": 4, "three": 3, "minus": -1}
    constants = {name: np.array([value]) for name, value in numbers.items()}
    constants["pattern"] = np.ones((1, 1, 3), np.float32)
    model = network(text, {"w1": (4, 12), "w2": (12, 3)}, constants)
    smaller = cut(model, {("w1", 1, 0): (0, 3)})
    assert shapes(smaller)["w1"] == (4, 6)
    assert [out.shape for out in run(smaller, {"batch": 2, "tokens": 5})] == [(2, 5, 3)]


def test_the_lengths_of_a_split_follow_its_parts() -> None:
    text = """
    glu (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        u, g = Split <axis = 1, num_outputs = 2> (a)
        s = Sigmoid(g)
        m = Mul(u, s)
        y = MatMul(m, w2)
    }
    """
    smaller = cut(network(text, {"w1": (4, 10), "w2": (5, 3)}), {("w2", 0): (1, 4)})
    assert shapes(smaller)["w1"] == (4, 4), "a unit stands in both halves"


def test_parts_of_a_split_are_cut_apart_where_nothing_ties_them() -> None:
    text = """
    parts (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        u, v = Split <axis = 1> (a, lengths)
        p = MatMul(u, w2)
        q = MatMul(v, w3)
        y = Add(p, q)
    }
    """
    weights = {"w1": (4, 10), "w2": (6, 3), "w3": (4, 3)}
    model = network(text, weights, {"lengths": np.array([6, 4])})
    smaller = cut(model, {("w2", 0): (0, 1, 5), ("w3", 0): (2,)})
    assert shapes(smaller)["w1"] == (4, 4)
    columns = [m.graph.initializers["w1"].const_value for m in (model, smaller)]
    assert np.array_equal(columns[1].numpy(), columns[0].numpy()[:, [0, 1, 5, 8]])  # type: ignore[union-attr]


def test_the_bounds_of_a_slice_count_what_is_kept() -> None:
    text = """
    sliced (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        u = Slice(a, two, end, one)
        v = Slice(a, zero, two, one)
        p = MatMul(u, w2)
        q = MatMul(v, w3)
        y = Add(p, q)
    }
    """
    bounds = {"zero": [0], "one": [1], "two": [2], "end": [2**63 - 1]}
    weights = {"w1": (4, 8), "w2": (6, 3), "w3": (2, 3)}
    smaller = cut(network(text, weights, bounds), {("w2", 0): (1, 4), ("w3", 0): (1,)})
    assert shapes(smaller)["w1"] == (4, 3)


# --- attention ---------------------------------------------------------------------------

FUSED_QKV = """
fused (float[batch, tokens, 8] x) => (float[batch, tokens, 8] y) {
    a = MatMul(x, qkv)
    b = Add(a, bias)
    q0, k0, v0 = Split <axis = 2, num_outputs = 3> (b)
    q1 = Reshape(q0, heads)
    k1 = Reshape(k0, heads)
    v1 = Reshape(v0, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s = MatMul(q, k)
    p = Softmax <axis = -1> (s)
    o = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape(t, merged)
    y = MatMul(m, out)
}
"""


def test_heads_of_fused_qkv_go_from_all_three_parts() -> None:
    weights = {"qkv": (8, 36), "bias": (36,), "out": (12, 8)}
    constants = {"heads": [0, 0, 4, 3], "merged": [0, 0, 12]}
    model = network(FUSED_QKV, weights, constants)
    analysis = analyse(model)
    (heads,) = analysis.by_role("heads")
    assert heads.size == 4
    smaller = cut(model, {("out", 0): (1, 2, 3)})
    assert {shapes(smaller)[name] for name in ("qkv", "bias")} == {(8, 27), (27,)}


GROUPED = """
grouped (float[batch, tokens, 8] x) => (float[batch, tokens, 8] y) {
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, query_heads)
    k1 = Reshape(k0, groups)
    v1 = Reshape(v0, groups)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    k3 = Unsqueeze(k2, two)
    v3 = Unsqueeze(v2, two)
    k4 = Expand(k3, times)
    v4 = Expand(v3, times)
    k = Reshape(k4, k_wanted)
    v = Reshape(v4, v_wanted)
    s = MatMul(q, k)
    p = Softmax <axis = -1> (s)
    o = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape(t, merged)
    y = MatMul(m, wo)
}
"""


def _grouped() -> ir.Model:
    text = GROUPED.replace("tokens", "5")
    constants = {
        "query_heads": [0, 0, 6, 4], "groups": [0, 0, 2, 4], "merged": [0, 0, 24],
        "two": [2], "times": [1, 1, 3, 1, 1], "k_wanted": [-1, 6, 4, 5], "v_wanted": [-1, 6, 5, 4],
    }  # fmt: skip
    weights = {"wq": (8, 24), "wk": (8, 8), "wv": (8, 8), "wo": (24, 8)}
    return network(text, weights, constants)


def test_a_whole_group_of_key_value_heads_goes_with_its_query_heads() -> None:
    model = _grouped()
    (groups,) = analyse(model).by_role("heads")
    assert groups.size == 2
    smaller = cut(model, {("wk", 1): (1,)})
    assert shapes(smaller)["wq"] == (8, 12)
    assert shapes(smaller)["wk"] == (8, 4)


def test_query_heads_inside_the_groups_go_alone() -> None:
    model = _grouped()
    (inside,) = analyse(model).by_role("query_heads")
    assert inside.size == 3
    smaller = cut(model, {("wq", 1, 1): (0, 2)})
    assert shapes(smaller)["wq"] == (8, 16)
    assert shapes(smaller)["wk"] == (8, 8), "the keys keep their heads"


def test_groups_their_query_heads_and_their_widths_go_at_once() -> None:
    model = _grouped()
    smaller = cut(
        model,
        {
            ("wk", 1, 0): (1,),  # groups
            ("wq", 1, 1): (0, 2),  # query heads in each
            ("wk", 1, 1): (0, 3),  # width of queries and keys
            ("wv", 1, 1): (0, 1, 3),  # width of values
        },
    )
    found = shapes(smaller)
    assert (found["wq"], found["wk"]) == ((8, 1 * 2 * 2), (8, 1 * 2))
    assert (found["wv"], found["wo"]) == ((8, 1 * 3), (1 * 2 * 3, 8))


def test_the_width_of_values_is_cut_apart_from_the_width_of_keys() -> None:
    weights = {"qkv": (8, 36), "bias": (36,), "out": (12, 8)}
    constants = {"heads": [0, 0, 4, 3], "merged": [0, 0, 12]}
    smaller = cut(network(FUSED_QKV, weights, constants), {("out", 0, 1): (0, 2)})
    assert shapes(smaller)["qkv"] == (8, 32), "12 for queries, 12 for keys, 8 for values"


# --- convolutions ------------------------------------------------------------------------


def test_a_chain_of_depthwise_convolutions_loses_a_channel_everywhere() -> None:
    text = """
    mobile (float[batch, 3, 8, 8] x) => (float[batch, 5, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        b = Conv <group = 6, pads = [1, 1, 1, 1]> (a, d1, c1)
        c = Clip(b, low, high)
        d = Conv <group = 6, pads = [1, 1, 1, 1]> (c, d2)
        e = BatchNormalization(d, scale, shift, mean, var)
        y = Conv(e, w2)
    }
    """
    weights = {"w1": (6, 3, 3, 3), "b1": (6,), "d1": (6, 1, 3, 3), "c1": (6,), "d2": (6, 1, 3, 3),
               "scale": (6,), "shift": (6,), "mean": (6,), "w2": (5, 6, 1, 1)}  # fmt: skip
    constants = {"low": np.float32(0), "high": np.float32(6), "var": np.full(6, 0.7, np.float32)}
    smaller = cut(network(text, weights, constants), {("w1", 0): (0, 1, 3, 5)})
    found = shapes(smaller)
    assert (found["d1"], found["d2"], found["w2"]) == ((4, 1, 3, 3), (4, 1, 3, 3), (5, 4, 1, 1))
    groups = [n.attributes.get_int("group", 1) for n in smaller.graph if n.op_type == "Conv"]
    assert groups == [1, 4, 4, 1]


def test_a_grouped_convolution_loses_a_channel_of_every_group_or_a_whole_group() -> None:
    text = """
    grouped (float[batch, 3, 8] x) => (float[batch, 2, 8] y) {
        a = Conv (x, w1)
        b = Conv <group = 3, pads = [1, 1]> (a, w2)
        c = Relu(b)
        y = Conv(c, w3)
    }
    """
    weights = {"w1": (12, 3, 1), "w2": (6, 4, 3), "w3": (2, 6, 1)}
    inner = cut(network(text, weights), {("w2", 1): (0, 3)})
    assert (shapes(inner)["w1"], shapes(inner)["w2"]) == ((6, 3, 1), (6, 2, 3))
    whole = cut(network(text, weights), {("w1", 0, 0): (0, 2)})
    assert (shapes(whole)["w1"], shapes(whole)["w2"]) == ((8, 3, 1), (4, 4, 3))


def test_a_residual_stream_of_convolutions_loses_a_channel_in_every_block() -> None:
    text = """
    residual (float[batch, 3, 8] x) => (float[batch, 2] y) {
        a = Conv (x, stem)
        b = Conv <pads = [1, 1]> (a, w1)
        c = Relu(b)
        d = Conv <pads = [1, 1]> (c, w2)
        e = Add(a, d)
        f = Relu(e)
        g = GlobalAveragePool(f)
        h = Flatten(g)
        y = Gemm(h, head, bias)
    }
    """
    weights = {"stem": (6, 3, 1), "w1": (4, 6, 3), "w2": (6, 4, 3), "head": (6, 2), "bias": (2,)}
    smaller = cut(network(text, weights), {("stem", 0): (0, 5)})
    found = shapes(smaller)
    assert (found["stem"][0], found["w1"][1], found["w2"][0], found["head"][0]) == (2, 2, 2, 2)
