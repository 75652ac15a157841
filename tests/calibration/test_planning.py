"""How many units stay, and which."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.parity import tiny

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.planning import Ranking, combine, plan
from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import Plan

SCORES = {"a": np.array([4.0, 1.0, 3.0, 2.0]), "b": np.array([40.0, 41.0, 39.0, 0.1])}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny.exported()


def test_local_removes_the_same_share_of_each_group() -> None:
    assert allocate(SCORES, Allocation(0.5)) == {"a": (0, 2), "b": (0, 1)}


def test_global_removes_the_weakest_of_all_groups() -> None:
    """b's three strong units outrank a's weak ones although a's scale is another."""
    assert allocate(SCORES, Allocation(0.25, scope="global")) == {"a": (0, 2, 3), "b": (0, 1, 2)}
    assert allocate(SCORES, Allocation(0.375, scope="global")) == {"a": (0, 2), "b": (0, 1, 2)}


def test_scale_of_a_group_does_not_matter_globally() -> None:
    louder = {"a": SCORES["a"] * 1000, "b": SCORES["b"]}
    allocation = Allocation(0.4, scope="global")
    assert allocate(louder, allocation) == allocate(SCORES, allocation)


def test_no_group_is_emptied_globally() -> None:
    scores = {"weak": np.array([1e-9, 2e-9, 1e3]), "strong": np.ones(3)}
    kept = allocate(scores, Allocation(0.6, scope="global", at_least=2))
    assert len(kept["weak"]) >= 2
    assert len(kept["strong"]) >= 2


@pytest.mark.parametrize(
    ("ratio", "size", "round_to", "kept"),
    [
        (0.25, 12, 1, 9),
        (0.25, 1536, 32, 1152),
        (0.3, 100, 32, 64),
        (0.99, 100, 32, 32),
        (0.5, 20, 32, 20),
        (0.9, 10, 1, 1),
    ],
)
def test_kept_units_are_rounded_to_the_nearest_multiple(
    ratio: float, size: int, round_to: int, kept: int
) -> None:
    scores = {"g": np.arange(size, dtype=np.float64)}
    assert len(allocate(scores, Allocation(ratio, round_to=round_to))["g"]) == kept


def test_of_equal_units_the_earlier_stay() -> None:
    assert allocate({"g": np.ones(4)}, Allocation(0.5)) == {"g": (0, 1)}


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(ratio: float) -> None:
    with pytest.raises(BadInputError, match="ratio"):
        Allocation(ratio)


def test_round_to_below_one_is_refused() -> None:
    with pytest.raises(BadInputError, match="round_to"):
        Allocation(0.5, round_to=0)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(BadInputError, match="scope"):
        Allocation(0.5, scope="layer")  # type: ignore[arg-type]


def test_a_plan_names_every_group_of_the_role(model: ir.Model) -> None:
    made = plan(model, "heads", Allocation(0.25), Ranking("l2"))
    assert {name: len(kept) for name, kept in made.keep.items()} == {
        "heads of layers.0": 3,
        "heads of layers.1": 3,
        "heads of layers.2": 3,
    }
    assert Plan.from_json(made.to_json()).keep == made.keep


def test_plans_for_heads_and_ffn_are_one(model: ir.Model) -> None:
    analysis = analyse(model)
    heads = plan(analysis, "heads", Allocation(0.5), Ranking())
    ffn = plan(analysis, "ffn", Allocation(0.5, round_to=8), Ranking("random", seed=3))
    both = combine(analysis, [heads, ffn])
    assert dict(both.keep) == {**heads.keep, **ffn.keep}
    with pytest.raises(BadInputError, match="two plans cut"):
        combine(analysis, [heads, heads])


def test_a_role_that_the_model_lacks_is_refused(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match=r"no channels(.|\n)*heads"):
        plan(model, "channels", Allocation(0.5), Ranking())
