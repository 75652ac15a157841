"""How many units stay, and which."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import network, run
from tests.parity import tiny

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.planning import Ranking, combine, plan
from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan
from secateur.graph_passes.removal import remove

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


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [8, 16, 32, 64])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_rounding_floors_and_limits_hold_together(scope: str, round_to: int, ratio: float) -> None:
    rng = np.random.default_rng(round_to)
    scores = {f"layer.{i}": rng.random(size) * 10**i for i, size in enumerate((64, 200, 48, 512))}
    limits = {"layer.0": 0.25, "*.3": 0.6}
    allocation = Allocation(ratio, scope, round_to, at_least=20, limits=limits)
    for name, kept in allocate(scores, allocation).items():
        size = len(scores[name])
        assert len(kept) % round_to == 0 or len(kept) == size, name
        assert len(kept) >= 20, name
        assert len(kept) >= size * (1 - allocation.limit(name)), name


def test_a_limit_of_nothing_leaves_a_group_whole() -> None:
    for scope in ("local", "global"):
        kept = allocate(SCORES, Allocation(0.25, scope, limits={"b": 0}))
        assert (len(kept["b"]), len(kept["a"]) < 4) == (4, True)


def test_the_smallest_of_several_limits_holds() -> None:
    assert Allocation(0.5, limits={"*": 0.5, "a*": 0.25}).limit("a") == 0.25


def test_a_limit_for_no_group_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInputError, match="'c' is for no group") as refused:
        allocate(SCORES, Allocation(0.5, limits={"c": 0.1}))
    assert "a, b" in refused.value.wanted


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_limit_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(BadInputError, match="limit is no share"):
        Allocation(0.5, limits={"a": share})


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_ratio_that_empties_a_group_is_refused_with_the_ways_out(scope: str) -> None:
    with pytest.raises(BadInputError, match=r"would remove (all of a|whole groups)") as refused:
        allocate(SCORES, Allocation(0.9, scope))
    assert "at_least" in refused.value.next_step
    assert "blocks" in refused.value.next_step


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"ratio": 0.95}, "up to 0.875 here"),
        ({"ratio": 0.95, "scope": "global"}, "a ratio of up to 0.833"),
        ({"ratio": 0.05}, "a ratio above 0.0625"),
        ({"ratio": 0.2, "round_to": 4}, "a ratio above 0.25"),
    ],
)
def test_a_ratio_out_of_reach_is_told_what_can_be_reached(options: dict, wanted: str) -> None:
    scores = {"a": np.arange(4.0), "b": np.arange(8.0)}
    with pytest.raises(BadInputError) as caught:
        allocate(scores, Allocation(**options))
    assert wanted in str(caught.value)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_unit_is_kept_where_that_is_asked_for(scope: str) -> None:
    kept = allocate(SCORES, Allocation(0.9, scope, at_least=1))
    assert {name: len(units) for name, units in kept.items()} == {"a": 1, "b": 1}


def test_a_ratio_that_removes_nothing_is_refused() -> None:
    with pytest.raises(BadInputError, match="nothing would be removed") as refused:
        allocate(SCORES, Allocation(0.1))
    assert "raise the ratio" in refused.value.next_step


def test_a_group_smaller_than_the_rounding_stays_whole_beside_others() -> None:
    scores = {"narrow": np.ones(20), "wide": np.arange(64.0)}
    kept = allocate(scores, Allocation(0.5, round_to=32))
    assert {name: len(units) for name, units in kept.items()} == {"narrow": 20, "wide": 32}


def test_a_global_sum_takes_from_wide_groups_and_a_global_mean_from_all() -> None:
    scores = {"narrow": np.array([1.0, 1.1]), "wide": 1 + np.arange(8) / 10}
    by_sum = allocate(scores, Allocation(0.4, "global", normalise="sum"))
    by_mean = allocate(scores, Allocation(0.4, "global", normalise="mean"))
    assert (len(by_sum["narrow"]), len(by_sum["wide"])) == (2, 4)
    assert (len(by_mean["narrow"]), len(by_mean["wide"])) == (1, 5)


def test_without_normalisation_the_scale_of_a_group_matters() -> None:
    louder = {"a": SCORES["a"] * 1000, "b": SCORES["b"]}
    kept = allocate(louder, Allocation(0.375, "global", normalise="none"))
    assert (len(kept["a"]), len(kept["b"])) == (4, 1)


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


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    ("what", "round_to"), [("ffn", 8), ("ffn", 16), ("heads", 2), ("head_width", 2)]
)
def test_counts_hold_for_every_kind_of_unit(model: ir.Model, what, round_to, scope) -> None:
    allocation = Allocation(0.3, scope, round_to, at_least=2)
    made = plan(model, what, allocation, Ranking("l1"))
    sizes = made.sizes
    for name, kept in made.keep.items():
        assert len(kept) % round_to == 0 or len(kept) == sizes[name], name
        assert len(kept) >= 2, name
    assert any(len(kept) < sizes[name] for name, kept in made.keep.items())


def test_two_plans_for_one_group_are_refused_with_its_name(model: ir.Model) -> None:
    analysis = analyse(model)
    one = plan(analysis, "ffn", Allocation(0.5), Ranking("l1"))
    with pytest.raises(BadInputError, match="two plans cut FFN of") as refused:
        combine(analysis, [one, one])
    assert refused.value.next_step


def test_what_a_norm_is_taken_over_goes_only_when_asked_for() -> None:
    """Heads under one norm over all of them, as OLMoE has it."""
    text = """
    normed (float[batch, 5, 8] x) => (float[batch, 5, 8] y) {
        q0 = MatMul(x, wq)
        q1 = LayerNormalization(q0, scale)
        q2 = Reshape(q1, split)
        q = Transpose <perm = [0, 2, 1, 3]> (q2)
        k0 = MatMul(x, wk)
        k2 = Reshape(k0, split)
        k = Transpose <perm = [0, 2, 3, 1]> (k2)
        v0 = MatMul(x, wv)
        v2 = Reshape(v0, split)
        v = Transpose <perm = [0, 2, 1, 3]> (v2)
        s = MatMul(q, k)
        p = Softmax <axis = -1> (s)
        o = MatMul(p, v)
        t = Transpose <perm = [0, 2, 1, 3]> (o)
        m = Reshape(t, merged)
        y = MatMul(m, wo)
    }
    """
    weights = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8), "scale": (12,)}
    model = network(text, weights, {"split": [0, 0, 4, 3], "merged": [0, 0, 12]})
    with pytest.raises(BadInputError, match="no heads that can be removed") as refused:
        plan(model, "heads", Allocation(0.5), Ranking("l1"))
    assert "a norm is taken over it" in refused.value.got
    assert "allow_inexact" in refused.value.next_step
    made = plan(model, "heads", Allocation(0.5), Ranking("l1"), allow_inexact=True)
    assert made.allow_inexact
    for got, wanted in zip(run(remove(model, made)), run(mask(model, made)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
