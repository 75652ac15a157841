"""The marker op in PyTorch: it really drops tokens, and drops the right ones."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import BadInputError
from secateur.models.select_tokens import Keep, choose, select_tokens, select_tokens_with


def every(n_tokens, batch=1):
    return torch.ones(batch, n_tokens, dtype=torch.bool)


def test_best_tokens_stay_in_their_order():
    score = torch.tensor([[0.0, 1.0, 5.0, 2.0, 4.0]])
    kept = choose(score, every(5), Keep(600, protected=1))
    assert kept.index.tolist() == [[0, 2, 4]]


def test_share_is_rounded_up():
    assert choose(torch.rand(1, 7), every(7), Keep(500)).index.shape == (1, 4)


def test_protected_tokens_stay_whatever_their_score():
    score = torch.tensor([[-9.0, -8.0, 3.0, 4.0]])
    assert choose(score, every(4), Keep(500, protected=2)).index.tolist() == [[0, 1]]


def test_more_protected_than_the_share_are_kept():
    assert choose(torch.rand(1, 6), every(6), Keep(100, protected=3)).index.tolist() == [[0, 1, 2]]


def test_padding_never_beats_a_real_token():
    score = torch.tensor([[0.0, -5.0, -6.0, 9.0, 9.0]])
    valid = torch.tensor([[True, True, True, False, False]])
    kept = choose(score, valid, Keep(1000))
    assert kept.index.tolist() == [[0, 1, 2]]


def test_counts_follow_each_samples_valid_tokens():
    valid = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    kept = choose(torch.rand(2, 6), valid, Keep(500))
    assert kept.valid.tolist() == [[True, True, True], [True, False, False]]


def test_equal_scores_are_broken_by_position():
    assert choose(torch.zeros(1, 6), every(6), Keep(500, protected=0)).index.tolist() == [[0, 1, 2]]


def test_nan_scores_are_refused():
    with pytest.raises(BadInputError, match="NaN scores"):
        choose(torch.tensor([[0.0, float("nan")]]), every(2), Keep(500))


@pytest.mark.parametrize("share", [0, 1001, -3])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(BadInputError, match="share of the tokens"):
        Keep(share)


def test_negative_protection_is_refused():
    with pytest.raises(BadInputError, match="protected"):
        Keep(500, protected=-1)


def test_gather_takes_the_same_rows_along_any_axis():
    kept = choose(torch.tensor([[0.0, 1.0, 5.0], [0.0, 5.0, 1.0]]), every(3, 2), Keep(600))
    mask = torch.arange(18).reshape(2, 3, 3)
    assert kept.gather(mask, axis=2).tolist() == [
        [[0, 2], [3, 5], [6, 8]],
        [[9, 10], [12, 13], [15, 16]],
    ]


def attention_inputs(batch=2, n_tokens=6):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, 2, n_tokens, 4, generator=generator) for _ in range(3))
    return torch.randn(batch, n_tokens, 8, generator=generator), {"q": q, "k": k, "v": v}


@pytest.mark.parametrize("by", ["class_row", "column_mean", "key_norm", "value_norm", "random"])
def test_raw_attention_tensors_are_enough_for_every_selector(by):
    hidden, raw = attention_inputs()
    rows = select_tokens(hidden, raw, by=by, site="blocks.0", keep=0.5)
    assert rows.shape == (2, 3, 8)
    assert torch.equal(rows[:, 0], hidden[:, 0])


def test_class_row_keeps_what_the_class_token_attends_to():
    hidden, raw = attention_inputs(batch=1)
    weights = (raw["q"] @ raw["k"].transpose(-1, -2) / 2.0).softmax(-1)[0, :, 0].mean(0)
    best = weights[1:].topk(2).indices.add(1).sort().values.tolist()
    rows = select_tokens(hidden, raw, by="class_row", site="s", keep=0.5)
    assert torch.equal(rows, hidden[:, [0, *best]])


def test_missing_signal_is_named():
    hidden, _ = attention_inputs()
    with pytest.raises(BadInputError, match="signal 'class_row' cannot be built"):
        select_tokens(hidden, {}, by="class_row", site="s", keep=0.5)


def test_ragged_counts_need_the_form_that_returns_validity():
    hidden, raw = attention_inputs()
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    with pytest.raises(BadInputError, match="different numbers"):
        select_tokens(hidden, {**raw, "valid": valid}, by="hidden_norm", site="s", keep=0.5)
    rows, alive = select_tokens_with(
        hidden, {**raw, "valid": valid}, by="hidden_norm", site="s", keep=0.5
    )
    assert rows.shape == (2, 3, 8)
    assert alive.tolist() == [[True, True, True], [True, True, False]]


def test_padded_form_without_validity_is_refused():
    hidden, raw = attention_inputs()
    with pytest.raises(BadInputError, match="no validity"):
        select_tokens_with(hidden, raw, by="hidden_norm", site="s", keep=0.5)


def test_a_padded_sample_keeps_what_it_keeps_alone():
    hidden, raw = attention_inputs()
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    together, alive = select_tokens_with(
        hidden, {**raw, "valid": valid}, by="column_mean", site="s", keep=0.5
    )
    cut = {name: tensor[1:, :, :4] for name, tensor in raw.items()}
    alone = select_tokens(hidden[1:, :4], cut, by="column_mean", site="s", keep=0.5)
    assert torch.equal(together[1][alive[1]], alone[0])
