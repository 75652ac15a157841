"""Bundles: written in one step, checked when opened, refused when they do not fit."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.runtime import files
from secateur.runtime.backend import Built
from secateur.runtime.bundle import Bundle, open_bundle
from secateur.runtime.bundle_writer import Draft, new_bundle, revised_bundle
from secateur.runtime.session import open_session


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    file = path / "manifest.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def test_a_bundle_says_what_its_model_says(bundle_path: Path) -> None:
    manifest = open_bundle(bundle_path).manifest
    assert [info.name for info in manifest.inputs][:2] == ["x", "encoder.layer.0.k"]
    assert [site.name for site in manifest.sites] == ["encoder.layer.0"]
    assert "TopK" in manifest.operators
    assert set(manifest.files) == {"model.onnx", "recipe.yaml"}
    assert manifest.created_with["numpy"] == np.__version__


def test_a_zip_holds_the_same_bundle(tmp_path: Path, selecting_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", selecting_path)
        draft.add_onnxruntime(optimisation="all")
    with open_bundle(path) as bundle:
        folder = bundle.folder
        assert bundle.model.read_bytes() == selecting_path.read_bytes()
    assert not folder.exists()


def test_the_same_content_gives_the_same_zip(tmp_path: Path, dense_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        with new_bundle(tmp_path / name) as draft:
            draft.place_model("model.onnx", dense_path)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_external_data_travels_with_its_model(tmp_path: Path, external_path: Path) -> None:
    with new_bundle(tmp_path / "bundle") as draft:
        draft.place_model("model.onnx", external_path)
    assert set(open_bundle(tmp_path / "bundle").manifest.files) == {"model.onnx", "weights.data"}


def test_an_error_while_writing_leaves_the_old_bundle(bundle_path: Path) -> None:
    before = _content(bundle_path)
    with pytest.raises(BadInputError, match="outside"), new_bundle(bundle_path) as draft:
        _write_half(draft)
    assert _content(bundle_path) == before
    assert _leftovers(bundle_path) == []


def test_a_new_bundle_replaces_the_old_one_whole(bundle_path: Path, dense_path: Path) -> None:
    with new_bundle(bundle_path) as draft:
        draft.place_model("model.onnx", dense_path)
    assert set(open_bundle(bundle_path).manifest.files) == {"model.onnx"}
    assert not (bundle_path / "recipe.yaml").exists()
    assert _leftovers(bundle_path) == []


def test_a_revision_keeps_what_it_does_not_write(bundle_path: Path) -> None:
    recipe = bundle_path / "recipe.yaml"
    with open_bundle(bundle_path) as old:
        kept = old.folder
        with revised_bundle(bundle_path) as draft:
            draft.write_json("parity.json", {"passed": True})
            draft.write("recipe.yaml", "name: new\n")
    bundle = open_bundle(bundle_path)
    assert kept == bundle.folder
    assert set(bundle.manifest.files) == {"model.onnx", "recipe.yaml", "parity.json"}
    assert recipe.read_text() == "name: new\n"
    assert bundle.manifest.engines["onnxruntime"].file == "model.onnx"


def test_a_revision_that_fails_changes_no_file_of_the_old_bundle(bundle_path: Path) -> None:
    before = _content(bundle_path)
    with pytest.raises(BadInputError, match="outside"), revised_bundle(bundle_path) as draft:
        _write_half(draft)
    assert _content(bundle_path) == before


def test_a_zip_can_be_revised(tmp_path: Path, dense_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", dense_path)
    with revised_bundle(path) as draft:
        draft.write_json("bench.json", [])
    with open_bundle(path) as bundle:
        assert set(bundle.manifest.files) == {"model.onnx", "bench.json"}


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(BadInputError, match="something else"), new_bundle(tmp_path / "photos"):
        pass
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"


def test_what_dead_processes_left_is_removed_and_live_ones_kept(
    bundle_path: Path, dense_path: Path
) -> None:
    dead = bundle_path.with_name(".bundle.999999999-00.partial")
    alive = bundle_path.with_name(".bundle.1-00.partial")
    dead.mkdir()
    alive.mkdir()
    with new_bundle(bundle_path) as draft:
        draft.place_model("model.onnx", dense_path)
    assert _leftovers(bundle_path) == [alive]


def test_a_replacement_in_two_moves_survives_a_kill_between_them(bundle_path: Path) -> None:
    bundle_path.rename(files.previous_path(bundle_path))
    assert open_bundle(bundle_path).manifest.files
    assert not files.previous_path(bundle_path).exists()


def test_a_file_name_outside_the_bundle_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="outside"), new_bundle(tmp_path / "b") as draft:
        draft.write("../escaped", "x")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "b").exists()


# What a user may hand us instead of a good bundle.


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        open_bundle(tmp_path / "none")


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a bundle"):
        open_bundle(tmp_path)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(BadInputError, match="neither a folder nor a readable zip"):
        open_bundle(path)


def test_a_truncated_zip_is_refused(tmp_path: Path, dense_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", dense_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInputError, match="readable zip"):
        open_bundle(path)


def test_a_changed_file_is_refused(bundle_path: Path) -> None:
    model = bundle_path / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(BadInputError, match="changed after it was made") as caught:
        open_bundle(bundle_path)
    assert "model.onnx" in caught.value.where


def test_a_file_of_another_size_is_refused(bundle_path: Path) -> None:
    (bundle_path / "recipe.yaml").write_text("longer than before\n")
    with pytest.raises(BadInputError, match="another size"):
        open_bundle(bundle_path)


def test_a_missing_file_of_the_bundle_is_refused(bundle_path: Path) -> None:
    (bundle_path / "recipe.yaml").unlink()
    with pytest.raises(BadInputError, match="missing"):
        open_bundle(bundle_path)


@pytest.mark.parametrize(("schema", "step"), [(2, "pip install -U"), (0, "build"), ("1", "build")])
def test_another_schema_is_refused(bundle_path: Path, schema: object, step: str) -> None:
    _edit(bundle_path, lambda record: record.update(schema=schema))
    with pytest.raises(BadInputError, match="another schema") as caught:
        open_bundle(bundle_path)
    assert step in caught.value.next_step


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "files": 3}'])
def test_a_manifest_that_is_none_is_refused(bundle_path: Path, text: str) -> None:
    (bundle_path / "manifest.json").write_text(text)
    with pytest.raises(BadInputError, match="manifest cannot be read"):
        open_bundle(bundle_path)


def test_a_manifest_that_names_a_file_outside_is_refused(bundle_path: Path) -> None:
    (bundle_path.parent / "secret").write_text("x")
    _edit(bundle_path, lambda r: r["files"].update({"../secret": {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BadInputError, match="outside its folder"):
        open_bundle(bundle_path)


def test_external_data_that_was_not_hashed_is_refused(tmp_path: Path, external_path: Path) -> None:
    with new_bundle(tmp_path / "bundle") as draft:
        draft.place_model("model.onnx", external_path)
    _edit(tmp_path / "bundle", lambda record: record["files"].pop("weights.data"))
    with pytest.raises(BadInputError, match="not listed"):
        open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_a_zip_member_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bundle.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr(name, "evil")
    with pytest.raises(BadInputError, match="outside its folder"):
        open_bundle(path)


def test_a_zip_member_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    link = zipfile.ZipInfo("manifest.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/hostname")
    with pytest.raises(BadInputError, match="link"):
        open_bundle(path)


def test_a_target_that_was_not_built_names_those_that_were(bundle_path: Path) -> None:
    with pytest.raises(BadInputError, match="no engine for target 'rtx:sm86'") as caught:
        open_bundle(bundle_path).engine("rtx:sm86")
    assert "onnxruntime" in caught.value.wanted
    assert "--target rtx:sm86" in caught.value.next_step


@pytest.mark.parametrize("requires", [">=99.0", "==0.1"])
def test_another_backend_version_is_refused_before_the_backend(
    bundle_path: Path, requires: str
) -> None:
    _edit(bundle_path, lambda r: r["engines"]["onnxruntime"].update(requires=requires))
    with (
        pytest.raises(BadInputError, match="does not fit the installed ONNX Runtime") as caught,
        open_session(bundle_path),
    ):
        pass
    assert caught.value.wanted == requires


def test_an_engine_of_another_model_is_refused(bundle_path: Path, dense_path: Path) -> None:
    digest = files.sha256_of(bundle_path / "model.onnx")
    built = Built(b"engine", {"onnx_sha256": {"model.onnx": digest}})
    with revised_bundle(bundle_path) as draft:
        draft.add_engine("rtx:sm86", built, requires=">=1.0")
    assert open_bundle(bundle_path).engine("rtx:sm86").file.endswith("model.engine")
    with revised_bundle(bundle_path) as draft:
        draft.place_model("model.onnx", dense_path)
    with pytest.raises(BadInputError, match="built from another model"):
        open_bundle(bundle_path).engine("rtx:sm86")


def test_an_engine_of_another_series_is_refused(bundle_path: Path) -> None:
    with revised_bundle(bundle_path) as draft:
        draft.add_engine("rtx:sm86", Built(b"engine", {}), requires="==0.9")
    with pytest.raises(BadInputError, match="does not fit the installed TensorRT-RTX") as caught:
        open_bundle(bundle_path).engine("rtx")
    assert 'tensorrt_rtx_cu13==0.9.*"' in caught.value.next_step


# Running it.


def test_a_session_runs_with_a_number_of_tokens(bundle_path: Path, tokens: np.ndarray) -> None:
    with open_session(bundle_path) as run:
        assert run({"x": tokens})["y"].shape == (2, 4, 8)
        assert run({"x": tokens}, keep={"encoder.layer.0": 2})["y"].shape == (2, 2, 8)
        given = {"x": tokens, "encoder.layer.0.k": np.array([3])}
        assert run(given)["y"].shape == (2, 3, 8)


def test_an_opened_bundle_stays_open_after_a_session(
    tmp_path: Path, selecting_path: Path, tokens: np.ndarray
) -> None:
    with new_bundle(tmp_path / "b.zip") as draft:
        draft.place_model("model.onnx", selecting_path)
        draft.add_onnxruntime(optimisation="all")
    bundle = open_bundle(tmp_path / "b.zip")
    for _ in range(2):
        with open_session(bundle) as run:
            assert run({"x": tokens})["y"].shape == (2, 4, 8)
    bundle.close()


def _content(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def _write_half(draft: Draft) -> None:
    draft.write("recipe.yaml", "half")
    draft.write("../outside", "an error in the middle")


def _leftovers(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f".{path.name}.*"))


def test_a_bundle_object_knows_its_files(bundle_path: Path) -> None:
    bundle: Bundle = open_bundle(bundle_path)
    assert "recipe.yaml" in bundle
    with pytest.raises(BadInputError, match="holds no goldens"):
        bundle.file("goldens.npz")
