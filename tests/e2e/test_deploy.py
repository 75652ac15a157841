"""One command from a module to a verified bundle, and what is in that bundle."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from tests.e2e.conftest import RECIPE, deploy, samples

from secateur import cli
from secateur.runtime.bundle import open_bundle
from secateur.workflow import deploy as workflow

FILES = {
    "bench.json",
    "engines/rtx-sm86/model.engine",
    "engines/rtx-sm86/model.engine.json",
    "goldens.npz",
    "model.dense.onnx",
    "model.forced.onnx",
    "model.onnx",
    "parity.json",
    "plan.json",
    "recipe.yaml",
    "report.html",
}


def _json(deployed, name):
    return json.loads((deployed.bundle / name).read_text(encoding="utf-8"))


def test_deploy_ends_well_and_leaves_one_bundle(deployed):
    assert deployed.exit_code == 0
    assert [path.name for path in deployed.bundle.parent.iterdir()] == ["bundle"]


def test_the_bundle_holds_every_part_and_is_whole(deployed):
    with open_bundle(deployed.bundle) as bundle:
        assert set(bundle.manifest.files) >= FILES
        assert set(bundle.manifest.engines) == {"onnxruntime", "rtx:sm86"}


def test_the_manifest_names_the_heads_that_stayed(deployed):
    with open_bundle(deployed.bundle) as bundle:
        kept = bundle.manifest.kept_heads
    assert list(kept) == ["layers.0", "layers.1", "layers.2"]
    assert all(len(heads) == 3 for heads in kept.values())


def test_the_removal_was_proved_on_the_users_and_on_random_inputs(deployed):
    proofs = _json(deployed, "parity.json")["removal"]
    assert {proof["inputs"] for proof in proofs} == {"user", "random"}
    assert all(proof["relative_error"] <= 1e-5 for proof in proofs)


def test_parity_has_all_its_parts_and_passed(deployed):
    parity = _json(deployed, "parity.json")
    assert parity["onnxruntime"]["passed"]
    parts = [check["part"] for check in parity["checks"]]
    assert set(parts) == {"score", "flips", "value", "task", "batch law", "planted error"}
    assert all(check["passed"] for check in parity["checks"])


def test_agreement_with_the_dense_model_is_reported(deployed):
    dense = {row["metric"]: row["value"] for row in _json(deployed, "parity.json")["dense"]}
    assert 0 < dense["embedding cosine"] < 1
    assert 0 <= dense["same nearest neighbour"] <= 1


def test_bench_rows_have_the_promised_fields(deployed):
    rows = _json(deployed, "bench.json")
    assert [(row["variant"], row["batch"]) for row in rows] == [("combined", 1)]
    wanted = {"tokens", "dense_ms", "pruned_ms", "flops_ratio", "efficiency", "p10", "p90"}
    assert all(set(row) >= wanted | {"optimisation_level"} for row in rows)
    assert rows[0]["flops_ratio"] > 1.5


def test_the_report_shows_what_was_done(deployed):
    page = (deployed.bundle / "report.html").read_text(encoding="utf-8")
    assert "every check passed" in page
    assert page.count('class="gone"') == 3
    assert "layers.1" in page
    assert "planted" in page


def test_the_runtime_alone_agrees_with_the_goldens(deployed):
    command = [sys.executable, "-m", "secateur.runtime", "parity", str(deployed.bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_parity_of_the_bundle_with_bisect_finds_no_bad_layer(deployed, capsys):
    assert cli.run(["parity", str(deployed.bundle), "--bisect", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["bisect"]["first_bad"] is None
    assert found["bisect"]["compared"] > 3


def test_bisect_names_the_first_layer_of_another_model(deployed, monkeypatch, capsys):
    from tests.surface import small

    make = small.encoder

    def other():
        net, inputs, dynamic = make()
        net.layers[1].down.weight.data *= 1.1
        return net, inputs, dynamic

    monkeypatch.setattr(small, "encoder", other)
    assert cli.run(["parity", str(deployed.bundle), "--bisect"]) == 1
    assert "first bad layer: layers.1" in capsys.readouterr().out


def test_the_keep_ratio_can_be_changed_in_one_run(deployed, tmp_path, capsys):
    inputs = ("--inputs", str(samples(tmp_path)), "--json")
    lengths = []
    for keep in ("layers.0=0.9", "layers.0=0.3"):
        assert cli.run(["run", str(deployed.bundle), *inputs, "--keep", keep]) == 0
        lengths.append(np.shape(json.loads(capsys.readouterr().out)["layers.0.kept"])[1])
    assert lengths == [18, 6]


def test_inspect_shows_engines_and_sites(deployed, capsys):
    assert cli.run(["inspect", str(deployed.bundle)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("rtx:sm86", "layers.1", "key_norm", "model.onnx"))


def test_bench_of_a_bundle_prints_the_table(deployed, capsys):
    options = ("--batch", "1", "--tokens", "16", "--processes", "1", "--pairs", "2")
    assert cli.run(["bench", str(deployed.bundle), *options]) == 0
    assert "efficiency" in capsys.readouterr().out


# --- other ways ----------------------------------------------------------------------------

SHORT = RECIPE.split("targets:", maxsplit=1)[0] + "parity: {task: none}\noutput: out/bundle\n"


@pytest.fixture(scope="session")
def from_onnx(encoder_onnx, tmp_path_factory):
    """The same recipe on the exported file: the dense graph is the reference."""
    text = SHORT.replace('"tests.surface.small:encoder"', str(encoder_onnx))
    return deploy(tmp_path_factory.mktemp("onnx"), text)


def test_a_model_that_came_as_onnx_is_held_to_its_own_graph(from_onnx):
    assert from_onnx.exit_code == 0
    assert _json(from_onnx, "parity.json")["onnxruntime"]["passed"]


def test_a_plan_makes_the_same_model_again(from_onnx, encoder_onnx, tmp_path):
    (tmp_path / "plan.json").write_bytes((from_onnx.bundle / "plan.json").read_bytes())
    head, _, tail = SHORT.partition("remove:")
    text = f"{head}plan: plan.json\nselect:{tail.partition('select:')[2]}"
    again = deploy(tmp_path, text.replace('"tests.surface.small:encoder"', str(encoder_onnx)))
    assert again.exit_code == 0
    model = (from_onnx.bundle / "model.onnx").read_bytes()
    assert (again.bundle / "model.onnx").read_bytes() == model


@pytest.mark.sweep
def test_weights_that_make_up_for_what_went_bring_the_model_nearer(encoder_onnx, tmp_path, capsys):
    text = SHORT.replace('"tests.surface.small:encoder"', str(encoder_onnx))
    text = text.replace("task: none", "task: embedding")
    plain = deploy(tmp_path / "plain", text)
    fitted = deploy(tmp_path / "fitted", text + "compensate: least_squares\n")
    assert plain.exit_code == fitted.exit_code == 0
    cosine = [_json(made, "parity.json")["dense"][0]["value"] for made in (plain, fitted)]
    assert cosine[1] > cosine[0]
    capsys.readouterr()
    assert cli.run(["parity", str(fitted.bundle)]) == 0


def test_a_model_that_is_not_the_reference_is_not_shipped(
    from_onnx, encoder_onnx, tmp_path, monkeypatch, capsys
):
    import onnx_ir as ir

    select = workflow.select_tokens

    def spoiled(model, selections, **options):
        made = select(model, selections, **options)
        for value in made.graph.initializers.values():
            if value.const_value is not None and tuple(value.const_value.shape) == (16, 24):
                value.const_value = ir.tensor(value.const_value.numpy() * 1.01)
        return made

    monkeypatch.setattr(workflow, "select_tokens", spoiled)
    text = SHORT.replace('"tests.surface.small:encoder"', str(encoder_onnx))
    failed = deploy(tmp_path, text)
    assert failed.exit_code == 1
    assert "not the reference" in capsys.readouterr().err
    assert not failed.bundle.exists()


def test_an_efficiency_below_the_recipes_is_told_with_exit_code_1(deployed, monkeypatch):
    from secateur.commands import recipes
    from secateur.workflow.recipe_file import load_recipe
    from secateur.workflow.results import Results, Size

    recipe = load_recipe(deployed.recipe)
    asked = recipe.bench.model_copy(update={"minimum_efficiency": 0.9})
    row = {"efficiency": 0.8, "variant": "tokens", "batch": 1}
    results = Results("x", "x", Size(1, 1, 1), Size(1, 1, 1), bench=(row,))
    assert recipes._missed(recipe.model_copy(update={"bench": asked}), results) == 1
    assert recipes._missed(recipe, results) == 0
