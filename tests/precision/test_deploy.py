"""``precision: fp16`` in a recipe and ``--precision`` on the command line, to the end."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tests.e2e.conftest import RECIPE, Deployment, deploy

from secateur import cli
from secateur.recipe import Recipe
from secateur.runtime.bundle import DENSE_NAME, open_bundle
from secateur.runtime.parity import check_goldens
from secateur.workflow.precision import dtype_of

_BENCH = next(line for line in RECIPE.splitlines() if line.startswith("bench:"))
pytestmark = pytest.mark.sweep  # a whole deployment; test_workflow.py has its steps

PLAIN = RECIPE.replace(_BENCH + "\n", "").replace("output_norm", "l2")
MINIMAL = {"schema": 1, "name": "m", "model": "m.onnx"}


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    text = PLAIN + "precision: {type: fp16, keep: [layers.2*]}\n"
    return deploy(tmp_path_factory.mktemp("fp16"), text)


@pytest.mark.slow
def test_a_recipe_in_fp16_becomes_a_bundle_of_fp16(halved: Deployment) -> None:
    assert halved.exit_code == 0
    with open_bundle(halved.bundle) as bundle:
        assert bundle.manifest.dtype == "float16"
        record = bundle.manifest.facts["precision"]
        assert record["dtype"] == "float16"
        assert record["nodes"] > 20
        assert {one["reason"] for one in record["kept"]} >= {"asked for"}
        assert dtype_of(bundle.model) == "float16"
        side_car = json.loads(bundle.file("engines/rtx-sm86/model.engine.json").read_text())
        assert side_car["precision"] == "float16"


@pytest.mark.slow
def test_inputs_and_outputs_of_the_bundle_are_float32(halved: Deployment) -> None:
    with open_bundle(halved.bundle) as bundle:
        dtypes = {info.name: info.dtype for info in bundle.manifest.outputs}
    assert dtypes["vector"] == "float32"


@pytest.mark.slow
def test_parity_is_held_to_the_bounds_of_fp16_rounded_and_as_deployed(halved: Deployment) -> None:
    with open_bundle(halved.bundle) as bundle:
        checks = json.loads(bundle.file("parity.json").read_text())["checks"]
        targets = {check["target"].partition(" (")[0] for check in checks}
        assert {"float16, every result rounded", "onnxruntime"} <= targets
        values = [check for check in checks if check["part"] == "value"]
        assert {check["bound"] for check in values} == {2e-2}
        assert max(check["value"] for check in values) > 1e-5, "something was rounded"
        assert check_goldens(bundle).passed


@pytest.mark.slow
def test_the_dense_model_of_the_bundle_has_the_same_precision(halved: Deployment) -> None:
    with open_bundle(halved.bundle) as bundle:
        assert dtype_of(bundle.file(DENSE_NAME)) == "float16"


@pytest.mark.sweep
def test_bf16_on_onnxruntime_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = deploy(tmp_path, PLAIN + "precision: bf16\n")
    assert found.exit_code == 2
    assert "does not compute in bfloat16" in capsys.readouterr().err
    assert not found.bundle.exists()


SMALL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y)
<float[4, 4] w = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}>
{ h = MatMul(x, w) s = Softmax(h) y = MatMul(s, w) }
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(ir.to_proto(ir.from_onnx_text(SMALL)), path)
    return path


def test_build_lowers_an_onnx_file(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    options = ["--target", "onnxruntime", "--precision", "fp16"]
    assert cli.run(["build", str(small), str(output), *options]) == 0
    with open_bundle(output) as bundle:
        assert dtype_of(bundle.model) == "float16"
        assert bundle.manifest.dtype == "float16"
    assert dtype_of(small) == "float32"


def test_build_refuses_another_precision_for_a_bundle(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert cli.run(["build", str(small), str(output), "--target", "onnxruntime"]) == 0
    options = ["--target", "onnxruntime", "--precision", "fp16"]
    assert cli.run(["build", str(output), *options]) == 2
    assert "has its precision already" in capsys.readouterr().err


def test_build_names_a_pattern_that_fits_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "onnxruntime", "--precision", "fp16", "--keep-float32", "head*"]
    assert cli.run(["build", str(small), str(tmp_path / "b"), *options]) == 2
    assert "no module or node fits 'head*'" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["bf16", {"type": "bf16"}])
def test_a_recipe_names_the_type_alone_or_with_what_stays(written: object) -> None:
    recipe = Recipe.model_validate(MINIMAL | {"precision": written})
    assert recipe.precision.type == "bf16"
    assert recipe.tolerances == "bfloat16"


def test_a_recipe_may_ask_for_other_tolerances_than_those_of_its_precision() -> None:
    written = {"precision": "fp16", "parity": {"precision": "bfloat16"}}
    assert Recipe.model_validate(MINIMAL | written).tolerances == "bfloat16"
    assert Recipe.model_validate(MINIMAL).tolerances == "float32"
