"""A recipe that asks for fewer bits: pruned, selecting, rounded, verified."""

from __future__ import annotations

import json

import onnx
import pytest
from tests.e2e.conftest import RECIPE, deploy

from secateur import cli
from secateur.errors import BadInputError
from secateur.workflow.recipe_file import load_recipe

_BENCH = next(line for line in RECIPE.splitlines() if line.startswith("bench:"))
SHORT = RECIPE.replace(_BENCH + "\n", "").replace(', "rtx:sm86"', "")


@pytest.mark.sweep
@pytest.mark.parametrize("asked", ["int8", "{kind: int4, block: 16}"])
def test_a_rounded_bundle_is_held_to_the_bounds_of_int8(asked, tmp_path, capsys):
    made = deploy(tmp_path, f"{SHORT}quantise: {asked}\n")
    assert made.exit_code == 0, capsys.readouterr()
    graph = onnx.load(made.bundle / "model.onnx").graph
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) > 6
    manifest = json.loads((made.bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["dtype"] == "int8"
    assert manifest["facts"]["quantised"]["kind"] == asked.strip("{}").split(",")[0].split()[-1]
    assert cli.run(["parity", str(made.bundle)]) == 0


def test_half_precision_and_rounding_together_are_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"{SHORT}quantise: int8\nprecision: fp16\n")
    with pytest.raises(BadInputError, match="both quantise and a half precision"):
        load_recipe(tmp_path / "recipe.yaml")


def test_an_unknown_kind_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"{SHORT}quantise: int2\n")
    with pytest.raises(BadInputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "int4" in str(caught.value)
