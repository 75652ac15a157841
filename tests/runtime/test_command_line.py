"""``python -m secateur.runtime``: every command, its JSON and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secateur.runtime.__main__ import main
from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.goldens import goldens_to_bytes, read_goldens


@pytest.fixture
def inputs(tmp_path: Path, tokens: np.ndarray) -> Path:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=tokens)
    return path


def test_build_adds_an_engine_with_its_side_car(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(bundle_path), "--target", "rtx:sm89,sm86", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)["built"]
    bundle = open_bundle(bundle_path)
    entry = bundle.manifest.engines["rtx:sm86,sm89"]
    assert entry.file == "engines/rtx-sm86-sm89/model.engine"
    assert bundle.file(entry.file).stat().st_size == built["rtx:sm86,sm89"] > 10_000
    record = json.loads(bundle.file(entry.record).read_text())
    assert record["shape_values"] == {"encoder.layer.0.k": [[1], [4], [16]]}
    assert record["engine_sha256"] == bundle.manifest.files[entry.file].sha256
    assert "onnxruntime" in bundle.manifest.engines, "what was there stays"
    assert bundle.engine("rtx") == entry, "the only engine of its backend"


def test_build_makes_the_forced_twin_when_asked(proven_path: Path) -> None:
    assert main(["build", str(proven_path), "--target", "rtx:sm86", "--forced"]) == 0
    bundle = open_bundle(proven_path)
    entry = bundle.manifest.engines["rtx:sm86"]
    record = json.loads(bundle.file(f"{entry.forced}.json").read_text())
    bias = record["profiles"]["encoder.layer.0.score_bias"]
    assert bias == [[1, 4], [1, 8], [4, 16]]
    assert {output["name"] for output in record["outputs"]} == {
        "y", "encoder.layer.0.score", "encoder.layer.0.index",
    }  # fmt: skip


def test_build_without_target_builds_those_of_the_manifest(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(bundle_path), "--optimisation", "basic"]) == 0
    entry = open_bundle(bundle_path).manifest.engines["onnxruntime"]
    assert entry.options == {"optimisation": "basic"}
    assert "onnxruntime:" in capsys.readouterr().out


def test_build_optimises_as_far_as_the_goldens_allow(proven_path: Path, bundle_path: Path) -> None:
    for path, level in ((proven_path, "all"), (bundle_path, "disabled")):
        assert main(["build", str(path), "--target", "onnxruntime"]) == 0
        entry = open_bundle(path).manifest.engines["onnxruntime"]
        assert entry.options == {"optimisation": level}, "without goldens nothing is checked"


def test_a_build_that_fails_leaves_the_bundle(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle_path / "manifest.json").read_bytes()
    assert main(["build", str(bundle_path), "--target", "rtx", "--timeout", "0.01"]) == 4
    assert "longer than" in capsys.readouterr().err
    assert (bundle_path / "manifest.json").read_bytes() == before
    assert not list(bundle_path.parent.glob(".bundle.*"))


def test_run_writes_outputs(bundle_path: Path, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    command = ["run", str(bundle_path), "--inputs", str(inputs), "--output", str(output)]
    assert main([*command, "--keep", "encoder.layer.0=3"]) == 0
    with np.load(output) as file:
        assert file["y"].shape == (2, 3, 8)


def test_run_prints_json(
    bundle_path: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(bundle_path), "--inputs", str(inputs), "--json"]) == 0
    assert np.array(json.loads(capsys.readouterr().out)["y"]).shape == (2, 4, 8)


def test_run_prints_a_line_for_each_output(
    bundle_path: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(bundle_path), "--inputs", str(inputs)]) == 0
    assert capsys.readouterr().out.startswith("y: float32[2, 4, 8]")


def test_parity_passes_and_is_written(
    proven_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(proven_path), "--write"]) == 0
    assert "pass 2 golden batches on onnxruntime" in capsys.readouterr().out
    written = json.loads((proven_path / "parity.json").read_text())
    assert written["passed"] is True
    assert open_bundle(proven_path)


def test_parity_that_fails_exits_with_1_and_says_where(
    proven_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = read_goldens(proven_path / "goldens.npz")[0]
    wrong = replace(case, outputs={"y": case.outputs["y"] * np.float32(1.01)})
    with revised_bundle(proven_path) as draft:
        draft.write("goldens.npz", goldens_to_bytes([wrong]))
    assert main(["parity", str(proven_path), "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[0])["passed"] is False
    assert "output y: relative error" in told.err


def test_bench_measures_the_bundle_against_its_dense_model(
    proven_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(proven_path), "--batch", "1", "2", "--tokens", "6"]
    quick = ["--processes", "1", "--pairs", "2", "--threads", "1"]
    with revised_bundle(proven_path) as draft:
        draft.write_json("bench.json", [{"batch": 2, "tokens": 6, "flops_ratio": 4.0}])
    assert main([*command, *quick, "--write", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in rows] == [1, 2]
    assert [row["flops_ratio"] for row in rows] == [None, 4.0]
    assert rows == json.loads((proven_path / "bench.json").read_text())


BAD = {
    "missing bundle": (["parity", "{folder}/none"], 2, "does not exist"),
    "unknown target": (["build", "{bundle}", "--target", "onnxrt"], 2, "onnxruntime"),
    "target not built": (["parity", "{proven}", "--target", "rtx:sm86"], 2, "no engine"),
    "inputs that are none": (["run", "{bundle}", "--inputs", "{folder}/x"], 2, "cannot be read"),
    "unknown site": (
        ["run", "{bundle}", "--inputs", "{inputs}", "--keep", "layer.0=3"], 2, "no selection site"
    ),
    "share for a count": (
        ["run", "{bundle}", "--inputs", "{inputs}", "--keep", "encoder.layer.0=0.5"], 2, "number"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_2(
    case: str,
    bundle_path: Path,
    proven_path: Path,
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, status, message = BAD[case]
    places = {"bundle": bundle_path, "proven": proven_path, "inputs": inputs}
    arguments = [part.format(folder=bundle_path.parent, **places) for part in command]
    assert main(arguments) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "b"], ["run", "b", "--keep", "a"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_an_error_is_json_too(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(bundle_path), "--json"]) == 2
    assert "goldens" in json.loads(capsys.readouterr().out)["error"]


def test_an_engine_for_a_gpu_says_that_there_is_none(
    bundle_path: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["build", str(bundle_path), "--target", "rtx:sm86"])
    capsys.readouterr()
    command = ["run", str(bundle_path), "--inputs", str(inputs), "--target", "rtx:sm86"]
    assert main(command) == 3
    assert "no CUDA device" in capsys.readouterr().err
