"""Selectors that count for themselves, merge, or let tokens leave: what no vector shows."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import BadInputError
from secateur.models.selectors import (
    SELECTORS,
    aim,
    dtop,
    flowcut,
    quota,
    reagent,
    recoverable,
    spatten,
    top_vim,
    vflowopt,
)
from secateur.models.selectors.core import best, resolve_selector

SIZES = {"tokens": 12, "heads": 2, "query_heads": 2, "head_dim": 4, "width": 8, "channels": 6}
COUNTED = ("aim", "dtop", "flowcut", "quota", "recoverable", "top_vim", "vflowopt")


def signals_for(name, batch=3):
    seeded = torch.Generator().manual_seed(7)
    made = {}
    for signal in SELECTORS[name].signals:
        shape = [batch, *(SIZES.get(dim, 4) for dim in SELECTORS[name].axes(signal)[1:])]
        values = torch.randn(shape, generator=seeded)
        made[signal] = values.softmax(dim=-1)
        if signal in {"hidden", "keys", "values", "mask_logits"}:
            made[signal] = values
        if signal == "valid":
            made[signal] = torch.ones(shape, dtype=torch.bool)
    return made


@pytest.mark.parametrize("name", COUNTED)
def test_how_many_stay_does_not_depend_on_the_batch(name):
    signals, count = signals_for(name), torch.tensor([5, 7, 9])
    alone = [
        SELECTORS[name].decide(
            {key: x[i : i + 1] for key, x in signals.items()}, count[i : i + 1], 0
        )
        for i in range(3)
    ]
    together = SELECTORS[name].decide(signals, count, 0)
    assert together.count.tolist() == [int(one.count) for one in alone]


@pytest.mark.parametrize("name", COUNTED)
def test_at_least_one_and_at_most_all_tokens_stay(name):
    for asked in (1, 12):
        count = SELECTORS[name].decide(signals_for(name), torch.full((3,), asked), 0).count
        assert (count >= (0 if name in {"quota", "recoverable"} else 1)).all()
        assert (count <= 12).all()


@pytest.mark.parametrize("name", ["aim", "flowcut", "recoverable", "top_vim", "vflowopt", "dtop"])
def test_a_signal_that_is_no_number_gives_a_score_that_is_none(name):
    signals = signals_for(name)
    for signal, values in signals.items():
        if signal != "valid":
            signals[signal] = torch.full_like(values, torch.nan)
    assert SELECTORS[name].decide(signals, torch.full((3,), 6), 0).score.isnan().any()


def test_padding_changes_nothing_in_flowcut():
    signals, count = signals_for("flowcut"), torch.tensor([6, 6, 6])
    short = SELECTORS["flowcut"].decide(signals, count, 1)
    padded = {
        key: torch.nn.functional.pad(x, (0, 0, 0, 3) if key == "values" else (0, 3))
        for key, x in signals.items()
        if key != "class_value"
    }
    padded["class_value"] = signals["class_value"]
    long = SELECTORS["flowcut"].decide(padded, count, 1)
    torch.testing.assert_close(long.score[:, :12], short.score)
    assert long.count.tolist() == short.count.tolist()


def test_flowcut_prunes_nothing_before_an_odd_number_of_layers():
    chosen = SELECTORS["flowcut"].with_options({"remaining": 3})
    made = chosen.decide(signals_for("flowcut"), torch.full((3,), 4), 1)
    assert made.count.tolist() == [12, 12, 12]


def test_flowcut_keeps_the_budget_at_its_last_layer():
    made = SELECTORS["flowcut"].decide(signals_for("flowcut"), torch.full((3,), 4), 1)
    assert made.count.tolist() == [4, 4, 4]


def test_flowcut_halves_what_it_carries_on():
    signals = {**signals_for("flowcut"), "accumulated": torch.zeros(3, 12)}
    first = SELECTORS["flowcut"].decide(signals, torch.full((3,), 4), 1).state
    signals["accumulated"] = first * 3
    again = SELECTORS["flowcut"].decide(signals, torch.full((3,), 4), 1).state
    torch.testing.assert_close(again, first * 2)


def test_flowcut_that_is_faithful_prunes_as_in_the_widest_sample():
    attended = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])
    present, wanted = torch.tensor([4, 4]), torch.tensor([1, 1])
    arguments = (attended, present, wanted, torch.tensor(2))
    assert flowcut.number_left(*arguments).tolist() == [2, 4]
    assert flowcut.number_left(*arguments, faithful=True).tolist() == [2, 2]


def test_dtop_keeps_the_most_certain_of_each_class_as_context():
    prediction = torch.tensor([[[0.95, 0.99, 0.97, 0.1]]])
    assert dtop.leaving(prediction, threshold=0.9, keep_per_class=1).tolist() == [
        [True, False, True, False]
    ]


def test_dtop_with_fewer_tokens_than_context_lets_none_leave():
    prediction = torch.full((1, 2, 3), 0.99)
    assert not dtop.leaving(prediction, threshold=0.9, keep_per_class=5).any()


def test_top_vim_puts_the_class_token_in_the_middle():
    output = torch.arange(1.0, 10.0).flip(0).expand(1, 2, 9)  # flipped: the last score best
    made = top_vim.score(output, torch.ones(1, 9, dtype=torch.bool), torch.tensor([4]))
    assert made.count.tolist() == [5]
    assert made.score.argsort(dim=1, descending=True)[0, :5].tolist() == [5, 6, 4, 7, 8]


def test_aim_averages_a_token_into_the_one_it_is_most_like():
    hidden = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.5, 3.0]]])
    valid, count = torch.ones(1, 4, dtype=torch.bool), torch.tensor([3])
    made = aim.score(hidden, valid, count, 0)
    kept = best(made.score, made.count)
    index = kept.nonzero()[:, 1][None]
    merged = aim.combine(hidden, valid, index, torch.ones_like(index, dtype=torch.bool), 0) @ hidden
    assert merged.tolist() == [[[1.5, 0.0], [0.0, 1.0], [0.5, 3.0]]]


def test_aim_removes_no_more_than_every_second_token():
    made = aim.score(torch.randn(1, 9, 4), torch.ones(1, 9, dtype=torch.bool), torch.tensor([1]), 1)
    assert made.count.tolist() == [5]


def test_spatten_heads_that_were_dropped_stay_dropped():
    alive = torch.tensor([[True, True, False, True]])
    importance = torch.tensor([[1.0, 3.0, 9.0, 2.0]])
    total, left = spatten.cascade_heads(torch.zeros(1, 4), importance, alive, keep=2)
    assert left.tolist() == [[False, True, False, True]]
    assert total.tolist() == [[1.0, 3.0, 0.0, 2.0]]


def test_spatten_adds_up_what_tokens_received():
    valid = torch.ones(1, 2, dtype=torch.bool)
    made = spatten.score(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 2.0]]), valid)
    assert made.state.tolist() == [[2.0, 3.0]]


def test_outliers_stand_out_and_others_do_not():
    values = torch.cat([torch.linspace(0.0, 1.0, 30), torch.tensor([9.0])])[None]
    factor = recoverable.outlier_factor(values, torch.ones(1, 31, dtype=torch.bool), neighbours=5)
    assert factor[0, -1] < -1.5
    assert (factor[0, :30] > -1.5).all()


@pytest.mark.parametrize("filler", [0, 7])
@pytest.mark.parametrize("name", sorted(n for n, one in SELECTORS.items() if one.combine))
def test_fillers_of_the_rectangle_change_no_merge(name, filler):
    """A batch mate that keeps more makes empty places, whatever position stands in them."""
    selector, grid = SELECTORS[name], {"base": 2, "columns": 4, "cell": 2.0, "threshold": 1.0}
    if selector.on_grid:
        selector = resolve_selector(name, grid)
    signals = {key: x[:1] for key, x in signals_for(name).items()}
    index = torch.tensor([[1, 2, 4, 5, 9]])  # neither 0 nor 7
    there = torch.ones_like(index, dtype=torch.bool)
    wanted = selector.merge(signals, index, there, 0)
    wide = torch.cat([index, torch.full((1, 3), filler)], dim=1)
    got = selector.merge(signals, wide, torch.nn.functional.pad(there, (0, 3)), 0)
    torch.testing.assert_close(got.weights[:, :5], wanted.weights[:, :5])
    torch.testing.assert_close(got.weights[:, 8:], wanted.weights[:, 5:])


def test_vflowopt_recycles_a_cell_into_its_most_important_token():
    made = torch.tensor([[9.0, 1.0, 8.0, 3.0]])
    valid, layout = torch.ones(1, 4, dtype=torch.bool), vflowopt.Layout(2, 2, 2.0)
    kept = vflowopt.survivors(made, valid, torch.tensor([3]), layout)
    assert kept.tolist() == [[True, False, True, True]]
    weights = vflowopt.recycling(made, valid, kept, torch.tensor([[0, 2, 3]]), layout)
    torch.testing.assert_close(weights[0, 2], torch.tensor([0.0, 0.25, 0.0, 0.75]))


def test_vflowopt_without_weight_for_entropy_is_vflowopt_and_with_it_prefers_uneven_patches():
    signals, count = signals_for("vflowopt", batch=1), torch.tensor([7])
    uneven = torch.zeros(1, SIZES["tokens"])
    uneven[0, [5, 8]] = 8.0
    grid = {"threshold": 1.5, "base": 3, "columns": 9, "cell": 2.5}
    plain = resolve_selector("vflowopt", grid).decide(signals, count, 1)
    signals["patch_entropy"] = uneven
    for weight, wanted in ((0.0, plain.score), (50.0, None)):
        options = grid | {"entropy_weight": weight}
        made = resolve_selector("vflowopt_entropy", options).decide(signals, count, 1)
        if wanted is not None:
            assert made.score.tolist() == wanted.tolist()
        else:
            assert sorted(made.score[0].topk(2).indices.tolist()) == [5, 8]


def test_quota_of_frames_that_are_no_squares_is_refused():
    with pytest.raises(BadInputError, match="make no square"):
        quota.compress(torch.zeros(1, 5, 2), torch.tensor([3]), slots=4, version="v1")


def test_quota_of_an_unknown_version_is_refused():
    with pytest.raises(BadInputError, match="unknown version"):
        quota.compress(torch.zeros(1, 4, 2), torch.tensor([3]), slots=4, version="v9")


def test_quota_merges_down_to_the_quota_of_each_frame():
    frames = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    made = quota.compress(frames, torch.tensor([2, 5]), slots=9, version="v4")
    assert made.valid.sum(dim=1).tolist() == [2, 5]
    assert (made.tokens[0, 2:] == 0).all()


def depends_on_first(ids):
    """Probabilities that only the first token decides."""
    return torch.nn.functional.one_hot(ids[:, 0], 8).float() * 0.9 + 0.0125


def test_reagent_finds_the_token_that_decides():
    ids, target = torch.tensor([[3, 1, 2, 4, 5]]), torch.tensor([3])
    search = reagent.Search(vocabulary=3, top_k=1, kept_share=0.2, max_steps=100)
    found = reagent.find_importance(depends_on_first, ids, target, search)
    assert int(found.argmax()) == 0
    assert float(found.sum()) == pytest.approx(1.0)


def test_reagent_finds_the_same_alone_and_in_a_batch():
    ids, target = torch.tensor([[3, 1, 2, 4], [5, 1, 6, 0]]), torch.tensor([3, 5])
    search = reagent.Search(vocabulary=8, max_steps=5)
    together = reagent.find_importance(depends_on_first, ids, target, search)
    alone = reagent.find_importance(depends_on_first, ids[1:], target[1:], search)
    assert torch.equal(together[1:], alone)


def test_reagent_refuses_a_prediction_that_is_no_number():
    search = reagent.Search(vocabulary=8)
    with pytest.raises(BadInputError, match="no number"):
        reagent.find_importance(
            lambda ids: torch.full((1, 8), torch.nan),
            torch.tensor([[1, 2]]),
            torch.tensor([1]),
            search,
        )


@pytest.mark.parametrize("wrong", [{"kept_share": 1.5}, {"max_steps": 0}])
def test_reagent_refuses_a_search_that_cannot_be(wrong):
    with pytest.raises(BadInputError):
        reagent.Search(vocabulary=8, **wrong)
