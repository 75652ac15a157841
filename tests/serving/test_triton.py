"""A model repository for Triton: its configuration, its files, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tests.passes.selection.models import Variant, build
from tests.serving.conftest import selecting, write_bundle

from secateur import cli
from secateur.errors import BadInputError
from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.goldens import GoldenCase, goldens_to_bytes
from secateur.runtime.signature import TensorInfo
from secateur.workflow import triton
from secateur.workflow.triton import Served, Serving, write_repository
from secateur.workflow.triton_config import ModelConfig

SITES = ("encoder.layer.0", "encoder.layer.1")
BUDGETS = [f"{site}.permille" for site in SITES]


def serve(bundle: Path, **options: object) -> Served:
    with open_bundle(bundle) as opened:
        return write_repository(opened, bundle.parent / "repository", Serving(**options))


def by_name(tensors) -> dict:
    return {tensor.name: tensor for tensor in tensors}


def test_every_field_and_type_is_known_to_triton(masked, parse, model_config):
    config = parse(serve(masked).folder)
    inputs = by_name(config.input)
    assert config.name == "masked"
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 8
    assert set(inputs) == {"x", "mask"}
    assert inputs["x"].data_type == model_config.TYPE_FP32
    assert inputs["mask"].data_type == model_config.TYPE_INT64
    assert list(inputs["x"].dims) == [-1, 16]
    assert list(by_name(config.output)["y"].dims) == [5]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.version_policy.latest.num_versions == 1
    assert config.instance_group[0].count == 1


def test_a_misspelt_field_would_be_noticed(masked, model_config):
    text = (serve(masked).folder / "config.pbtxt").read_text(encoding="utf-8")
    wrong = text.replace("max_batch_size", "max_batchsize")
    with pytest.raises(text_format.ParseError):
        text_format.Parse(wrong, model_config.ModelConfig())


def test_warm_up_has_the_profiles_usual_shapes(masked, parse):
    warm_up = parse(serve(masked).folder).model_warmup[0]
    assert warm_up.batch_size == 4
    assert {name: list(i.dims) for name, i in warm_up.inputs.items()} == {"x": [9, 16], "mask": [9]}


def test_warm_up_takes_golden_data(masked, parse):
    x = np.random.default_rng(0).standard_normal((1, 4, 16)).astype(np.float32)
    case = GoldenCase({"x": x, "mask": np.ones((1, 4), np.int64)}, {})
    with revised_bundle(masked) as draft:
        draft.write("goldens.npz", goldens_to_bytes([case]))
    folder = serve(masked).folder
    warm_up = parse(folder).model_warmup[0].inputs["x"]
    content = (folder / "warmup" / warm_up.input_data_file).read_bytes()
    assert np.array_equal(np.frombuffer(content, np.float32), np.resize(x, 9 * 16))


def test_an_optional_budget_is_served_without_batching(masked, parse):
    served = serve(masked, budgets="optional")
    config = parse(served.folder)
    inputs = by_name(config.input)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(inputs["x"].dims) == [-1, -1, 16]
    assert all(inputs[name].optional and list(inputs[name].dims) == [1] for name in BUDGETS)
    assert not inputs["x"].optional
    warm_up = config.model_warmup[0].inputs[BUDGETS[0]]
    data = (served.folder / "warmup" / warm_up.input_data_file).read_bytes()
    assert np.frombuffer(data, np.int64).tolist() == [600]


def test_a_budget_of_every_request_is_required_under_batching(masked, parse):
    config = parse(serve(masked, budgets="per-request").folder)
    inputs = by_name(config.input)
    assert config.max_batch_size == 8
    assert not any(inputs[name].optional for name in BUDGETS)
    assert [list(inputs[name].dims) for name in BUDGETS] == [[1], [1]]


def test_a_site_without_numbers_per_sample_takes_no_budget_per_request(unmasked):
    with pytest.raises(BadInputError, match="one number of tokens for the whole batch"):
        serve(unmasked, budgets="per-request")
    assert not list((unmasked.parent / "repository").iterdir())


def test_the_notes_say_why_a_budget_is_fixed(unmasked):
    assert any("encoder.layer.0 keeps 600 permille" in note for note in serve(unmasked).notes)


@pytest.mark.parametrize(("level", "number"), [("all", 0), ("basic", -1), ("disabled", 2)])
def test_the_optimisation_level_is_the_deployed_one(tmp_path, parse, level, number):
    bundle = write_bundle(tmp_path / "levels", selecting(), level)
    assert parse(serve(bundle).folder).optimization.graph.level == number


def test_a_static_batch_is_not_batched_again(tmp_path, parse):
    model = build(Variant(mask="none", tokens=8))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    served = serve(write_bundle(tmp_path / "fixed", model))
    config = parse(served.folder)
    assert config.max_batch_size == 0
    assert list(by_name(config.input)["x"].dims) == [2, 8, 16]
    assert "no dynamic batching" in served.notes[0]


def test_an_engine_has_its_budget_as_a_shape_tensor(masked, parse, model_config):
    served = serve(masked, target="tensorrt")
    config = parse(served.folder)
    inputs = by_name(config.input)
    assert config.platform == "tensorrt_plan"
    assert config.max_batch_size == 0
    assert inputs[BUDGETS[0]].is_shape_tensor
    assert not inputs["x"].is_shape_tensor
    assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
    assert list(config.instance_group[0].profile) == ["0"]
    assert (served.folder / "1" / "model.plan").read_bytes() == b"an engine"
    assert any("==10.13.3" in note for note in served.notes)


def test_an_engine_without_budgets_is_batched(tmp_path, parse):
    bundle = write_bundle(tmp_path / "dense", build(Variant(mask="none")))
    config = parse(serve(bundle, target="tensorrt").folder)
    assert config.max_batch_size == 8
    assert [i.name for i in config.input] == ["x"]


def test_a_bundle_without_profiles_needs_the_largest_batch(masked, parse):
    with revised_bundle(masked) as draft:
        draft.manifest = replace(draft.manifest, spec=replace(draft.manifest.spec, profiles={}))
    with pytest.raises(BadInputError, match="how large a batch"):
        serve(masked)
    served = serve(masked, max_batch=16)
    assert parse(served.folder).max_batch_size == 16
    assert any("no warm-up" in note for note in served.notes)


def test_a_batch_beyond_the_profile_is_refused(masked):
    with pytest.raises(BadInputError, match="larger than the bundle's profile"):
        serve(masked, max_batch=9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "rtx"}, "cannot open an engine of TensorRT-RTX"),
        ({"name": "../up"}, "no name for a served model"),
        ({"target": "tensorrt", "budgets": "fixed"}, "a shape input, and required"),
    ],
)
def test_what_triton_cannot_serve_is_refused(masked, options, said):
    with pytest.raises(BadInputError, match=said):
        serve(masked, **options)


def test_a_target_that_was_not_built_is_named(masked):
    with revised_bundle(masked) as draft:
        draft.manifest = replace(draft.manifest, engines={})
    with pytest.raises(BadInputError, match="not built for onnxruntime"):
        serve(masked)


def test_a_model_that_secateur_did_not_write_stays(masked):
    other = masked.parent / "repository" / "masked" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text('name: "mine"\n', encoding="utf-8")
    with pytest.raises(BadInputError, match="something else"):
        serve(masked)
    assert other.read_text(encoding="utf-8") == 'name: "mine"\n'


def test_an_older_model_is_replaced_as_a_whole(masked):
    folder = serve(masked, budgets="optional").folder
    (folder / "left-over").write_text("", encoding="utf-8")
    serve(masked)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["masked"]
    assert not (folder / "left-over").exists()


def test_a_full_disk_leaves_the_older_model(masked, monkeypatch):
    folder = serve(masked).folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(triton, "sync", full)
    with pytest.raises(BadInputError, match="cannot write the model repository"):
        serve(masked, budgets="optional")
    assert {p: p.read_bytes() for p in folder.parent.rglob("*") if p.is_file()} == before


def test_the_command_prints_what_it_wrote(masked, tmp_path, capsys):
    target = tmp_path / "models"
    assert cli.run(["triton", str(masked), str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == ["x", "mask"]
    assert told["max_batch_size"] == 8
    assert (target / "masked" / "1" / "model.onnx").is_file()


def test_a_type_that_the_backend_lacks_is_refused():
    info = TensorInfo("x", "bfloat16", (4,))
    with pytest.raises(BadInputError, match="no such type on onnxruntime_onnx"):
        ModelConfig("m", "onnxruntime_onnx", (info,), ()).to_text()
    assert "TYPE_BF16" in ModelConfig("m", "tensorrt_plan", (info,), ()).to_text()
