"""The example scripts run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest


def _run(root: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.documents
def test_three_passes_run_in_a_graphsurgeon_script(root, tmp_path):
    printed = _run(root, "examples/graphsurgeon_script.py", tmp_path / "pruned.onnx")
    assert "keep  50.0 %: [33, 33, 33] of 65 tokens" in printed
    onnx.checker.check_model(tmp_path / "pruned.onnx", full_check=True)


@pytest.mark.documents
def test_the_digits_example_agrees_with_a_model_that_drops_tokens_itself(root):
    """Untrained: what is learnt does not matter here, only that both drop the same tokens."""
    printed = _run(root, "examples/digits_vit/run.py", "--epochs", "0", "--pairs", "0")
    assert "agrees on 360 of 360" in printed
    assert "exports to the same operators" in printed
