"""The parts of MADTP that the vectors do not reach: bad input, schedules, the loss."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import BadInputError
from secateur.models.madtp.budget import Adaptive, Scheduled, kept_counts
from secateur.models.madtp.concepts import Concepts, alignment_loss, concept_scores
from secateur.models.madtp.cut import Evidence, Tokens, countable, cut


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_cannot_divide_is_refused(temperature):
    with pytest.raises(BadInputError, match="temperature"):
        Adaptive(temperature)


def test_tokens_have_to_be_as_wide_as_the_concepts():
    with pytest.raises(BadInputError, match="width 8"):
        concept_scores(torch.zeros(1, 3, 4), torch.zeros(2, 8))


def test_concepts_need_a_count_and_a_width():
    with pytest.raises(BadInputError, match="no concept tokens"):
        Concepts(0, 8)


def test_the_scores_stay_in_float32():
    scores = concept_scores(torch.ones(1, 2, 4).half(), torch.ones(3, 4).half())
    assert scores.dtype == torch.float32


@pytest.mark.parametrize(("scale", "loss"), [(1.0, 0.0), (3.0, 0.0), (-1.0, 2.0)])
def test_the_alignment_loss_sees_directions_only(scale, loss):
    features = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    made = alignment_loss(features, scale * features)
    torch.testing.assert_close(made, torch.tensor(loss), atol=1e-5, rtol=0)


def _evidence(importance, mask=None):
    tokens = Tokens(torch.arange(importance.shape[1]).float()[None, :, None], mask)
    alive = countable(tokens, coupled=False)
    return tokens, Evidence(torch.zeros(*importance.shape, 2), importance, alive)


@pytest.mark.parametrize(
    ("count", "kept"), [(1, 1), (3, 3), (4, 5), (5, 5), (9, 5), (0, 5)], ids=str
)
def test_a_schedule_keeps_its_count_where_that_saves_a_token(count, kept):
    _, evidence = _evidence(torch.tensor([[0.0, 0.5, 0.1, 0.2, 0.15, 0.05]]))
    made, available = kept_counts(
        evidence.scores, evidence.importance, Scheduled(torch.tensor(count)), alive=evidence.alive
    )
    assert (int(made), int(available)) == (kept, 5)


def test_the_merged_token_is_the_mean_of_the_dropped_weighted_by_importance():
    tokens, evidence = _evidence(torch.tensor([[0.0, 0.5, 0.1, 0.2, 0.15, 0.05]]))
    made = cut(tokens, evidence, Scheduled(torch.tensor(2)), coupled=False, order="importance")
    merged = (2 * 0.1 + 4 * 0.15 + 5 * 0.05) / 0.3
    torch.testing.assert_close(made.tokens.hidden.flatten(), torch.tensor([0.0, 1.0, 3.0, merged]))


def test_kept_tokens_stay_in_their_order_where_it_matters():
    tokens, evidence = _evidence(torch.tensor([[0.0, 0.1, 0.2, 0.5, 0.15, 0.05]]))
    made = cut(tokens, evidence, Scheduled(torch.tensor(2)), coupled=False, order="position")
    assert made.index[0, :3].tolist() == [0, 2, 3]


def test_a_position_can_be_kept_whatever_its_importance():
    tokens, evidence = _evidence(torch.tensor([[0.0, 0.5, 0.1, 0.2, 0.15, 0.05]]))
    protected = Evidence(
        evidence.scores, evidence.importance, evidence.alive, always=torch.tensor([5])
    )
    made = cut(tokens, protected, Scheduled(torch.tensor(2)), coupled=False, order="position")
    assert made.index[0, :3].tolist() == [0, 1, 5]


def test_a_single_token_comes_out_as_it_went_in():
    tokens, evidence = _evidence(torch.zeros(1, 1))
    made = cut(tokens, evidence, Adaptive(1.0), coupled=False, order="importance")
    assert made.tokens.hidden.tolist() == tokens.hidden.tolist()


def test_equal_tokens_are_all_kept():
    tokens, evidence = _evidence(torch.tensor([[0.0, 0.25, 0.25, 0.25, 0.25]]))
    made = cut(tokens, evidence, Adaptive(1.0), coupled=False, order="importance")
    assert made.index.tolist() == [[0, 1, 2, 3, 4]]
