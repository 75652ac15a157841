"""What Triton does with requests, done with ONNX Runtime: concatenate, run, split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.passes.selection.models import Variant
from tests.passes.selection.reference import Arrays, run
from tests.passes.selection.support import amounts, feeds
from tests.serving.conftest import MASKED, selecting, write_bundle

from secateur.graph_passes.selection.budget import Budget
from secateur.runtime.bundle import open_bundle
from secateur.workflow.triton import Serving, write_repository

LAYERS = (0, 1)
LENGTHS = (9, 4, 7)


def served(tmp_path: Path, budget: Budget, how: str, variant: Variant = MASKED) -> onnx.ModelProto:
    bundle = write_bundle(tmp_path / "bundle", selecting(budget, variant))
    with open_bundle(bundle) as opened:
        folder = write_repository(opened, tmp_path / "models", Serving(budgets=how)).folder
    model = onnx.load(folder / "1" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


def alone(model: onnx.ModelProto, fed: Arrays, i: int, given: Arrays) -> np.ndarray:
    """The answer of the bundle's own graph to one request."""
    return run(model, {name: a[i : i + 1] for name, a in fed.items()} | given)["y"]


@pytest.mark.parametrize("width", ["longest", "padded"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [("permille", ((300, 900), (1000, 500), (600, 600))), ("count", ((3, 2), (4, 4), (7, 1)))],
)
def test_each_request_of_a_batch_gets_its_own_budget(tmp_path, kind, values, width):
    budget = Budget(kind, 6, width=width)
    model = served(tmp_path, budget, "per-request")
    fed = feeds(MASKED, LENGTHS)
    unit = "k" if kind == "count" else kind
    names = list(amounts(LAYERS, values[0], unit))
    columns = {
        name: np.array([[pair[i]] for pair in values], np.int64) for i, name in enumerate(names)
    }
    got = run(model, fed | columns)["y"]
    for i, pair in enumerate(values):
        want = alone(selecting(budget), fed, i, amounts(LAYERS, pair, unit))
        assert np.allclose(got[i], want[0], rtol=1e-5, atol=1e-6)


def test_budgets_of_requests_make_a_difference(tmp_path):
    model = served(tmp_path, Budget(), "per-request")
    fed = feeds(MASKED, LENGTHS)
    names = list(amounts(LAYERS, (0, 0)))
    small, large = (
        run(model, fed | {name: np.full((3, 1), value) for name in names})["y"]
        for value in (300, 1000)
    )
    assert not np.allclose(small, large, rtol=1e-3)


def test_zero_stands_for_the_default(tmp_path):
    model = served(tmp_path, Budget(default=450), "per-request")
    fed = feeds(MASKED, LENGTHS)
    names = list(amounts(LAYERS, (0, 0)))
    columns = {name: np.array([[0], [450], [0]]) for name in names}
    want = run(selecting(Budget(default=450)), fed | amounts(LAYERS, (450, 450)))["y"]
    assert np.allclose(run(model, fed | columns)["y"], want, rtol=1e-5, atol=1e-6)


def test_a_fixed_budget_is_the_default_of_each_request(tmp_path):
    model = served(tmp_path, Budget(), "fixed")
    fed = feeds(MASKED, LENGTHS)
    got = run(model, fed)["y"]
    for i in range(len(LENGTHS)):
        want = alone(selecting(), fed, i, amounts(LAYERS, (600, 600)))
        assert np.allclose(got[i], want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", [MASKED, Variant(mask="none")])
def test_an_optional_budget_has_its_default_and_takes_another(tmp_path, variant):
    model = served(tmp_path, Budget(), "optional", variant)
    fed = feeds(variant, (8, 8))
    shipped = selecting(variant=variant)
    for given in ((600, 600), (350, 900)):
        want = run(shipped, fed | amounts(LAYERS, given))["y"]
        told = {} if given == (600, 600) else amounts(LAYERS, given)
        assert np.allclose(run(model, fed | told)["y"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["fixed", "optional", "per-request"])
def test_no_score_bias_is_an_input(tmp_path, how):
    model = served(tmp_path, Budget(), how)
    assert not [value.name for value in model.graph.input if "bias" in value.name]
