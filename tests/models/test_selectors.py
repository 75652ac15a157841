"""Selectors on tensors: what they keep, and how they are found."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.errors import BadInputError
from secateur.models.selectors import SELECTORS, SIGNALS, resolve_selector

SIZES = {"batch": 3, "tokens": 7, "heads": 2, "head_dim": 4, "width": 8}


def signals_for(names, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in names:
        shape = [SIZES[dim] for dim in SIGNALS[name]]
        values = torch.randn(shape, generator=generator)
        made[name] = values > -0.5 if name == "valid" else values.to(dtype)
    return made


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_score_is_float32_per_token_and_finite(name, dtype):
    selector = SELECTORS[name]
    score = selector.score(**signals_for(selector.signals, dtype))
    assert score.dtype == torch.float32
    assert tuple(score.shape) == (3, 7)
    assert score.isfinite().all()


@pytest.mark.parametrize("name", SELECTORS)
def test_score_of_a_sample_does_not_depend_on_its_batch(name):
    selector = SELECTORS[name]
    signals = signals_for(selector.signals)
    alone = selector.score(**{key: value[1:2] for key, value in signals.items()})
    assert torch.equal(selector.score(**signals)[1:2], alone)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_names_its_kind_and_source(name):
    selector = SELECTORS[name]
    assert selector.kind == "top_k"
    assert selector.source
    assert selector.name == name


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
    selector = resolve_selector(f"{__name__}:hidden_mean")
    assert selector.signals == ("hidden",)
    assert selector.score(hidden=torch.ones(1, 2, 3)).tolist() == [[1.0, 1.0]]


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
