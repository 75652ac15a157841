"""A few cells of the table that ``make selectors`` fills, and what makes it fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.selectors import cell
from tests.selectors.methods import METHODS
from tests.selectors.run import unknown_refusals

from secateur.models.selectors import SELECTORS

FEW = [("class_row", "vit"), ("value_norm", "vit"), ("random", "vit")]
MORE = [("aim", "llava"), ("spatten", "llava"), ("divprune", "clip"), ("dtop", "vit")]
MORE += [("top_vim", "mamba"), ("hidden_norm", "mamba")]


@pytest.mark.parametrize(
    ("name", "target"), [*FEW, *(pytest.param(*one, marks=pytest.mark.sweep) for one in MORE)]
)
def test_the_graph_equals_the_masked_module_free_forced_and_alone(name: str, target: str) -> None:
    row = cell.check(name, target, engine=False)
    assert (row.free, row.forced, row.alone) == ("ok", "ok", "ok")


@pytest.mark.sweep
def test_an_engine_is_built_for_a_cell() -> None:
    assert cell.check("class_row", "vit").rtx == "ok"


def test_every_selector_has_its_row() -> None:
    used = {step.by for method in METHODS.values() for step in method.steps}
    assert {name for name in SELECTORS if not name.startswith("test_")} <= used


def test_a_refusal_that_nobody_wrote_down_is_new() -> None:
    row = cell.check("top_vim", "vit", engine=False)
    assert row.free == "refused"
    assert row.refusals[0].op == "Gather"
    assert not unknown_refusals([row])
    other = replace(row.refusals[0], message="something else")
    assert unknown_refusals([replace(row, refusals=(other,))])


def test_a_wrong_token_makes_the_cell_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def inverted(case: cell.Case) -> cell.ir.Model:
        model = real(case)
        for node in model.graph:
            if node.op_type == "TopK" and node.attributes.get_int("largest", 1):
                node.attributes["largest"] = cell.ir.AttrInt64("largest", 0)
        return model

    real = cell.insert
    monkeypatch.setattr(cell, "insert", inverted)
    row = cell.check("value_norm", "vit", engine=False)
    assert row.free.startswith("failed")
    assert row.failed
