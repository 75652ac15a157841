"""Which samples a model is calibrated on: central ones, or two corners of error and entropy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.laws.small_models import network

from secateur.calibration.sample_choice import centrality, evidence, quadrant_levels, tf_idf
from secateur.errors import BadInputError
from secateur.recipe import Calibrate
from secateur.workflow.calibration_choice import choose_samples
from secateur.workflow.data import Samples

WORDS = 20
RNG = np.random.default_rng(0)


def texts(*sentences: list[int]) -> Samples:
    arrays = tuple(
        {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        for ids in sentences
    )
    padding = {"input_ids": 0.0, "attention_mask": 0.0}
    return Samples(arrays, tuple(str(ids) for ids in sentences), (), padding)


SOME = texts([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6, 4], [9, 10, 11], [12, 13, 1])


def scorer() -> ir.Model:
    """Scores of the next token, from the token alone."""
    text = f"""
    bigrams (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask)
        => (float[batch, tokens, {WORDS}] logits) {{
        a = Gather(table, input_ids)
        logits = MatMul(a, head)
    }}
    """
    return network(text, {"table": (WORDS, 8), "head": (8, WORDS)}, {})


def test_rare_words_weigh_more() -> None:
    features = tf_idf([np.array([3, 3, 5]), np.array([3, 7])])
    np.testing.assert_allclose(features, [[2, 1 + np.log(2), 0], [1, 0, 1 + np.log(2)]])


def test_the_samples_most_like_others_are_chosen() -> None:
    chosen = choose_samples(SOME, scorer(), Calibrate(choose="lexrank", samples=3))
    assert chosen.indices == (0, 1, 2)
    assert chosen.record()["sha256"] == SOME.subset((0, 1, 2)).sha256 != SOME.sha256


def test_unlike_samples_are_ranked_apart() -> None:
    features = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(centrality(features), 1.0)


def test_error_and_entropy_are_those_of_torch_over_real_tokens() -> None:
    logits = torch.from_numpy(RNG.standard_normal((2, 5, WORDS)))
    ids = torch.from_numpy(RNG.integers(0, WORDS, (2, 5)))
    real = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    error, uncertainty = evidence(logits.numpy(), ids.numpy(), real)
    for i, n in enumerate((5, 3)):
        part = logits[i, : n - 1]
        loss = torch.nn.functional.cross_entropy(part, ids[i, 1:n])
        entropy = torch.distributions.Categorical(logits=part).entropy().mean()
        np.testing.assert_allclose([error[i], uncertainty[i]], [loss.item(), entropy.item()])


def test_surely_wrong_and_unsurely_right_samples_come_first() -> None:
    error, unsure = np.array([9.0, 1.0, 8.0, 2.0, 5.0]), np.array([1.0, 9.0, 8.0, 2.0, 5.0])
    levels = quadrant_levels(error, unsure)
    assert set(np.argsort(levels)[:2].tolist()) == {0, 1}
    assert set(np.argsort(levels)[3:].tolist()) == {2, 3}


def test_the_plane_is_drawn_by_the_models_own_scores() -> None:
    model = scorer()
    sentences = [RNG.integers(1, WORDS, n).tolist() for n in (6, 4, 7, 5, 6, 3)]
    samples = texts(*sentences)
    table, head = (model.graph.initializers[n].const_value.numpy() for n in ("table", "head"))
    found = []
    for one in samples.arrays:
        ids = one["input_ids"]
        found.append(np.ravel(evidence(table[ids] @ head, ids, np.ones(ids.shape, bool))))
    levels = quadrant_levels(*np.array(found).T)
    chosen = choose_samples(samples, model, Calibrate(choose="q_tuning", samples=3))
    assert chosen.indices == tuple(sorted(np.argsort(levels, kind="stable")[:3].tolist()))


def test_a_model_without_scores_of_tokens_is_refused() -> None:
    text = """
    pool (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask)
        => (float[batch, 8] y) {
        a = Gather(table, input_ids)
        y = ReduceMean <keepdims = 0> (a, one)
    }
    """
    model = network(text, {"table": (WORDS, 8)}, {"one": np.array([1])})
    with pytest.raises(BadInputError, match="scores the next token"):
        choose_samples(SOME, model, Calibrate(choose="q_tuning"))


def test_pictures_of_one_shape_are_compared_as_they_are() -> None:
    images = np.stack([np.eye(4)] * 3 + [np.ones((4, 4))[::-1].cumsum(0)]).astype(np.float32)
    samples = Samples(tuple({"x": image[None]} for image in images), ("",) * 4)
    chosen = choose_samples(samples, scorer(), Calibrate(choose="lexrank", samples=3))
    assert chosen.indices == (0, 1, 2)
    ragged = Samples(({"x": images[:1]}, {"x": images[:1, :2]}), ("", ""))
    with pytest.raises(BadInputError, match="different shapes"):
        choose_samples(ragged, scorer(), Calibrate(choose="lexrank"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(BadInputError, match="NaN or infinities"):
        centrality(np.array([[1.0, value]]))


def test_a_sample_of_one_token_cannot_be_predicted() -> None:
    with pytest.raises(BadInputError, match="fewer than two tokens"):
        evidence(np.zeros((1, 1, 4)), np.zeros((1, 1), np.int64), np.ones((1, 1), bool))
