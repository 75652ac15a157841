"""Outputs keep their shape unless they are named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network, run

from secateur.calibration.allocation import Allocation
from secateur.calibration.planning import Ranking, plan
from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

_TEXT = """
heads (float[batch, 4] x) => (float[batch, 6] classes, float[batch, 5] boxes) {
    a = MatMul(x, w1)
    b = Relu(a)
    classes = MatMul(b, w2)
    boxes = MatMul(b, w3)
}
"""
_WEIGHTS = {"w1": (4, 8), "w2": (8, 6), "w3": (8, 5)}


@pytest.fixture
def model() -> ir.Model:
    return network(_TEXT, _WEIGHTS)


def test_an_output_is_cut_only_where_it_is_named(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match="no outputs that can be removed") as refused:
        plan(model, "outputs", Allocation(0.5), Ranking("l1"))
    assert "--allow-output" in refused.value.next_step
    made = plan(
        analyse(model, allow_outputs=["classes"]), "outputs", Allocation(0.5), Ranking("l1")
    )
    assert made.allow_outputs == ("classes",)
    smaller = remove(model, made)
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    assert [array.shape[1] for array in run(smaller)] == [3, 5]
    for got, wanted in zip(run(smaller), run(mask(model, made)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_refusal_names_the_output_that_would_change(model: ir.Model) -> None:
    analysis = analyse(model, allow_outputs=["classes"])
    name = group_of(analysis, "w3", 1).name
    with pytest.raises(BadInputError, match="cannot be cut") as refused:
        make_plan(analysis, {name: (0, 1)})
    assert refused.value.next_step.endswith("--allow-output boxes")


def test_an_unknown_output_is_refused_with_the_known_ones(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match="no output 'logits'") as refused:
        analyse(model, allow_outputs=["logits"])
    assert "classes, boxes" in refused.value.wanted


def test_a_plan_keeps_the_outputs_that_may_change(model: ir.Model) -> None:
    made = plan(analyse(model, allow_outputs=["boxes"]), "outputs", Allocation(0.4), Ranking("l1"))
    again = Plan.from_json(made.to_json())
    assert again == made
    assert [array.shape[1] for array in run(remove(model, again))] == [6, 3]
