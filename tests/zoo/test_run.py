"""``make zoo`` on a small file of its own: one run, what it says and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ZOO = """
import os

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, **inputs):
        return self.out(torch.relu(self.conv(inputs["x"])).mean((2, 3)))


def build(name):
    torch.manual_seed(0)
    if name == "dies":
        os._exit(7)
    net = nn.Sequential(nn.Linear(3, 3)) if name == "all inputs and outputs" else Net()
    return net.eval(), {("input" if name == "all inputs and outputs" else "x"): _example(name)}


def _example(name):
    return torch.ones(1, 3) if name == "all inputs and outputs" else torch.ones(1, 3, 8, 8)


ZOO = dict.fromkeys(["fine", "dies", "all inputs and outputs", "hopeless"])
NOT_EXPORTABLE = ("hopeless",)
"""

_KEYS = {
    "name",
    "exported",
    "groups",
    "heads_found",
    "heads_removed",
    "parameters_left",
    "exact",
    "max_rel_error",
    "seconds",
    "refusals",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "mine.py").write_text(_ZOO, encoding="utf-8")
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("run.py"), "--output", folder / "zoo.json"],
        cwd=folder,
        env=os.environ | {"SECATEUR_ZOO": str(folder / "mine.py")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    ), folder / "zoo.json"


@pytest.fixture(scope="module")
def rows(run):
    return {row["name"]: row for row in json.loads(run[1].read_text(encoding="utf-8"))}


def test_the_last_line_counts(run):
    assert run[0].stdout.splitlines()[-1] == "1 passed, 2 failed", run[0].stderr


def test_a_failure_fails_the_command(run):
    assert run[0].returncode == 1


def test_every_exportable_entry_has_a_row_with_every_key(rows):
    assert set(rows) == {"fine", "dies", "all inputs and outputs"}
    assert all(set(row) >= _KEYS for row in rows.values())


def test_the_fine_model_lost_half_of_its_channels_exactly(rows):
    assert rows["fine"]["parameters_left"] == pytest.approx(132 / 260, abs=1e-4)
    assert rows["fine"]["exact"]
    assert rows["fine"]["max_rel_error"] <= 1e-4
    assert rows["fine"]["effect"] > 1e-3


def test_what_stays_whole_has_a_reason(rows):
    reasons = [refusal["reason"] for refusal in rows["fine"]["refusals"]]
    assert any("graph output" in reason for reason in reasons)


def test_a_dead_process_is_one_failed_row(rows):
    assert rows["dies"]["failure"] == "the process died with code 7"
    assert not rows["dies"]["exported"]


def test_a_model_that_stayed_whole_did_not_pass(rows):
    assert rows["all inputs and outputs"]["failure"] == "nothing was removed"


def test_entries_that_the_file_excuses_are_named_not_counted(run):
    assert "not exportable, says the file: hopeless" in run[0].stdout
