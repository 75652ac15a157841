"""Groups: found by the axes alone, named as a person would name them, frozen with the reason."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network

from secateur.errors import BadInputError
from secateur.graph_passes.groups import Analysis, analyse

_LAYER = """
    q0_{i} = MatMul(h{i}, wq{i})
    q1_{i} = Add(q0_{i}, bq{i})
    q2_{i} = Reshape(q1_{i}, heads)
    q_{i} = Transpose <perm = [0, 2, 1, 3]> (q2_{i})
    k0_{i} = MatMul(h{i}, wk{i})
    k2_{i} = Reshape(k0_{i}, heads)
    k_{i} = Transpose <perm = [0, 2, 3, 1]> (k2_{i})
    v0_{i} = MatMul(h{i}, wv{i})
    v2_{i} = Reshape(v0_{i}, heads)
    v_{i} = Transpose <perm = [0, 2, 1, 3]> (v2_{i})
    s_{i} = MatMul(q_{i}, k_{i})
    t_{i} = Add(s_{i}, mask)
    p_{i} = Softmax <axis = -1> (t_{i})
    o_{i} = MatMul(p_{i}, v_{i})
    o1_{i} = Transpose <perm = [0, 2, 1, 3]> (o_{i})
    o2_{i} = Reshape(o1_{i}, merged)
    o3_{i} = MatMul(o2_{i}, wo{i})
    r_{i} = Add(h{i}, o3_{i})
    n_{i} = LayerNormalization(r_{i}, ln1{i}, lb1{i})
    u_{i} = MatMul(n_{i}, up{i})
    g_{i} = Gelu(u_{i})
    d_{i} = MatMul(g_{i}, down{i})
    z_{i} = Add(n_{i}, d_{i})
    h{j} = LayerNormalization(z_{i}, ln2{i}, lb2{i})
"""
_PARTS = {
    "wq": ("attention.self.query.weight", (8, 12)), "bq": ("attention.self.query.bias", (12,)),
    "wk": ("attention.self.key.weight", (8, 12)), "wv": ("attention.self.value.weight", (8, 12)),
    "wo": ("attention.output.dense.weight", (12, 8)),
    "ln1": ("attention.output.LayerNorm.weight", (8,)),
    "lb1": ("attention.output.LayerNorm.bias", (8,)),
    "up": ("intermediate.dense.weight", (8, 20)), "down": ("output.dense.weight", (20, 8)),
    "ln2": ("output.LayerNorm.weight", (8,)), "lb2": ("output.LayerNorm.bias", (8,)),
}  # fmt: skip


def bert(layers: int = 2) -> ir.Model:
    """Token embeddings, post-norm layers with a mask, and a pooled head."""
    body = "".join(_LAYER.format(i=i, j=i + 1) for i in range(layers))
    text = f"""
    bert (int64[batch, tokens] ids, float[batch, 1, 1, tokens] mask) => (float[batch, 3] y) {{
        h0 = Gather(words, ids)
        {body}
        first = Gather <axis = 1> (h{layers}, zero)
        y = MatMul(first, classifier)
    }}
    """
    weights = {"words": (11, 8), "classifier": (8, 3)}
    names = {"words": "embeddings.word_embeddings.weight", "classifier": "classifier.weight"}
    for i in range(layers):
        for short, (name, shape) in _PARTS.items():
            weights[f"{short}{i}"] = shape
            names[f"{short}{i}"] = f"encoder.layer.{i}.{name}"
    constants = {"heads": [0, 0, 4, 3], "merged": [0, 0, 12], "zero": 0}
    model = network(text, weights, constants)
    recorded = {k: {"name": v, "transpose": None} for k, v in names.items()}
    model.metadata_props["secateur.parameters"] = json.dumps(recorded)
    return model


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(bert())


def test_groups_are_named_as_a_person_would_name_them(analysis: Analysis) -> None:
    found = {group.name: group.size for group in analysis.groups if group.role != "rows"}
    layers = {}
    for i in (0, 1):
        layers |= {
            f"heads of encoder.layer.{i}": 4,
            f"query-key width of encoder.layer.{i}": 3,
            f"value width of encoder.layer.{i}": 3,
            f"FFN of encoder.layer.{i}": 20,
        }
    other = {"residual width": 8, "outputs of classifier.weight": 3, "tokens": -1, "batch": -1}
    assert found == layers | other


def test_heads_are_found_though_no_name_says_so() -> None:
    model = bert()
    model.metadata_props.pop("secateur.parameters")
    for number, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"val_{number}"
    assert [g.size for g in analyse(model).by_role("heads")] == [4, 4]


def test_a_group_lists_every_weight_axis_it_stands_in(analysis: Analysis) -> None:
    heads = analysis.group("heads of encoder.layer.1")
    short = {(use.parameter.removeprefix("encoder.layer.1.attention."), use.axis)
             for use in heads.weights}  # fmt: skip
    assert short == {
        ("self.query.weight", 1), ("self.query.bias", 0), ("self.key.weight", 1),
        ("self.value.weight", 1), ("output.dense.weight", 0),
    }  # fmt: skip


def test_the_parameters_of_a_group_are_what_goes_with_it(analysis: Analysis) -> None:
    assert analysis.group("FFN of encoder.layer.0").parameters == 2 * 8 * 20
    assert analysis.group("heads of encoder.layer.0").parameters == 4 * 8 * 12 + 12


def test_a_part_of_a_fused_weight_counts_only_for_its_share() -> None:
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
    analysis = analyse(network(text, weights, {"lengths": np.array([6, 4])}))
    assert group_of(analysis, "w2", 0).parameters == 4 * 6 + 6 * 3
    assert group_of(analysis, "w3", 0).parameters == 4 * 4 + 4 * 3


def test_heads_and_channels_can_go_exactly_and_the_residual_width_cannot(
    analysis: Analysis,
) -> None:
    removable = {group.role: group.removable for group in analysis.groups}
    assert {role for role, can in removable.items() if can} == {"heads", "head_width", "ffn"}
    assert not analysis.group("residual width").exact
    assert not analysis.group("residual width").frozen


@pytest.mark.parametrize(
    ("weight", "axis", "reason"),
    [
        ("words", 0, "it is read at computed positions"),
        ("classifier", 1, "it is an axis of a graph output"),
    ],
)
def test_a_frozen_group_says_why(analysis: Analysis, weight: str, axis: int, reason: str) -> None:
    group = group_of(analysis, weight, axis)
    assert not group.removable
    assert reason in [found.text for found in group.frozen]
    assert all(found.node for found in group.frozen)


def test_an_op_without_a_rule_freezes_what_it_touches_and_is_named() -> None:
    text = """
    strange (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        b = Det_like(a)
        y = MatMul(b, w2)
    }
    """.replace("Det_like(a)", "Unknown <domain_is = 1> (a)")
    text = text.replace("Unknown <domain_is = 1>", "com.microsoft.NGramRepeatBlock")
    model = network(text, {"w1": (4, 6), "w2": (6, 3)})
    group = group_of(analyse(model), "w1", 1)
    assert [str(reason) for reason in group.frozen] == [
        "no axis rule for the op com.microsoft:NGramRepeatBlock (at NGramRepeatBlock_1)"
    ]


def test_every_group_that_cannot_go_says_why(analysis: Analysis) -> None:
    silent = [g.name for g in analysis.groups if not g.removable and g.exact and not g.frozen]
    assert silent == []


def test_names_are_unique_and_looked_up(analysis: Analysis) -> None:
    names = [group.name for group in analysis.groups]
    assert len(set(names)) == len(names)
    assert all(analysis.group(name).name == name for name in names)


def test_an_unknown_group_names_the_ones_that_can_be_cut(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match="no group 'heads of layer 9'") as refused:
        analysis.group("heads of layer 9")
    assert "heads of encoder.layer.0" in refused.value.wanted
    assert "analyse" in refused.value.next_step


def test_two_layers_of_one_module_get_names_of_their_own() -> None:
    text = """
    twice (float[batch, 4] x) => (float[batch, 4] y) {
        a = MatMul(x, w1)
        b = Relu(a)
        c = MatMul(b, w2)
        d = Relu(c)
        y = MatMul(d, w3)
    }
    """
    model = network(text, {"w1": (4, 6), "w2": (6, 5), "w3": (5, 4)})
    recorded = {w: {"name": f"block.{w}", "transpose": None} for w in ("w1", "w2", "w3")}
    model.metadata_props["secateur.parameters"] = json.dumps(recorded)
    found = [group.name for group in analyse(model).groups if group.removable]
    assert len(found) == len(set(found)) == 2


def test_an_axis_that_is_an_output_can_go_where_that_is_allowed() -> None:
    analysis = analyse(bert(), allow_outputs=["y"])
    assert group_of(analysis, "classifier", 1).removable


def test_units_of_a_recurrent_layer_have_a_role_of_their_own() -> None:
    text = """
    recurrent (float[5, batch, 4] x) => (float[5, batch, 3] y) {
        a = LSTM <hidden_size = 6> (x, w, r)
        b = Squeeze(a, one)
        y = MatMul(b, out)
    }
    """
    model = network(text, {"w": (1, 24, 4), "r": (1, 24, 6), "out": (6, 3)}, {"one": [1]})
    (units,) = analyse(model).by_role("recurrent")
    assert (units.size, units.removable) == (6, True)
