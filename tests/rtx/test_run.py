"""``make rtx`` on one quick model and on one that the builder dies of; what counts as known."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from builds import CAPABILITIES, PRECISIONS, Build, check_side_car, variants
from catalogue import open_zoo
from onnx import TensorProto, helper
from subjects import CRASH, Subject, names_of
from tests.passes.selection.models import Variant, write
from tests.passes.selection.support import feeds
from verdicts import in_full, is_listed, verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Run:
    """What a run said and wrote."""

    code: int
    text: str
    rows: dict[str, dict[str, Any]]


def run_only(name: str, folder: Path) -> Run:
    """``make rtx`` for one model."""
    output = folder / "rtx.json"
    done = subprocess.run(
        [sys.executable, HERE / "run.py", "--only", name, "--output", output],
        env=os.environ | {"SECATEUR_ZOO": str(ROOT / "tests" / "zoo" / "zoo.py")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    rows = json.loads(output.read_text())["models"] if output.is_file() else []
    return Run(done.returncode, done.stdout + done.stderr, {row["name"]: row for row in rows})


@pytest.mark.slow
def test_a_small_transformer_is_cut_selecting_lowered_and_built(tmp_path: Path) -> None:
    variant = Variant(layers=2)
    subject = Subject(
        ir.from_proto(write(variant)[0]),
        feeds(variant, (6, 4)),
        {"batch": (1, 2, 4), "tokens": (4, 6, 16)},
    )
    row: dict[str, Any] = {"name": "small", "selection": ""}
    for precision, model in variants(subject, row.update).items():
        build = Build(tmp_path / f"{precision}.onnx", subject, 120.0)
        row[precision] = build.everywhere(model)
    assert verdict(row, []) == ""
    assert in_full(row)
    assert row["removed"] == {"heads": 0.5, "ffn": 0.5}
    assert row["selection"] == "class_row at encoder.layer.0"
    assert row["float16_nodes"] > 20
    assert row["float16_error"] > 1e-6, "something was rounded"


@pytest.mark.sweep
def test_an_example_is_built_for_every_target(tmp_path: Path) -> None:
    ran = run_only("digits_vit", tmp_path)
    row = ran.rows["digits_vit"]
    assert row["failure"] == "", ran.text
    assert row["removed"] == {"heads": 0.5, "ffn": 0.5}
    assert row["selection"] == "own"
    assert in_full(row)
    assert set(row["float16"]["targets"]) == set(CAPABILITIES)
    assert row["float16"]["engine_bytes"] < row["float32"]["engine_bytes"]
    assert 1e-6 < row["float16_error"] < 2e-2


@pytest.mark.slow
def test_a_builder_that_dies_is_a_row_and_not_the_end_of_the_run(tmp_path: Path) -> None:
    ran = run_only("shared_query_and_key", tmp_path)
    row = ran.rows["shared_query_and_key"]
    assert not row["float32"]["built"]
    assert "killed by SIGSEGV" in row["float32"]["targets"]["sm86"]
    assert row["failure"] == "", "it is listed"
    assert ran.code == 0, ran.text


REFUSAL = "the parser refuses the model (1 errors)\nnode 'n' (Loop) of module m: not supported"
LISTED = {
    "model": "m",
    "targets": "sm80,sm86",
    "precisions": "float16",
    "operator": "Loop",
    "message": "not supported",
    "why": "",
}


def _row(message: str) -> dict[str, Any]:
    good = {"built": True, "side_car": "", "targets": dict.fromkeys(CAPABILITIES, "")}
    bad = {"built": False, "side_car": "", "targets": {"sm80": message, "sm86": message}}
    return {"name": "m", "float32": good, "float16": bad, "float16_error": 1e-3}


def test_a_refusal_that_is_listed_passes() -> None:
    assert verdict(_row(REFUSAL), [LISTED]) == ""
    assert not in_full(_row(REFUSAL))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "another"),
        ("targets", "sm86"),
        ("precisions", "float32"),
        ("operator", "Scan"),
        ("message", "another message"),
    ],
)
def test_a_refusal_that_differs_from_the_list_in_one_thing_is_new(key: str, value: str) -> None:
    found = verdict(_row(REFUSAL), [LISTED | {key: value}])
    assert found.startswith("float16 on sm80: new refusal: the parser refuses")
    assert not is_listed("m", "sm80", "float16", REFUSAL, [LISTED | {key: value}])


def test_a_child_that_died_a_wrong_side_car_and_a_large_error_fail() -> None:
    assert verdict(_row(REFUSAL) | {"error": "the process died with code -9"}, [LISTED])
    spoiled = _row(REFUSAL)
    spoiled["float32"] = spoiled["float32"] | {"side_car": "the hash of the engine"}
    assert "side-car of float32 is wrong" in verdict(spoiled, [LISTED])
    assert "off by 5.0e-01" in verdict(_row(REFUSAL) | {"float16_error": 0.5}, [LISTED])
    assert "off by nan" in verdict(_row(REFUSAL) | {"float16_error": float("nan")}, [LISTED])


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    """The rows that the documents show."""
    text = (ROOT / "benchmarks/results/rtx.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_every_model_of_the_zoo_and_the_examples_has_a_row(committed: dict[str, Any]) -> None:
    wanted = names_of(open_zoo(ROOT / "tests" / "zoo" / "zoo.py"))
    assert [row["name"] for row in committed["models"]] == sorted(wanted)


def test_every_row_tells_of_every_target_in_both_precisions(committed: dict[str, Any]) -> None:
    for row in committed["models"]:
        for precision in ("float32",) if row["name"] == CRASH else PRECISIONS:
            assert tuple(row[precision]["targets"]) == CAPABILITIES, row["name"]


def test_no_committed_row_has_a_refusal_that_is_not_listed(committed: dict[str, Any]) -> None:
    listed = json.loads((HERE / "refusals.json").read_text(encoding="utf-8"))
    assert {row["name"]: verdict(row, listed) for row in committed["models"]} == dict.fromkeys(
        [row["name"] for row in committed["models"]], ""
    )
    assert committed["built_in_full"] == sum(in_full(row) for row in committed["models"]) >= 20


def test_the_page_shows_the_committed_rows() -> None:
    spec = importlib.util.spec_from_file_location("targets", ROOT / "docs" / "make_targets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert written == module.page(), "run: python docs/make_targets.py"


def test_every_listed_refusal_says_why() -> None:
    for one in json.loads((HERE / "refusals.json").read_text(encoding="utf-8")):
        assert set(one) == set(LISTED)
        assert one["message"], one["model"]
        assert one["why"], one["model"]


@dataclass(frozen=True)
class _Built:
    engine: bytes
    record: dict[str, Any]


@pytest.fixture
def engine(tmp_path: Path) -> tuple[_Built, Path]:
    """A side-car that is right about its file."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 4])
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y])), path)
    content = b"vtrt" + bytes(60)
    record = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "dtype": "float16", "shape": [-1, 4]}],
        "onnx_sha256": {"model.onnx": hashlib.sha256(path.read_bytes()).hexdigest()},
        "engine_sha256": hashlib.sha256(content).hexdigest(),
        "compute_capabilities": list(CAPABILITIES),
        "profiles": {"x": [[1, 4], [2, 4], [8, 4]]},
        "shape_values": {},
        "precision": "float32",
    }
    return _Built(content, record), path


def test_a_side_car_that_is_right_has_nothing_against_it(engine: tuple[_Built, Path]) -> None:
    assert check_side_car(*engine, CAPABILITIES) == ""


def test_an_engine_may_know_a_size_that_its_file_leaves_open(engine: tuple[_Built, Path]) -> None:
    built, path = engine
    known = {"outputs": [{"name": "y", "dtype": "float16", "shape": [1, 4]}]}
    assert check_side_car(_Built(built.engine, built.record | known), path, CAPABILITIES) == ""


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ({"inputs": []}, "inputs"),
        ({"outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 4]}]}, "outputs"),
        ({"outputs": [{"name": "y", "dtype": "float16", "shape": [-1, 5]}]}, "outputs"),
        ({"outputs": [{"name": "y", "dtype": "float16", "shape": [-1]}]}, "outputs"),
        ({"onnx_sha256": {}}, "hash of the ONNX file"),
        ({"engine_sha256": "0"}, "hash of the engine"),
        ({"compute_capabilities": ["sm86"]}, "capabilities"),
        ({"profiles": {}}, "no profile for x"),
        ({"profiles": {"x": [[1, 4], [2, 5], [8, 4]]}}, "profile of x"),
        ({"profiles": {"x": [[1], [2], [8]]}}, "profile of x"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_a_side_car_that_contradicts_its_file_is_seen(
    engine: tuple[_Built, Path], spoil: dict[str, Any], named: str
) -> None:
    built, path = engine
    wrong = _Built(built.engine, built.record | spoil)
    assert named in check_side_car(wrong, path, CAPABILITIES)
