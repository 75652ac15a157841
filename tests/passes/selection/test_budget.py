"""How many tokens stay: shares, counts, constants, padding, ties."""

from __future__ import annotations

import numpy as np
import pytest
from tests.passes.selection.models import Variant, build
from tests.passes.selection.reference import choose, relative_error, run
from tests.passes.selection.support import (
    TOLERANCE,
    amounts,
    assert_selects_like,
    expect,
    feeds,
    insert,
    selections,
    site,
)

from secateur.graph_passes.selection.budget import Budget

RAGGED = (9, 4, 7)
MASKED = Variant(pool="mask")


@pytest.mark.parametrize("count", [-3, 0, 1, 4, 6, 100])
def test_count_is_held_between_the_protected_and_the_valid(count: int) -> None:
    model = insert(build(MASKED), selections((0,), budget=Budget("count", 6)))
    fed = feeds(MASKED, RAGGED)
    got = run(model, fed | amounts((0,), (count,), "k"))
    want = expect(MASKED, (0,), fed, counts=(max(count, 1),))
    assert_selects_like(got, want, (0,))


@pytest.mark.parametrize("count", [-1, 0, 1, 5, 8, 50])
def test_count_without_a_mask(count: int) -> None:
    variant = Variant(mask="none", tokens=8)
    model = insert(build(variant), selections((0, 1), budget=Budget("count", 4)))
    fed = feeds(variant, (8, 8))
    got = run(model, fed | amounts((0, 1), (count, max(count - 1, 0)), "k"))
    want = expect(variant, (0, 1), fed, counts=(max(count, 1), max(count - 1, 1)))
    assert_selects_like(got, want, (0, 1))


@pytest.mark.parametrize("budget", [Budget("permille", 600, False), Budget("count", 5, False)])
def test_constant_budget_has_no_input(budget: Budget) -> None:
    model = insert(build(MASKED), selections((0,), budget=budget))
    fed = feeds(MASKED, RAGGED)
    kind = {"permille": (600,)} if budget.kind == "permille" else {"counts": (5,)}
    assert_selects_like(run(model, fed), expect(MASKED, (0,), fed, **kind), (0,))


def test_constant_count_of_fixed_tokens_costs_no_arithmetic() -> None:
    variant = Variant(mask="none", tokens=8, sizes="constant")
    model = insert(build(variant), selections((0,), budget=Budget("count", 5, False)))
    ops = {n.op_type for n in model.graph.node if n.name.startswith(f"{site(0)}/selection/")}
    assert not ops & {"Min", "Div", "Range", "Less", "Cast"}


def test_constant_budgets_of_two_sites_may_be_equal() -> None:
    variant = Variant(mask="none", tokens=8, sizes="constant")
    model = insert(build(variant), selections((0, 1), budget=Budget("count", 5, False)))
    fed = feeds(variant, (8, 8))
    assert_selects_like(run(model, fed), expect(variant, (0, 1), fed, counts=(5, 5)), (0, 1))


@pytest.mark.parametrize("signal", ["class_row", "column_mean", "keys", "values", "hidden"])
def test_a_sample_in_a_batch_equals_the_sample_alone(signal: str) -> None:
    model = insert(build(MASKED), selections((0, 1), signal))
    fed, share = feeds(MASKED, RAGGED, seed=3), amounts((0, 1), (600, 600))
    together = run(model, fed | share)
    for b, length in enumerate(RAGGED):
        alone = run(model, {k: v[b : b + 1, :length] for k, v in fed.items()} | share)
        assert relative_error(together["y"][b], alone["y"][0]) < TOLERANCE
        for at in (0, 1):
            kept = together[f"{site(at)}.kept"][b]
            np.testing.assert_array_equal(kept[kept >= 0], alone[f"{site(at)}.kept"][0])


def test_a_sample_padded_on_the_left_equals_the_sample_alone() -> None:
    model = insert(build(MASKED), selections((0, 1), "keys"))
    fed, share = feeds(MASKED, RAGGED), amounts((0, 1), (600, 600))
    turned = {k: np.ascontiguousarray(v[:, ::-1]) for k, v in fed.items()}
    together = run(model, turned | share)
    for b, length in enumerate(RAGGED):
        alone = run(model, {k: v[b : b + 1, -length:] for k, v in turned.items()} | share)
        assert relative_error(together["y"][b], alone["y"][0]) < TOLERANCE
        kept = together[f"{site(1)}.kept"][b]
        start = max(RAGGED) - length
        np.testing.assert_array_equal(kept[kept >= 0] - start, alone[f"{site(1)}.kept"][0])


def test_a_sample_of_nothing_but_padding_does_no_harm_to_others() -> None:
    model = insert(build(MASKED), selections((0, 1)))
    fed, share = feeds(MASKED, RAGGED), amounts((0, 1), (600, 600))
    want = run(model, fed | share)
    fed["mask"][1] = 0
    got = run(model, fed | share)
    for b in (0, 2):
        assert relative_error(got["y"][b], want["y"][b]) < TOLERANCE
    assert (got[f"{site(0)}.kept"][1] == -1).all()


def test_a_batch_of_nothing_but_padding_runs() -> None:
    model = insert(build(MASKED), selections((0, 1)))
    fed = feeds(MASKED, (5, 5))
    fed["mask"][:] = 0
    got = run(model, fed | amounts((0, 1), (600, 600)))
    assert got[f"{site(1)}.kept"].tolist() == [[-1], [-1]]


def test_ties_keep_the_first() -> None:
    model = insert(build(MASKED), selections((0,), "valid"))
    fed = feeds(MASKED, (8, 5))
    got = run(model, fed | amounts((0,), (500,)))
    assert got[f"{site(0)}.kept"].tolist() == [[0, 1, 2, 3], [0, 1, 2, -1]]


def test_more_slots_than_real_tokens_do_not_matter() -> None:
    model = insert(build(MASKED), selections((0, 1)))
    fed, share = feeds(MASKED, (9, 2)), amounts((0, 1), (1000, 1000))
    got = run(model, fed | share)
    alone = run(model, {k: v[1:, :2] for k, v in fed.items()} | share)
    assert got[f"{site(1)}.kept"][1].tolist() == [0, 1] + [-1] * 7
    assert relative_error(got["y"][1], alone["y"][0]) < TOLERANCE


def test_protected_tokens_stay_whatever_their_score() -> None:
    variant = Variant(mask="none", tokens=8)
    model = insert(build(variant), selections((0,), "hidden", Budget("count", 4, protected=3)))
    fed = feeds(variant, (8, 8))
    fed["x"][:, :3] *= 0.01
    got = run(model, fed | amounts((0,), (4,), "k"))
    assert (got[f"{site(0)}.kept"][:, :3] == [0, 1, 2]).all()


def test_share_is_rounded_up_in_integers() -> None:
    alive = np.ones((1, 10), bool)
    assert choose(np.zeros((1, 10)), alive, permille=501).sum() == 6
    model = insert(build(MASKED), selections((0,)))
    got = run(model, feeds(MASKED, (10,)) | amounts((0,), (501,)))
    assert got[f"{site(0)}.kept"].shape == (1, 6)


@pytest.mark.parametrize("kind", ["permille", "count"])
def test_width_from_shapes_alone_gives_the_same_results(kind: str) -> None:
    fed = feeds(MASKED, RAGGED)
    share = amounts((0, 1), (500, 500) if kind == "permille" else (5, 3), _unit(kind))
    longest = insert(build(MASKED), selections((0, 1), budget=Budget(kind, 500)))
    padded = insert(build(MASKED), selections((0, 1), budget=Budget(kind, 500, width="padded")))
    assert not any(node.op_type == "ReduceMax" for node in padded.graph.node)
    for rows in (slice(None), slice(1, 3)):  # the second batch has no sample as long as it is
        part = {k: v[rows] for k, v in fed.items()}
        want, got = run(longest, part | share), run(padded, part | share)
        assert relative_error(got["y"], want["y"]) < TOLERANCE
        for at in (0, 1):
            one, other = got[f"{site(at)}.kept"], want[f"{site(at)}.kept"]
            np.testing.assert_array_equal(one[:, : other.shape[1]], other)
            assert (one[:, other.shape[1] :] == -1).all()


def _unit(kind: str) -> str:
    return "permille" if kind == "permille" else "k"
