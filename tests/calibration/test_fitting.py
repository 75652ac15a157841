"""Compensation and arrays from training, as a recipe asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.parity import tiny

from secateur.calibration.importance import Context
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Group
from secateur.recipe import Removal
from secateur.workflow.methods import list_methods
from secateur.workflow.pruning import Fitting, prune_and_fit
from secateur.workflow.recipe_file import load_recipe

REMOVALS = (Removal(what="ffn", ratio=0.5),)
RECIPE = 'schema: 1\nname: small\nmodel: {source: "tests.surface.small:encoder"}\n'


def test_a_fitted_removal_is_proved_like_any_other() -> None:
    pruned = prune_and_fit(tiny.exported(), REMOVALS, Fitting(compensate="bias"))
    assert pruned.fitted is not None
    assert pruned.proofs
    assert all(proof.passed for proof in pruned.proofs)


def test_without_compensation_nothing_is_fitted() -> None:
    assert prune_and_fit(tiny.exported(), REMOVALS, Fitting()).fitted is None


def test_obspa_needs_no_data_of_the_user() -> None:
    wanted = (Removal(what="ffn", ratio=0.5, importance="obspa"),)
    pruned = prune_and_fit(tiny.exported(), wanted, Fitting(compensate="obspa"))
    assert {len(kept) for kept in pruned.plan.keep.values()} == {12}


def test_gradients_reach_the_criterion() -> None:
    wanted = (Removal(what="ffn", ratio=0.5, importance="taylor"),)
    given = {name: np.ones(tuple(p.shape)) for name, p in tiny.bert().named_parameters()}
    assert prune_and_fit(tiny.exported(), wanted, Fitting(given)).plan.keep
    with pytest.raises(BadInputError, match="was handed in"):
        prune_and_fit(tiny.exported(), wanted, Fitting())


def test_a_recipe_names_the_file_beside_it_and_the_compensation(tmp_path: Path) -> None:
    np.savez(tmp_path / "gradients.npz", a=np.ones(1))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE + "arrays: gradients.npz\ncompensate: least_squares\n")
    loaded = load_recipe(recipe)
    assert loaded.arrays == tmp_path / "gradients.npz"
    assert loaded.compensate == "least_squares"


@pytest.mark.parametrize(
    ("line", "message"),
    [("arrays: none.npz", "no such arrays file"), ("compensate: obsp", "did you mean 'obspa'")],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE + line + "\n")
    with pytest.raises(BadInputError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_compensations_are_listed_with_their_sources() -> None:
    listed = {method.name: method for method in list_methods()["compensation"]}
    assert set(listed) == {"bias", "obspa", "obspa_sweep", "least_squares", "tyr"}
    assert "2403.18955" in listed["obspa"].source
    assert all(method.summary.endswith(".") for method in listed.values())


def by_position(group: Group, context: Context) -> np.ndarray:
    """A user's criterion: later units are better."""
    assert group in context.groups
    return np.arange(group.size, dtype=np.float64)


def test_a_users_function_ranks_the_units_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    own = (
        "remove: [{what: ffn, ratio: 0.5, importance: tests.calibration.test_fitting:by_position}]"
    )
    recipe.write_text(f"{RECIPE}{own}\n")
    pruned = prune_and_fit(tiny.exported(), load_recipe(recipe).remove, Fitting())
    assert set(pruned.plan.keep.values()) == {tuple(range(12, 24))}
    recipe.write_text(f"{RECIPE}{own.replace('by_position', 'by_nothing')}\n")
    with pytest.raises(BadInputError, match="cannot find the criterion"):
        load_recipe(recipe)
