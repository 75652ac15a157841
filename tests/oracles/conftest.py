"""Every case of every carried set becomes a test; the others are named at the end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _sets():
    """The sibling module, under one name for this file, the tests and the checks."""
    name = "oracle_sets"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("sets.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


oracle_sets = _sets()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill in ``oracle_path`` and ``carried``."""
    if "oracle_path" not in metafunc.fixturenames:
        return
    root, carried = oracle_sets.folder(), oracle_sets.carried_sets()
    parameters = [
        pytest.param(
            path,
            entry,
            id=f"{name}-{path.stem}",
            marks=[pytest.mark.sweep] if entry.is_long else [],
        )
        for name, entry in carried.items()
        for path in sorted((root / name).glob("case*.npz"))
    ]
    metafunc.parametrize(("oracle_path", "carried"), parameters)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not checked, so that silence is never taken for success."""
    terminalreporter.write_line(oracle_sets.closing_line(oracle_sets.folder()))
