"""The digits examples: prune before training, prune and fine-tune, heads of a transformer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "digits_cnn"


def printed_by(script, *arguments):
    command = [sys.executable, FOLDER / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def percents(line):
    return [float(number) for number in re.findall(r"([\d.]+) %", line)]


@pytest.mark.sweep
def test_a_pruned_cnn_wins_accuracy_back_and_costs_a_third():
    printed = printed_by(
        "run.py", "tune", "--by", "l2", "--epochs", "3", "--tune", "3", "--pairs", "2"
    )
    line = printed.splitlines()[1]
    dense, pruned, tuned = percents(line)
    assert pruned < dense
    assert tuned > max(pruned + 10, 50)
    assert float(line.rpartition("/")[2]) > 3


@pytest.mark.sweep
def test_a_cnn_that_is_pruned_first_trains():
    printed = printed_by("run.py", "init", "--by", "random", "--epochs", "4")
    lines = printed.splitlines()[1:3]
    assert percents(lines[1])[0] > 50
    full, half = (int(line.split()[-1]) for line in lines)
    assert half < full / 3


@pytest.mark.sweep
def test_a_transformer_without_half_of_its_heads_is_tuned_and_exported_again():
    """One epoch: what is won back takes twelve, see the folder's README."""
    lines = printed_by("vit_heads.py", "--epochs", "1", "--tune", "1").splitlines()
    assert [line.split()[0] for line in lines] == ["dense", "pruned", "tuned", "exported"]
    dense, pruned = (int(line.split()[-2]) for line in lines[:2])
    assert dense - pruned == 4 * 4 * (4 * 64 * 8) + 4 * 3 * 4 * 8


def test_an_unknown_part_of_the_example_is_refused():
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", "everything"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such part: everything" in done.stderr
