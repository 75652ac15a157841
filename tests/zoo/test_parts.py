"""The parts of the zoo runner, each alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from catalogue import default_path, open_zoo
from children import Pool
from entry import verdict
from expected_heads import count_heads
from heads_table import HEADS, heads_in_table
from run import chosen
from samples import random_like


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _work(name, report):
    report({"seen": name})
    match name:
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise ValueError("no such thing\nmore text")
        case "hangs":
            time.sleep(60)
    report({"done": True})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pool = Pool(_work, width=2, timeout_s=1.0, logs=tmp_path_factory.mktemp("logs"))
    return dict(pool.results(["dies", "works", "raises", "hangs", "works too"]))


def test_every_job_is_answered(results):
    assert set(results) == {"dies", "works", "raises", "hangs", "works too"}


def test_a_job_that_works_tells_its_facts(results):
    assert results["works"]["done"]
    assert "error" not in results["works"]


def test_a_crash_costs_one_job_and_keeps_what_it_had_told(results):
    assert "died with code -9" in results["dies"]["error"]
    assert results["dies"]["seen"] == "dies"


def test_an_exception_is_told_in_one_line(results):
    assert results["raises"]["error"] == "ValueError: no such thing"


def test_a_job_without_end_is_ended(results):
    assert results["hangs"]["error"] == "no answer within 1 s"
    assert results["hangs"]["seconds"] < 5


def test_drawn_integers_are_values_of_the_example(rng):
    drawn = random_like({"ids": np.array([[7, 5, 98]])}, rng)["ids"]
    assert drawn.shape == (1, 3)
    assert set(drawn.ravel()) <= {5, 7, 98}


def test_drawn_masks_are_ones_then_zeros_and_mostly_ones(rng):
    for _ in range(20):
        mask = random_like({"mask": np.ones((3, 12), np.int64)}, rng)["mask"]
        assert np.all(np.diff(mask, axis=1) <= 0)
        assert np.all(mask.sum(axis=1) > 6)


def test_drawn_floats_have_the_dtype_of_the_example(rng):
    drawn = random_like({"x": np.zeros((2, 3), np.float16)}, rng)["x"]
    assert drawn.dtype == np.float16
    assert np.std(drawn) > 0


def test_a_zoo_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing\.py"):
        open_zoo(tmp_path / "nothing.py")


def test_a_file_without_the_interface_says_what_it_lacks(tmp_path):
    (tmp_path / "other.py").write_text("ZOO = {}\n")
    with pytest.raises(SystemExit, match="no build"):
        open_zoo(tmp_path / "other.py")


def test_the_zoo_file_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_ZOO", str(tmp_path / "mine.py"))
    assert default_path() == tmp_path / "mine.py"


@pytest.fixture
def zoo(tmp_path):
    text = """
ZOO = dict.fromkeys("abcde")
NOT_EXPORTABLE = ("c",)
build = None
"""
    (tmp_path / "letters.py").write_text(text)
    return open_zoo(tmp_path / "letters.py")


def test_shards_share_the_entries_out(zoo):
    shards = [chosen(zoo, [], (i, 3)) for i in (1, 2, 3)]
    assert sorted(name for shard in shards for name in shard) == ["a", "b", "d", "e"]


def test_an_excused_entry_runs_when_it_is_asked_for(zoo):
    assert chosen(zoo, ["c", "a"], (1, 1)) == ["a", "c"]


def test_an_unknown_entry_is_named(zoo):
    with pytest.raises(SystemExit, match="no entry x"):
        chosen(zoo, ["x"], (1, 1))


def test_heads_are_counted_once_per_run_of_a_module():
    import torch
    from torch import nn

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 4)

        def forward(self, x):
            for _ in range(2):
                x, _ = self.attention(x, x, x)
            return x

    expected = count_heads(Twice().eval(), {"x": torch.ones(3, 1, 8)})
    assert (expected.sites, expected.heads) == (2, 8)


_GOOD = {
    "exported": True,
    "export_error": 1e-6,
    "groups": 3,
    "sites": 2,
    "heads_found": 8,
    "heads_removed": 4,
    "query_heads_found": 8,
    "query_heads_removed": 4,
    "parameters_left": 0.6,
    "exact": True,
    "max_rel_error": 1e-6,
    "effect": 0.3,
}


def test_a_model_cut_exactly_passes():
    assert verdict(_GOOD) == ""


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"error": "the process died"}, "the process died"),
        ({"exported": False}, "not exported"),
        ({"export_error": 0.1}, "the export differs"),
        ({"export_error": float("nan")}, "the export differs"),
        ({"groups": 0}, "nothing was removed"),
        ({"parameters_left": 1.0}, "nothing was removed"),
        ({"max_rel_error": 0.2}, "differs from the masked model by 2.0e-01"),
        ({"max_rel_error": float("nan")}, "differs from the masked model"),
        ({"effect": 0.0}, "the masked model computes what the whole one computes"),
        ({"heads_removed": 1}, "removed 1 of 8 heads"),
    ],
)
def test_a_model_fails_for(facts, reason):
    assert verdict(_GOOD | facts).startswith(reason)


_MULTI_QUERY = _GOOD | {"heads_found": 2, "heads_removed": 0}


def test_the_only_key_value_head_of_a_site_need_not_go():
    assert verdict(_MULTI_QUERY) == ""


def test_query_heads_of_the_only_key_value_head_have_to_go():
    assert verdict(_MULTI_QUERY | {"query_heads_removed": 1}) == "removed 1 of 8 query heads"


def test_one_head_per_site_need_not_go():
    one = {"heads_found": 2, "query_heads_found": 2, "query_heads_removed": 0}
    assert verdict(_GOOD | {"heads_removed": 0} | one) == ""


def test_another_number_of_heads_than_the_table_has_fails():
    assert verdict(_GOOD | {"heads_in_table": 6}) == "found 8 heads of 6"


def test_the_table_speaks_of_the_committed_zoo_alone(tmp_path):
    committed = Path(__file__).with_name("zoo.py")
    assert set(HEADS) <= set(open_zoo(committed).names)
    assert heads_in_table(committed, "gemma_mqa") == {"heads_in_table": 2}
    other = tmp_path / "zoo.py"
    other.write_text("ZOO = {}\n")
    assert heads_in_table(other, "gemma_mqa") == {}
