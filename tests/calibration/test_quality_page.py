"""The tables of docs/calibration.md are those of the committed results."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import pytest

from secateur.calibration.importance import CRITERIA

ROOT = Path(__file__).resolve().parents[2]
CASES = ("cnn", "vit", "lm", "minilm")


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_tables_are_those_of_the_results() -> None:
    page = importlib.import_module("quality_page")
    found = page.records(ROOT / "benchmarks" / "results")
    written = page.PAGE.read_text(encoding="utf-8").partition(page.HEADING)[2]
    tables = written.partition(page.NEXT)[0]
    assert tables[tables.index("### ") :] == page.section(found), (
        "run: python benchmarks/structural_quality.py --page"
    )
    assert found


def test_the_plot_is_there_and_named_in_the_page() -> None:
    page = importlib.import_module("quality_page")
    assert page.PLOT.is_file()
    assert f"images/{page.PLOT.name}" in page.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_every_cell_was_measured_or_refused(case: str) -> None:
    bench = importlib.import_module("structural_quality")
    path = ROOT / "benchmarks" / "results" / f"structural_quality_{case}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    refused = {row["importance"] for row in rows if "compensation" not in row and row["refused"]}
    known = {
        (row["importance"], row["compensation"], row["ratio"])
        for row in rows
        if "compensation" in row and ("quality" in row or row["refused"])
    }
    named = {name for name in bench.IMPORTANCE if " (" not in name}
    assert named >= set(CRITERIA)
    assert not refused & {name for name, *_ in known}
    cells = itertools.product(named - refused, bench.COMPENSATION, bench.RATIOS)
    assert not set(cells) - known
