"""Scores over the weights of a coupled group: what is summed, and how groups are compared."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network

from secateur.calibration.importance import Context, Scoring, rank
from secateur.calibration.importance.aggregation import aggregate, normalise
from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse

ROWS = np.array([[1.0, 2.0, 3.0], [4.0, 1.0, 0.5]])
_TEXT = """
conv (float[batch, 3, 8, 8] x) => (float[batch, 2, 8, 8] y) {
    a = Conv(x, w1, b1)
    b = BatchNormalization(a, gamma, beta, mean, var)
    c = Conv <group = 4> (b, depthwise)
    y = Conv(c, w2)
}
"""


@pytest.fixture
def model() -> ir.Model:
    weights = {"w1": (4, 3, 1, 1), "b1": (4,), "gamma": (4,), "beta": (4,), "mean": (4,),
               "depthwise": (4, 1, 1, 1), "w2": (2, 4, 1, 1)}  # fmt: skip
    return network(_TEXT, weights, {"var": np.full(4, 0.7, np.float32)})


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.abs(tensor.numpy().astype(np.float64))


def l1(model: ir.Model, scoring: Scoring) -> np.ndarray:
    analysis = analyse(model)
    group = group_of(analysis, "w1", 0)
    (scores,) = rank("l1", Context(analysis, (group,), scoring=scoring)).values()
    return scores


def members(model: ir.Model) -> np.ndarray:
    """(4 weights, 4 channels): what each multiplied weight has of every channel."""
    sums = {"w1": (1, 2, 3), "gamma": (), "depthwise": (1, 2, 3), "w2": (0, 2, 3)}
    return np.stack([array(model, name).sum(axis=axes) for name, axes in sums.items()])


def test_statistics_of_a_batch_norm_are_no_weights(model: ir.Model) -> None:
    want = members(model).sum(axis=0) + array(model, "b1") + array(model, "beta")
    np.testing.assert_allclose(l1(model, Scoring()), want)


def test_biases_can_be_left_out(model: ir.Model) -> None:
    np.testing.assert_allclose(l1(model, Scoring(biases=False)), members(model).sum(axis=0))


@pytest.mark.parametrize(("how", "of"), [("mean", np.mean), ("max", np.max), ("prod", np.prod)])
def test_the_weights_of_a_unit_are_reduced_as_asked(model: ir.Model, how, of) -> None:
    got = l1(model, Scoring(how, biases=False))
    np.testing.assert_allclose(got, of(members(model), axis=0))


def test_a_group_of_biases_alone_is_measured_by_them() -> None:
    text = """
    positions (float[batch, 5, 8] x) => (float[batch, 3, 8] y) {
        a = Add(x, place)
        y = MatMul(mix, a)
    }
    """
    model = network(text, {"place": (8,), "mix": (3, 5)})
    analysis = analyse(model)
    group = group_of(analysis, "place", 0)
    (scores,) = rank("l1", Context(analysis, (group,), scoring=Scoring(biases=False))).values()
    np.testing.assert_allclose(scores, array(model, "place"))


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("sum", [5.0, 3.0, 3.5]),
        ("mean", [2.5, 1.5, 1.75]),
        ("max", [4.0, 2.0, 3.0]),
        ("prod", [4.0, 2.0, 1.5]),
        ("first", [1.0, 2.0, 3.0]),
    ],
)
def test_reductions(how: str, want: list[float]) -> None:
    np.testing.assert_allclose(aggregate(ROWS, how), want)


@pytest.mark.parametrize(("how", "scale"), [("none", 1), ("sum", 8), ("mean", 2), ("max", 4)])
def test_normalisations_take_absolute_values(how: str, scale: float) -> None:
    scores = np.array([1.0, -2.0, 4.0, 1.0])
    np.testing.assert_allclose(normalise(scores, how), scores / scale)


def test_scores_of_zero_stay_zero() -> None:
    assert normalise(np.zeros(3), "sum").tolist() == [0, 0, 0]


def test_an_unknown_reduction_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="unknown aggregate 'median'") as refused:
        Scoring("median")  # type: ignore[arg-type]
    assert "prod" in refused.value.wanted


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(BadInputError, match="unknown normalise 'range'"):
        normalise(np.ones(2), "range")
