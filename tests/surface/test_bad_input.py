"""What bad input gets at the command line: what, where, got, next step; exit 2; nothing written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from secateur import cli
from secateur.runtime import versions


@dataclass
class Command:
    """Runs the command line in a folder, and says what it told and what it left behind."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object, code: int = 2) -> str:
        before = self.files()
        self.capture.readouterr()
        assert cli.run([str(argument) for argument in arguments]) == code
        told = self.capture.readouterr().err
        assert "Traceback" not in told
        assert self.files() == before, "a refused command wrote something"
        return told

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, capsys):
    return Command(tmp_path, capsys)


@pytest.fixture
def bundle(bundle_made_once, tmp_path):
    return Path(shutil.copytree(bundle_made_once, tmp_path / "bundle"))


def _recipe(folder: Path, model: Path | str, rest: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"name: small\nmodel: {model}\noutput: out\n{rest}", encoding="utf-8")
    return path


# --- models ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["analyse", "inspect"])
def test_a_missing_file_is_named(refused, tmp_path, command):
    told = refused(command, tmp_path / "none.onnx")
    assert "none.onnx" in told


def test_a_missing_model_folder_is_named(refused, tmp_path):
    told = refused("analyse", "./no-such-folder")
    assert "no-such-folder" in told
    assert "wanted:" in told


def test_a_file_that_is_not_onnx_is_refused(refused, tmp_path):
    (tmp_path / "notes.onnx").write_text("some notes, not a model")
    told = refused("analyse", tmp_path / "notes.onnx")
    assert "not ONNX" in told
    assert "notes.onnx" in told


def test_a_truncated_file_is_refused(refused, encoder_onnx, tmp_path):
    content = encoder_onnx.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    told = refused("prune", tmp_path / "cut.onnx", tmp_path / "out.onnx")
    assert "cut off or damaged" in told
    assert "next:" in told


@pytest.fixture
def external(encoder_onnx, tmp_path):
    """The encoder with its weights in a second file."""
    path = tmp_path / "external" / "model.onnx"
    path.parent.mkdir()
    onnx.save(
        onnx.load(encoder_onnx), path, save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    return path


def test_missing_external_data_is_named(refused, external):
    (external.parent / "w.bin").unlink()
    told = refused("analyse", external)
    assert "external data is missing" in told
    assert "w.bin" in told


def test_external_data_outside_the_folder_is_refused(refused, external):
    (external.parent / "w.bin").rename(external.parent.parent / "w.bin")
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    external.write_bytes(model.SerializeToString())
    told = refused("analyse", external)
    assert "outside the model's folder" in told


def test_nan_in_a_weight_is_refused(refused, encoder_onnx, tmp_path):
    model = onnx.load(encoder_onnx)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    told = refused("analyse", tmp_path / "nan.onnx")
    assert "NaN" in told
    assert weight.name in told


# --- recipes -----------------------------------------------------------------------------


def test_an_unknown_recipe_key_names_the_nearest(refused, encoder_onnx, tmp_path):
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, "remvoe: []\n"))
    assert "unknown key 'remvoe'" in told
    assert "line 4" in told
    assert "did you mean 'remove'?" in told


@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "-0.25"])
def test_a_ratio_outside_0_to_1_is_refused(refused, encoder_onnx, tmp_path, ratio):
    rest = f"remove: [{{what: heads, ratio: {ratio}}}]\n"
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, rest))
    assert "remove[0].ratio" in told
    told = refused("prune", encoder_onnx, tmp_path / "out.onnx", f"--ratio={ratio}")
    assert "--ratio" in told


@pytest.mark.parametrize("extra", ["importance: l7", "what: toes"])
def test_an_unknown_name_in_a_removal_lists_the_known_ones(refused, encoder_onnx, tmp_path, extra):
    what = "" if extra.startswith("what") else "what: heads, "
    rest = f"remove: [{{{what}ratio: 0.25, {extra}}}]\n"
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, rest))
    assert "l2" in told or "'heads'" in told


# --- selections --------------------------------------------------------------------------


def test_an_unknown_site_lists_the_sites(refused, encoder_onnx, tmp_path):
    out = tmp_path / "out.onnx"
    told = refused("select", encoder_onnx, out, "--site", "layers.7", "--by", "key_norm")
    assert "unknown site 'layers.7'" in told
    assert "layers.0, layers.1, layers.2" in told


def test_a_model_without_attention_has_no_tokens_to_drop(refused, perceptron_onnx, tmp_path):
    told = refused("select", perceptron_onnx, tmp_path / "out.onnx", "--site", "layers.0")
    assert "no attention block" in told


@pytest.mark.parametrize("keep", ["0", "-1", "1.5"])
def test_a_keep_that_is_neither_share_nor_count_is_refused(refused, encoder_onnx, tmp_path, keep):
    out = tmp_path / "out.onnx"
    told = refused("select", encoder_onnx, out, "--site", "layers.0", f"--keep={keep}")
    assert "share" in told


def test_an_unknown_selector_lists_the_known_ones(refused, encoder_onnx, tmp_path):
    out = tmp_path / "out.onnx"
    told = refused("select", encoder_onnx, out, "--site", "layers.0", "--by", "class_rwo")
    assert "did you mean 'class_row'?" in told


def test_scores_that_are_nan_are_refused(refused, encoder_onnx, tmp_path):
    out, by = tmp_path / "out.onnx", "tests.surface.small:nan_score"
    told = refused("select", encoder_onnx, out, "--site", "layers.0", "--by", by)
    assert "NaN" in told


PROFILE = (
    "profile: {{min: '{0}:1x4,{1}:1x4', opt: '{0}:2x16,{1}:2x16', max: '{0}:4x{2},{1}:4x{2}'}}\n"
)


def _profile(most: int) -> str:
    return PROFILE.format("input_ids", "attention_mask", most)


def test_more_tokens_than_the_profile_has_are_refused(refused, encoder_onnx, tmp_path):
    rest = "select: [{site: layers.0, by: key_norm, keep: 48}]\n" + _profile(32)
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, rest))
    assert "48" in told
    assert "layers.0" in told
    assert "at most 32 tokens, by the largest shapes" in told


def test_more_tokens_than_topk_takes_are_refused(refused, encoder_onnx, tmp_path):
    rest = "select: [{site: layers.0, by: key_norm, keep: 0.9}]\n" + _profile(5000)
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, rest))
    assert "3840" in told


# --- shapes ------------------------------------------------------------------------------


def test_a_dynamic_input_needs_a_profile(refused, encoder_onnx, tmp_path):
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, "targets: ['rtx:sm86']\n"))
    assert "input_ids" in told
    assert "min" in told


def test_a_profile_on_a_fixed_axis_is_refused(refused, perceptron_onnx, tmp_path):
    shapes = ("--min-shapes", "x:1x8", "--opt-shapes", "x:2x8", "--max-shapes", "x:4x8")
    out = tmp_path / "out"
    told = refused("build", perceptron_onnx, out, "--target", "onnxruntime", *shapes)
    assert "does not fit the model" in told


def test_a_profile_that_is_not_ordered_is_refused(refused, perceptron_onnx, tmp_path):
    shapes = ("--min-shapes", "x:4x8", "--opt-shapes", "x:2x8", "--max-shapes", "x:4x8")
    out = tmp_path / "out"
    told = refused("build", perceptron_onnx, out, "--target", "onnxruntime", *shapes)
    assert "min <= opt <= max" in told


# --- run time ----------------------------------------------------------------------------


def _inputs(folder: Path, **arrays: np.ndarray) -> Path:
    good = {"input_ids": np.ones((2, 6), np.int64), "attention_mask": np.ones((2, 6), np.int64)}
    np.savez(folder / "x.npz", **{k: v for k, v in {**good, **arrays}.items() if v.size})
    return folder / "x.npz"


def test_a_bundle_runs_on_good_inputs(bundle, tmp_path, capsys):
    assert cli.run(["run", str(bundle), "--inputs", str(_inputs(tmp_path)), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["vector"]) == 2


def test_a_wrong_input_name_is_named(refused, bundle, tmp_path):
    told = refused("run", bundle, "--inputs", _inputs(tmp_path, ids=np.ones((2, 6), np.int64)))
    assert "'ids'" in told
    assert "input_ids" in told


def test_a_missing_input_is_named(refused, bundle, tmp_path):
    told = refused("run", bundle, "--inputs", _inputs(tmp_path, attention_mask=np.zeros(0)))
    assert "attention_mask" in told


def test_a_wrong_dtype_is_named(refused, bundle, tmp_path):
    told = refused("run", bundle, "--inputs", _inputs(tmp_path, input_ids=np.ones((2, 6))))
    assert "float64" in told
    assert "int64" in told


def test_a_wrong_shape_is_named(refused, bundle, tmp_path):
    told = refused("run", bundle, "--inputs", _inputs(tmp_path, input_ids=np.ones(6, np.int64)))
    assert "[6]" in told


def test_shapes_that_contradict_each_other_are_named(refused, bundle, tmp_path):
    longer = np.ones((2, 7), np.int64)
    told = refused("run", bundle, "--inputs", _inputs(tmp_path, attention_mask=longer))
    assert "tokens" in told


def test_a_budget_for_a_model_without_sites_is_refused(refused, bundle, tmp_path):
    inputs = _inputs(tmp_path)
    told = refused("run", bundle, "--inputs", inputs, "--keep", "layers.0=0.5")
    assert "no selection site 'layers.0'" in told


def test_a_budget_that_is_no_number_is_refused(refused, bundle, tmp_path):
    told = refused("run", bundle, "--inputs", _inputs(tmp_path), "--keep", "layers.0=half")
    assert "SITE=AMOUNT" in told


# --- bundles -----------------------------------------------------------------------------


def test_a_changed_file_of_a_bundle_is_named(refused, bundle):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    told = refused("inspect", bundle)
    assert "sha256" in told
    assert "model.onnx" in told


def _edit_manifest(bundle: Path, **changes: object) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_a_bundle_of_another_schema_is_refused(refused, bundle):
    _edit_manifest(bundle, schema=99)
    told = refused("inspect", bundle)
    assert "schema 99" in told


def test_a_bundle_for_another_backend_version_is_refused(refused, bundle, tmp_path):
    engines = json.loads((bundle / "manifest.json").read_text())["engines"]
    engines["onnxruntime"]["requires"] = ">=99.0"
    _edit_manifest(bundle, engines=engines)
    told = refused("run", bundle, "--inputs", _inputs(tmp_path))
    assert "99.0" in told


def test_a_folder_that_is_no_bundle_is_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    told = refused("inspect", tmp_path / "empty")
    assert "not a bundle" in told


def test_something_else_in_the_bundles_place_is_left_alone(refused, encoder_onnx, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    told = refused("build", encoder_onnx, tmp_path / "out", "--target", "onnxruntime")
    assert "something else" in told


# --- backends ----------------------------------------------------------------------------


def test_a_backend_that_is_not_installed_names_the_install_command(
    refused, encoder_onnx, tmp_path, monkeypatch
):
    absent = versions.Library("TensorRT-RTX", "no_such_rtx", ("no-such-rtx",), "pip install rtx")
    monkeypatch.setitem(versions.LIBRARIES, "rtx", absent)
    rest = "targets: [rtx]\n" + _profile(32)
    told = refused("deploy", _recipe(tmp_path, encoder_onnx, rest), code=3)
    assert "not installed" in told
    assert "pip install rtx" in told


def test_an_unknown_target_names_the_nearest(refused, encoder_onnx, tmp_path):
    told = refused("build", encoder_onnx, tmp_path / "out", "--target", "onnxruntme")
    assert "did you mean 'onnxruntime'?" in told


def test_a_killed_deployment_leaves_no_bundle(encoder_onnx, tmp_path):
    recipe = _recipe(tmp_path, encoder_onnx, "remove: [{what: heads, ratio: 0.25}]\n")
    command = [sys.executable, "-m", "secateur", "deploy", str(recipe)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.partial")), "it was killed before it began"
    assert cli.run(["deploy", str(recipe)]) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert not list(tmp_path.glob(".out.*.partial"))
