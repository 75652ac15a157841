"""The optional compiled form: what it is made of, and that it is the one that was asked for."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.graph_passes.axes import solver

_ROOT = Path(__file__).resolve().parents[2]


def test_the_tests_run_on_the_form_that_was_asked_for():
    form = os.environ.get("SECATEUR_FORM", "python")
    print("form of the analysis:", form, solver.__file__)  # noqa: T201
    assert (Path(solver.__file__).suffix != ".py") == (form == "compiled")


def test_no_binary_lies_among_the_sources():
    assert not [*_ROOT.glob("graph_passes/**/*.so"), *_ROOT.glob("src/**/*.so")]


def test_every_pattern_of_files_to_compile_finds_some(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("setuptools.setup", lambda **_options: None)
    monkeypatch.delenv("SECATEUR_COMPILE", raising=False)
    setup = runpy.run_path(str(_ROOT / "setup.py"))
    found = {pattern: [*(_ROOT / setup["PACKAGE"]).glob(pattern)] for pattern in setup["FILES"]}
    assert not [pattern for pattern, files in found.items() if not files]


def test_an_editable_install_is_not_compiled():
    done = subprocess.run(
        [sys.executable, "setup.py", "editable_wheel"],
        cwd=_ROOT,
        env={**os.environ, "SECATEUR_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "SECATEUR_COMPILE does not go with -e" in done.stderr
