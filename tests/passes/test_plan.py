"""The plan file: read, edited, diffed, applied again; and what it refuses, with the reason."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network, shapes

from secateur.errors import BadInputError
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.plan import Plan, make_plan, resolve_plan
from secateur.graph_passes.removal import remove

_TEXT = """
two_layers (float[batch, 4] x) => (float[batch, 4] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    c = MatMul(b, w2)
    d = LayerNormalization(c, scale, shift)
    e = MatMul(d, w3)
    y = Mul(e, per_output)
}
"""
_WEIGHTS = {"w1": (4, 6), "w2": (6, 8), "scale": (8,), "shift": (8,), "w3": (8, 4),
            "per_output": (4,)}  # fmt: skip


@pytest.fixture
def analysis() -> Analysis:
    return analyse(network(_TEXT, _WEIGHTS))


@pytest.fixture
def hidden(analysis: Analysis) -> str:
    return group_of(analysis, "w1", 1).name


@pytest.fixture
def width(analysis: Analysis) -> str:
    return group_of(analysis, "scale", 0).name


def test_a_plan_survives_its_json(analysis: Analysis, hidden: str) -> None:
    plan = make_plan(analysis, {hidden: (0, 3, 4)})
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_is_a_line_per_group(analysis: Analysis, hidden: str, width: str) -> None:
    plan = make_plan(analysis, {hidden: (0, 3, 4), width: (1, 2)}, allow_inexact=True)
    lines = plan.to_json().splitlines()
    assert f'    "{hidden}": [0, 3, 4],' in lines
    assert f'    "{width}": [1, 2]' in lines


def test_a_plan_can_be_edited_by_hand(analysis: Analysis, hidden: str) -> None:
    text = make_plan(analysis, {hidden: (0, 3, 4)}).to_json().replace("[0, 3, 4]", "[5, 2]")
    smaller = remove(network(_TEXT, _WEIGHTS), Plan.from_json(text))
    assert shapes(smaller)["w1"] == (4, 2)


def test_a_plan_by_hand_needs_only_schema_and_units(hidden: str) -> None:
    text = json.dumps({"schema": 1, "keep": {hidden: [1, 2]}})
    smaller = remove(network(_TEXT, _WEIGHTS), Plan.from_json(text))
    assert shapes(smaller)["w1"] == (4, 2)


def test_the_order_of_kept_units_does_not_matter(analysis: Analysis, hidden: str) -> None:
    plans = [make_plan(analysis, {hidden: units}) for units in ((5, 0, 2), (0, 2, 5))]
    kept = [next(iter(resolve_plan(analysis, plan).values())).tolist() for plan in plans]
    assert kept[0] == kept[1] == [0, 2, 5]


def test_a_group_that_is_kept_whole_is_not_touched(analysis: Analysis, hidden: str) -> None:
    assert resolve_plan(analysis, make_plan(analysis, {hidden: tuple(range(6))})) == {}


def test_a_norm_is_cut_only_when_asked_for(analysis: Analysis, width: str) -> None:
    with pytest.raises(BadInputError, match="not exact") as refused:
        make_plan(analysis, {width: (0, 1)})
    assert "allow_inexact" in refused.value.next_step
    assert make_plan(analysis, {width: (0, 1)}, allow_inexact=True).allow_inexact


def test_the_fingerprint_does_not_depend_on_weight_values(analysis: Analysis) -> None:
    other = network(_TEXT, _WEIGHTS)
    other.graph.initializers["w1"].const_value = ir.tensor(np.zeros((4, 6), np.float32))
    assert analyse(other).fingerprint == analysis.fingerprint


def test_the_fingerprint_depends_on_sizes(analysis: Analysis) -> None:
    other = analyse(network(_TEXT, {**_WEIGHTS, "w1": (4, 7), "w2": (7, 8)}))
    assert other.fingerprint != analysis.fingerprint


def test_a_plan_for_another_model_is_refused_with_what_differs(
    analysis: Analysis, hidden: str
) -> None:
    plan = make_plan(analysis, {hidden: (0, 1)})
    other = analyse(network(_TEXT, {**_WEIGHTS, "w1": (4, 7), "w2": (7, 8)}))
    with pytest.raises(BadInputError, match="another model") as refused:
        resolve_plan(other, plan)
    assert f"{hidden}: 6 in the plan, 7 here" in refused.value.got


def test_a_plan_for_a_model_that_differs_elsewhere_is_refused(
    analysis: Analysis, hidden: str
) -> None:
    plan = make_plan(analysis, {hidden: (0, 1)})
    narrower = {**_WEIGHTS, "w2": (6, 5), "scale": (5,), "shift": (5,), "w3": (5, 4)}
    with pytest.raises(BadInputError, match="another model") as refused:
        resolve_plan(analyse(network(_TEXT, narrower)), plan)
    assert refused.value.got == "residual width: 8 in the plan, 5 here"


def test_a_plan_for_a_model_without_its_groups_names_what_is_missing(
    analysis: Analysis, hidden: str
) -> None:
    plan = make_plan(analysis, {hidden: (0, 1)})
    text = "other (float[batch, 4] x) => (float[batch, 3] y) { y = MatMul(x, own) }"
    with pytest.raises(BadInputError, match="another model") as refused:
        resolve_plan(analyse(network(text, {"own": (4, 3)})), plan)
    assert f"{hidden}: 6 in the plan, absent here" in refused.value.got
    assert refused.value.got.endswith("more")


def test_a_plan_names_the_groups_that_it_does_not_know(analysis: Analysis, hidden: str) -> None:
    plan = make_plan(analysis, {hidden: (0, 1)})
    known = dict(list(plan.sizes.items())[:-1])
    with pytest.raises(BadInputError, match="another model") as refused:
        resolve_plan(analysis, replace(plan, sizes=known, fingerprint="0" * 16))
    assert "not in the plan" in refused.value.got


def test_a_plan_without_a_fingerprint_is_checked_group_by_group(
    analysis: Analysis, hidden: str
) -> None:
    plan = replace(make_plan(analysis, {hidden: (0, 1)}), fingerprint="")
    other = analyse(network(_TEXT, {**_WEIGHTS, "w1": (4, 7), "w2": (7, 8)}))
    assert [kept.tolist() for kept in resolve_plan(other, plan).values()] == [[0, 1]]


@pytest.mark.parametrize(
    ("units", "says"),
    [
        ((), "removes all of"),
        ((0, 6), "has no unit 6"),
        ((-1, 2), "has no unit -1"),
        ((1, 1, 2), "stands twice"),
    ],
    ids=["empty", "beyond the end", "negative", "twice"],
)
def test_units_that_do_not_fit_are_refused(
    analysis: Analysis, hidden: str, units: tuple[int, ...], says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        make_plan(analysis, {hidden: units})


def test_an_unknown_group_is_refused_with_the_known_ones(analysis: Analysis, hidden: str) -> None:
    with pytest.raises(BadInputError, match="no group 'heads of nowhere'") as refused:
        resolve_plan(analysis, Plan({"heads of nowhere": (0,)}))
    assert hidden in refused.value.wanted


def test_a_frozen_group_is_refused_with_the_reason(analysis: Analysis) -> None:
    name = group_of(analysis, "per_output", 0).name
    with pytest.raises(BadInputError, match="cannot be cut") as refused:
        make_plan(analysis, {name: (0, 1)})
    assert "graph output" in refused.value.got
    assert refused.value.where


def test_fewer_experts_than_a_router_picks_are_refused() -> None:
    text = """
    routed (float[batch, 4] x) => (float[batch, 4] y) {
        logits = MatMul(x, router)
        best, index = TopK <axis = 1> (logits, two)
        p = Softmax <axis = 1> (best)
        chosen = Gather(experts, index)
        wide = Unsqueeze(x, middle)
        row = Unsqueeze(wide, middle)
        made = MatMul(row, chosen)
        flat = Squeeze(made, second)
        column = Unsqueeze(p, second)
        weighed = Mul(flat, column)
        y = ReduceSum <keepdims = 0> (weighed, middle)
    }
    """
    weights = {"router": (4, 6), "experts": (6, 4, 4)}
    model = network(text, weights, {"two": [2], "middle": [1], "second": [2]})
    analysis = analyse(model)
    group = group_of(analysis, "router", 1)
    assert group.at_least == 2
    with pytest.raises(BadInputError, match="keeps 1 units") as refused:
        make_plan(analysis, {group.name: (3,)})
    assert "at least 2" in refused.value.wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{keep", "not JSON"),
        ("[1, 2]", "another schema"),
        ('{"schema": 2, "keep": {}}', "another schema"),
        ('{"schema": 1, "kept": {}}', "unknown keys"),
        ('{"schema": 1, "keep": {"a": "0,1"}}', "not a list of integers"),
        ('{"schema": 1, "keep": {"a": [0.5]}}', "not a list of integers"),
        ('{"schema": 1, "keep": {"a": [true]}}', "not a list of integers"),
        ('{"schema": 1, "keep": [1, 2]}', "'keep' in the plan is not a list of units per group"),
        ('{"schema": 1, "keep": {"a": [0], "a": [1]}}', "'a' stands twice"),
        ('{"schema": 1, "keep": {}, "sizes": {"a": "4"}}', "'sizes' in the plan is not an integer"),
        ('{"schema": 1, "keep": {}, "blocks": "a"}', "'blocks' in the plan is not a list"),
        ('{"schema": 1, "keep": {}, "allow_outputs": true}', "'allow_outputs' in the plan"),
        ('{"schema": 1, "keep": {}, "allow_ids": {"ids": "0"}}', "'allow_ids' in the plan"),
        ('{"schema": 1, "keep": {}, "allow_inexact": 1}', "not true or false"),
        ('{"schema": 1, "keep": {}, "fingerprint": 7}', "not a text"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says) as refused:
        Plan.from_json(text, where="plan.json")
    assert refused.value.where == "plan.json"
