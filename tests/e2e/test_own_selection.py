"""A model that drops tokens in its own forward goes the same way as any other."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from tests.surface.small import own_selection

import secateur as sc
from secateur import cli
from secateur.errors import BadInputError

RECIPE = """\
schema: 1
name: own
model: {source: "tests.surface.small:own_selection"}
remove:
  - {what: heads, ratio: 0.25}
targets: [onnxruntime, "rtx:sm86"]
profile: {min: "images:1x1x6x6", opt: "images:2x1x6x6", max: "images:8x1x6x6"}
parity: {task: top1}
bench: {variants: [tokens, combined], batches: [1], tokens: 37, processes: 1, pairs: 2}
output: out/bundle
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert cli.run(["deploy", str(folder / "recipe.yaml")]) == 0
    return folder / "out" / "bundle"


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """The model as the exporter leaves it, with its marker."""
    path = tmp_path_factory.mktemp("marked") / "model.onnx"
    assert cli.run(["export", "tests.surface.small:own_selection", str(path)]) == 0
    return path


def _operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def test_deploy_lowers_the_markers_and_passes_every_check(bundle):
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    assert parity["onnxruntime"]["passed"]
    assert [site["site"] for site in parity["onnxruntime"]["sites"]] == ["layers.0"]
    assert all(proof["passed"] for proof in parity["removal"])
    for name in ("model.onnx", "model.dense.onnx", "model.forced.onnx"):
        assert "SelectTokens" not in _operators(bundle / name)
    assert (bundle / "engines" / "rtx-sm86" / "model.engine").stat().st_size > 0


def test_the_bundle_drops_the_tokens_that_the_module_drops(tmp_path):
    net, inputs, dynamic = own_selection()
    model = sc.from_torch(net, inputs, dynamic)
    built = sc.build(model, ["onnxruntime"], {"batch": (1, 2, 4)}, path=tmp_path / "bundle")
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    with sc.session(built) as run:
        outputs = run(arrays)
    wanted = net(**inputs).detach().numpy()
    assert outputs["layers.0.kept"].shape == (3, 19)
    np.testing.assert_allclose(next(iter(outputs.values())), wanted, rtol=1e-4, atol=1e-5)


def test_build_lowers_the_markers_of_a_file(marked, tmp_path):
    assert "SelectTokens" in _operators(marked)
    output = tmp_path / "bundle"
    assert cli.run(["build", str(marked), str(output), "--target", "onnxruntime"]) == 0
    assert "SelectTokens" not in _operators(output / "model.onnx")
    assert "TopK" in _operators(output / "model.onnx")
    assert "TopK" not in _operators(output / "model.dense.onnx")


def test_select_without_a_site_lowers_the_markers(marked, tmp_path):
    output = tmp_path / "selecting.onnx"
    assert cli.run(["select", str(marked), str(output)]) == 0
    assert "SelectTokens" not in _operators(output)


def test_select_without_a_site_asks_for_one_where_there_is_no_marker(tmp_path, capsys):
    output = tmp_path / "selecting.onnx"
    assert cli.run(["select", "tests.surface.small:encoder", str(output)]) == 2
    assert "--site" in capsys.readouterr().err
    assert not output.exists()


def test_prune_keeps_the_markers(marked, tmp_path):
    output = tmp_path / "pruned.onnx"
    assert cli.run(["prune", str(marked), str(output), "--ratio", "0.5"]) == 0
    assert "SelectTokens" in _operators(output)


def test_a_site_of_the_recipe_beside_markers_is_refused():
    model = sc.from_torch(*own_selection())
    with pytest.raises(BadInputError, match="own forward"):
        sc.select(model, [sc.Select("layers.1", keep=0.5)])
