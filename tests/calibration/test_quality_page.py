"""The tables of docs/calibration.md are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def _page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "quality_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_results() -> None:
    page = _page()
    found = page.records(ROOT / "benchmarks" / "results")
    written = page.PAGE.read_text(encoding="utf-8").partition(page.HEADING)[2]
    tables = written.partition(page.NEXT)[0]
    assert tables[tables.index("### ") :] == page.section(found), (
        "run: python benchmarks/structural_quality.py --page"
    )
    assert found


def test_the_plot_is_there_and_named_in_the_page() -> None:
    page = _page()
    assert page.PLOT.is_file()
    assert f"images/{page.PLOT.name}" in page.PAGE.read_text(encoding="utf-8")
