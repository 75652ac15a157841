"""The GPU programme says of every cell what was measured or why not, also without a GPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks.gpu import programme

from secateur.errors import MissingDependencyError
from secateur.runtime import cuda_driver


@pytest.fixture
def no_device(monkeypatch):
    def none() -> None:
        raise MissingDependencyError("no device", got="libcuda.so.1: not found")

    monkeypatch.setattr(cuda_driver, "check_device", none)


def test_without_a_device_every_cell_has_its_reason(no_device):
    rows = programme.times(programme.MODELS, time.monotonic() + 9, device="cuda", tiny=False)
    cells = {(row["model"], row["way"], row["batch"]) for row in rows}
    assert len(cells) == len(rows) == 5 * 8 * 3
    assert all("libcuda.so.1: not found" in row["not_run"] for row in rows)


def test_the_ways_and_models_are_those_that_the_worker_knows():
    from benchmarks.gpu import cells, models

    assert cells.WAYS["cuda"] == programme.WAYS
    assert cells.BATCHES == programme.BATCHES
    assert tuple(case.name for case in models.cases(tiny=False)) == programme.MODELS
    assert tuple(case.name for case in models.cases(tiny=True)) == programme.TINY


def test_probes_name_a_version_or_the_exact_error():
    found = {row["what"]: row for row in programme.probes()}
    assert {"tensorrt", "rtx", "device", "torch CUDA", "CUDAExecutionProvider"} <= set(found)
    assert all(bool(row.get("version")) != bool(row.get("error")) for row in found.values())


def test_parity_says_what_is_missing(no_device, tmp_path, proven_path):
    ends = time.monotonic() + 9
    (row, *_) = programme.parities([tmp_path / "none"], ends)
    assert "no bundle" in row["not_run"]
    rows = programme.parities([proven_path], ends)
    assert [row["target"] for row in rows] == list(programme.TARGETS)
    assert all("libcuda" in row["not_run"] for row in rows)
    assert "no time left" in programme.parities([proven_path], time.monotonic() - 1)[0]["not_run"]


def test_the_table_has_every_row_and_the_efficiency_of_pruned_ones(no_device):
    rows = [
        {"model": "m", "way": "rtx dense", "batch": 1, "median_ms": 9.0, "p95_ms": 9.5},
        {"model": "m", "way": "rtx pruned", "batch": 1, "median_ms": 5.0, "p95_ms": 5.5,
         "flops_ratio": 2.0},
        {"model": "m", "way": "eager", "batch": 1, "not_run": "RuntimeError: too hot\nmore"},
    ]  # fmt: skip
    text = programme.table({"probes": [], "parity": [], "times": rows})
    lines = text.splitlines()[-3:]
    assert lines[1].split()[:6] == ["m", "rtx", "pruned", "1", "5.000", "5.500"]
    assert lines[1].split()[6] == "0.90"
    assert "not run: RuntimeError: too hot" in lines[2]


def test_a_worker_that_dies_leaves_its_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(programme, "ROOT", Path(__file__).resolve().parents[2])
    (row,) = programme._measured("no_such_model", 60.0, device="cpu", tiny=True)
    assert "its process died" in row["not_run"]
    (row,) = programme._measured("no_such_model", 1.0, device="cpu", tiny=True)
    assert row["not_run"] == "no time left"
