"""SHRP: routers that are trained on what heads give, and heads ranked by their choices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.parity import tiny

from secateur.calibration.activations import observe
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.shrp_training import Training, maker, train_routers
from secateur.calibration.planning import removable
from secateur.calibration.statistics import all_places
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.names import parameter_name

STRONG = 2


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """An encoder of whose heads the third says ten times as much as the others."""
    model = tiny.exported().clone()
    for name, value in model.graph.initializers.items():
        if parameter_name(model, name).endswith("attention.o.weight"):
            weight = value.const_value.numpy().copy()
            rows = slice(STRONG * tiny.D // tiny.H, (STRONG + 1) * tiny.D // tiny.H)
            weight[rows] *= 10  # the graph holds (in, out)
            value.const_value = ir.tensor(weight, name=name)
    return analyse(model)


@pytest.fixture(scope="module")
def routers(analysis: Analysis) -> dict[str, np.ndarray]:
    told: list[str] = []
    training = Training(steps=60, progress=told.append)
    found = train_routers(analysis, removable(analysis, "heads"), [tiny.BATCH], training)
    assert len(told) == 3
    return found


def test_a_trained_router_sends_tokens_to_the_head_that_says_most(analysis, routers) -> None:
    groups = removable(analysis, "heads")
    for scores in rank("shrp", Context(analysis, groups, [tiny.BATCH], arrays=routers)).values():
        assert scores.argmax() == STRONG
        np.testing.assert_allclose(scores.sum(), 1)


def test_heads_are_counted_by_first_choice_over_real_tokens(analysis: Analysis) -> None:
    groups = removable(analysis, "heads")[:1]
    rng = np.random.default_rng(0)
    name = groups[0].name
    given = {
        f"{name}@router": rng.standard_normal((tiny.D, tiny.H)),
        f"{name}@router_bias": rng.standard_normal(tiny.H),
    }
    place = maker(groups[0], all_places(analysis))
    ((_, seen),) = observe(analysis.model, [place.value], [tiny.BATCH])
    rows = seen[place.value][tiny.BATCH["attention_mask"].astype(bool)]
    first = (rows @ given[f"{name}@router"] + given[f"{name}@router_bias"]).argmax(1)
    (scores,) = rank("shrp", Context(analysis, groups, [tiny.BATCH], arrays=given)).values()
    np.testing.assert_allclose(scores, np.bincount(first, minlength=tiny.H) / len(rows))


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (None, "was handed in"),
        (np.ones((tiny.D, tiny.H + 1)), "another number of heads"),
        (np.ones((tiny.D + 1, tiny.H)), "another width"),
    ],
)
def test_a_router_that_does_not_fit_is_refused(analysis, router, message: str) -> None:
    groups = removable(analysis, "heads")[:1]
    given = {} if router is None else {f"{groups[0].name}@router": router}
    with pytest.raises(BadInputError, match=message):
        rank("shrp", Context(analysis, groups, [tiny.BATCH], arrays=given))


def test_other_units_than_heads_have_no_router(analysis: Analysis) -> None:
    groups = removable(analysis, "ffn")
    with pytest.raises(PreconditionError, match="routers choose among heads"):
        rank("shrp", Context(analysis, groups, [tiny.BATCH]))


def test_a_training_without_steps_is_refused() -> None:
    with pytest.raises(BadInputError, match="one step at least"):
        Training(steps=0)


def test_routers_need_data(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match="needs data"):
        train_routers(analysis, removable(analysis, "heads"), [], Training())
