"""Selectors on tensors: what they keep, and how they are found."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.errors import BadInputError
from secateur.models.selectors import KINDS, SELECTORS, resolve_selector, selector
from secateur.models.selectors.core import behind_protected, best, ranks

SIZES = {
    "batch": 3,
    "tokens": 50,
    "heads": 2,
    "query_heads": 2,
    "head_dim": 4,
    "width": 8,
    "layers": 2,
}
COUNT = torch.tensor([20, 25, 30])


def signals_for(chosen, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in chosen.signals:
        shape = [SIZES.get(dim, 3) for dim in chosen.axes(name)]
        values = torch.randn(shape, generator=generator)
        made[name] = values > -0.5 if name == "valid" else values.to(dtype)
    return made


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_score_is_float32_per_token_and_finite(name, dtype):
    chosen = SELECTORS[name]
    score = chosen.decide(signals_for(chosen, dtype), COUNT, 1).score
    assert score.dtype == torch.float32
    assert tuple(score.shape) == (3, 50)
    assert score.isfinite().all()


@pytest.mark.parametrize("name", SELECTORS)
def test_score_of_a_sample_does_not_depend_on_its_batch(name):
    chosen = SELECTORS[name]
    signals = signals_for(chosen)
    one = {key: value[1:2] for key, value in signals.items()}
    alone = chosen.decide(one, COUNT[1:2], 1).score
    torch.testing.assert_close(chosen.decide(signals, COUNT, 1).score[1:2], alone)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_names_its_kind_and_source(name):
    chosen = SELECTORS[name]
    assert chosen.kind in KINDS
    assert chosen.cost
    assert chosen.source
    assert chosen.name == name


def test_key_norm_prefers_short_keys():
    keys = torch.ones(1, 2, 3, 4) * torch.tensor([3.0, 1.0, 2.0])[None, None, :, None]
    assert SELECTORS["key_norm"].score(keys=keys).argmax() == 1


def test_value_norm_prefers_long_values():
    values = torch.ones(1, 2, 3, 4) * torch.tensor([3.0, 1.0, 2.0])[None, None, :, None]
    score = SELECTORS["value_norm"].score(values=values)
    assert torch.allclose(score, torch.tensor([[6.0, 2.0, 4.0]]))


def test_hidden_norm_is_the_length():
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    assert SELECTORS["hidden_norm"].score(hidden=hidden).tolist() == [[5.0, 1.0]]


def test_random_scores_do_not_tie_and_look_unordered():
    valid = torch.ones(2, 4096, dtype=torch.bool)
    score = SELECTORS["random"].score(valid=valid)[0]
    assert len(score.unique()) == 4096
    position = torch.arange(4096.0)
    correlation = torch.corrcoef(torch.stack([score, position]))[0, 1]
    neighbours = torch.corrcoef(torch.stack([score[1:], score[:-1]]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(4096)
    assert abs(float(neighbours)) < 5 / math.sqrt(4096)


def test_unknown_selector_names_the_nearest():
    with pytest.raises(BadInputError, match="did you mean 'class_row'"):
        resolve_selector("class_rows")


def test_user_function_is_a_selector():
    chosen = resolve_selector(f"{__name__}:hidden_mean")
    assert chosen.signals == ("hidden",)
    assert chosen.score(hidden=torch.ones(1, 2, 3)).tolist() == [[1.0, 1.0]]


def hidden_mean(hidden):
    return hidden.float().mean(dim=-1)


def not_signals(query, key):
    return query + key


def test_user_function_with_unknown_signals_is_refused():
    with pytest.raises(BadInputError, match="query, key"):
        resolve_selector(f"{__name__}:not_signals")


def test_missing_module_of_a_user_selector_is_named():
    with pytest.raises(BadInputError, match="no_such_package_here"):
        resolve_selector("no_such_package_here:score")


def test_missing_function_of_a_user_selector_is_named():
    with pytest.raises(BadInputError, match="no function 'absent'"):
        resolve_selector("math:absent")


def with_option(hidden, count, protected, *, alpha=0.5):
    return hidden.float().sum(dim=-1) * alpha + count[:, None] + protected


def test_options_count_and_protection_reach_the_function():
    chosen = resolve_selector(f"{__name__}:with_option", {"alpha": 2})
    assert chosen.signals == ("hidden",)
    assert chosen.reads_count
    made = chosen.decide({"hidden": torch.ones(1, 2, 3)}, torch.tensor([7]), 1)
    assert made.score.tolist() == [[14.0, 14.0]]


def test_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(BadInputError, match="no option 'beta'") as refused:
        resolve_selector(f"{__name__}:with_option", {"beta": 1.0})
    assert "alpha" in str(refused.value)


def test_option_of_another_type_is_refused():
    with pytest.raises(BadInputError, match="wrong type"):
        resolve_selector(f"{__name__}:with_option", {"alpha": "much"})


def test_best_keeps_the_count_of_each_row_and_the_earlier_of_equals():
    score = torch.tensor([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0]])
    assert best(score, torch.tensor([1, 2])).tolist() == [[False, True, False], [True, True, False]]


def test_ranks_are_a_permutation_from_the_largest_down():
    assert ranks(torch.tensor([[0.0, 9.0, 4.0]])).tolist() == [[2, 0, 1]]


def test_scores_behind_protected_tokens_line_up_with_all_tokens():
    assert behind_protected(torch.ones(1, 2), 1).tolist() == [[0.0, 1.0, 1.0]]


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown kind"):
        selector("never_registered", source="none", kind="best")(hidden_mean)
