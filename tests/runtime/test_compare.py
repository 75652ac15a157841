"""Comparison of values and selections."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.runtime.compare import (
    TOLERANCES,
    SelectionReference,
    compare,
    compare_selection,
    cosine,
    percentile99,
    relative_error,
)

FP32 = TOLERANCES["float32"]


def test_relative_error_is_the_largest_difference_over_the_largest_value() -> None:
    wanted = np.array([1.0, -4.0, 2.0])
    assert relative_error(wanted + np.array([0.0, 0.0, 0.2]), wanted) == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_an_infinite_error(bad: float) -> None:
    assert relative_error(np.array([1.0, bad]), np.array([1.0, 2.0])) == np.inf


def test_equal_infinities_are_equal() -> None:
    same = np.array([np.inf, -np.inf, 1.0])
    assert relative_error(same, same) == 0.0


def test_nan_in_both_is_still_an_error() -> None:
    both = np.array([np.nan, 1.0])
    assert relative_error(both, both) == np.inf


def test_a_difference_from_zeros_is_infinite() -> None:
    assert relative_error(np.ones(3), np.zeros(3)) == np.inf
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0


def test_float16_is_compared_in_double() -> None:
    big = np.full(4, 60000, np.float16)
    assert relative_error(-big, big) == 2.0


def test_p99_leaves_out_one_outlier_in_a_thousand() -> None:
    wanted = np.ones(1000)
    got = wanted.copy()
    got[7] = 3.0
    assert percentile99(got, wanted) == 0.0
    assert relative_error(got, wanted) == 2.0


def test_cosine_of_opposite_and_zero_vectors() -> None:
    a = np.array([1.0, 2.0])
    assert cosine(a, a) == pytest.approx(1.0)
    assert cosine(-a, a) == pytest.approx(-1.0)
    assert cosine(np.zeros(2), a) == 0.0
    assert cosine(np.zeros(2), np.zeros(2)) == 1.0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(BadInputError, match="shapes"):
        relative_error(np.ones(2), np.ones(3))


def test_compare_names_the_worst_element_and_fails_above_the_bound() -> None:
    wanted = np.ones((2, 3))
    got = wanted.copy()
    got[1, 2] = 1.001
    result = compare("y", got, wanted, tolerance=FP32)
    assert not result.passed
    assert result.worst == (1, 2)
    assert "exceeds" in result.reason
    assert compare("y", wanted, wanted, tolerance=FP32).passed


def test_an_output_of_another_shape_fails() -> None:
    result = compare("y", np.ones((2, 2)), np.ones((2, 3)), tolerance=FP32)
    assert not result.passed
    assert "[2, 2] instead of [2, 3]" in result.reason


def _reference(score: list[float], kept: list[int]) -> SelectionReference:
    return SelectionReference(np.array([score]), np.array([kept]), np.ones((1, len(score)), bool))


SCORE = [4.0, 3.0, 3.0 - 1e-6, 1.0]


def test_equal_selections_pass() -> None:
    reference = _reference(SCORE, [0, 1])
    result = compare_selection(
        "s", reference.score, reference.index, reference=reference, bound=1e-5
    )
    assert result.passed
    assert (result.flips, result.score_error) == (0, 0.0)


def test_a_flip_of_a_near_tie_passes_and_is_counted() -> None:
    reference = _reference(SCORE, [0, 1])
    result = compare_selection(
        "s", reference.score, np.array([[0, 2]]), reference=reference, bound=1e-5
    )
    assert result.passed
    assert result.flips == 2
    assert result.worst_margin == pytest.approx(1e-6)


@pytest.mark.parametrize("planted", [[0, 3], [1, 2], [2, 3]])
def test_a_planted_wrong_index_fails(planted: list[int]) -> None:
    reference = _reference(SCORE, [0, 1])
    result = compare_selection(
        "s", reference.score, np.array([planted]), reference=reference, bound=1e-5
    )
    assert not result.passed
    assert "not a near-tie" in result.reason


def test_a_wrong_index_in_the_reference_fails_too() -> None:
    reference = _reference(SCORE, [0, 3])
    result = compare_selection(
        "s", reference.score, np.array([[0, 1]]), reference=reference, bound=1e-5
    )
    assert not result.passed


def test_two_near_ties_cannot_hide_a_wide_flip() -> None:
    # 1 and 2 lie within the allowance of the boundary, but 0 against 3 does not.
    score = [1.0, 1.0 - 1.5e-5, 1.0 - 2.5e-5, 1.0 - 4.0e-5]
    reference = _reference(score, [0, 1])
    result = compare_selection(
        "s", reference.score, np.array([[2, 3]]), reference=reference, bound=1e-5
    )
    assert not result.passed


def test_a_score_error_above_the_bound_fails_without_any_flip() -> None:
    reference = _reference(SCORE, [0, 1])
    result = compare_selection(
        "s", reference.score + 1e-4, reference.index, reference=reference, bound=1e-5
    )
    assert not result.passed
    assert "score error" in result.reason


def test_another_number_of_tokens_fails() -> None:
    reference = _reference(SCORE, [0, 1])
    for index in ([[0, -1]], [[0, 0]], [[0, 1, 2]]):
        result = compare_selection(
            "s", reference.score, np.array(index), reference=reference, bound=1e-5
        )
        assert not result.passed, index


def test_an_index_beyond_the_tokens_fails() -> None:
    reference = _reference(SCORE, [0, 1])
    result = compare_selection(
        "s", reference.score, np.array([[0, 9]]), reference=reference, bound=1e-5
    )
    assert not result.passed


def test_ties_at_minus_infinity_are_no_flips_to_fail_on() -> None:
    reference = _reference([4.0, -np.inf, -np.inf], [0, 1])
    result = compare_selection(
        "s", reference.score, np.array([[0, 2]]), reference=reference, bound=1e-5
    )
    assert result.passed


def test_a_lost_protected_token_fails() -> None:
    reference = _reference([np.inf, 2.0, 1.0], [0, 1])
    result = compare_selection(
        "s", reference.score, np.array([[1, 2]]), reference=reference, bound=1e-5
    )
    assert not result.passed


def test_padding_neither_widens_the_bound_nor_may_be_kept() -> None:
    valid = np.array([[True, True, False]])
    score = np.array([[0.02, 0.01, -300.0]])
    reference = SelectionReference(score, np.array([[0]]), valid)
    result = compare_selection("s", score, np.array([[2]]), reference=reference, bound=1e-5)
    assert result.score_bound == pytest.approx(2e-7)
    assert not result.passed


def test_nan_scores_fail() -> None:
    reference = _reference(SCORE, [0, 1])
    score = reference.score.copy()
    score[0, 3] = np.nan
    result = compare_selection("s", score, reference.index, reference=reference, bound=1e-5)
    assert not result.passed


def test_empty_slots_may_be_minus_one_or_repeat_the_last_position() -> None:
    reference = SelectionReference(
        np.array([SCORE, SCORE]), np.array([[0, 1, 2], [0, 1, -1]]), np.ones((2, 4), bool)
    )
    for empty in (-1, 3):
        index = np.array([[0, 1, 2], [0, 1, empty]])
        result = compare_selection("s", reference.score, index, reference=reference, bound=1e-5)
        assert result.passed, empty


def test_protected_tokens_may_be_marked_by_validity_and_must_stay() -> None:
    score = np.array([[1.0, 3.0, 1.0]])
    reference = SelectionReference(score, np.array([[0, 1]]), np.array([[False, True, True]]))
    kept = compare_selection("s", score, np.array([[0, 1]]), reference=reference, bound=1e-5)
    lost = compare_selection("s", score, np.array([[1, 2]]), reference=reference, bound=1e-5)
    assert kept.passed
    assert not lost.passed
