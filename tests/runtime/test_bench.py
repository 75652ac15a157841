"""Measuring: fresh processes, interleaved pairs, the dense model's best level."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import BadInputError, SecateurError
from secateur.runtime import bench
from secateur.runtime.bench import (
    BenchCase,
    BenchModel,
    BenchOptions,
    BenchRow,
    break_even_batch,
    interleaved,
)
from secateur.runtime.bench_bundle import resized
from secateur.runtime.signature import TensorInfo

QUICK = BenchOptions(processes=1, pairs=4, warm_up=1, threads=1, levels=("disabled",))


def _case(dense: Path, pruned: Path, tokens: np.ndarray) -> BenchCase:
    feed = {"x": tokens}
    return BenchCase(
        "tokens",
        2,
        6,
        BenchModel(dense, feed, 200.0),
        BenchModel(pruned, {**feed, "encoder.layer.0.k": np.array([2])}, 100.0),
    )


def test_a_row_holds_what_was_measured(
    dense_path: Path, selecting_path: Path, tokens: np.ndarray
) -> None:
    options = replace(QUICK, processes=2, levels=("disabled", "all"))
    row = interleaved(_case(dense_path, selecting_path, tokens), options)
    assert row.variant == "tokens"
    assert (row.batch, row.tokens, row.flops_ratio) == (2, 6, 2.0)
    assert row.optimisation_level in {"disabled", "all"}
    assert 0 < row.p10 <= row.pruned_ms <= row.p90 <= row.p95
    assert 0 < row.dense_p10 <= row.dense_ms <= row.dense_p90
    assert row.efficiency_p10 <= row.efficiency_p90
    assert set(row.to_json()) >= {
        "variant", "batch", "tokens", "dense_ms", "pruned_ms", "flops_ratio", "efficiency",
        "p10", "p90", "p95", "optimisation_level",
    }  # fmt: skip


def test_efficiency_is_the_speed_up_over_the_ratio_of_flops(
    monkeypatch: pytest.MonkeyPatch, dense_path: Path, tokens: np.ndarray
) -> None:
    answers = iter(
        [
            {"dense": [10.0, 10.0, 40.0], "pruned": [5.0, 5.0, 5.0]},
            {"dense": [12.0, 12.0, 12.0], "pruned": [5.0, 4.0, 99.0]},
            {"dense": [11.0, 11.0, 11.0], "pruned": [5.5, 5.5, 5.5]},
        ]
    )
    monkeypatch.setattr(bench, "_ask", lambda *_: next(answers))
    row = interleaved(_case(dense_path, dense_path, tokens), replace(QUICK, processes=3, pairs=3))
    assert row.dense_ms == 11.0, "median of the medians 10, 12, 11"
    assert row.pruned_ms == 5.0
    assert row.efficiency == pytest.approx(1.0), "median of 2.0, 2.4, 2.0 over a ratio of 2"


def test_without_flops_there_is_no_efficiency(
    dense_path: Path, selecting_path: Path, tokens: np.ndarray
) -> None:
    case = _case(dense_path, selecting_path, tokens)
    row = interleaved(replace(case, pruned=replace(case.pruned, flops=0)), QUICK)
    assert row.flops_ratio is None
    assert row.efficiency is None


def test_the_level_is_the_best_one_for_the_dense_model(
    monkeypatch: pytest.MonkeyPatch, dense_path: Path
) -> None:
    monkeypatch.setattr(bench, "_ask", lambda *_: {"disabled": 3.0, "basic": 1.0, "all": 2.0})
    levels = replace(QUICK, levels=("disabled", "basic", "all"))
    assert bench.best_level(BenchModel(dense_path, {}, 0), levels) == "basic"


def test_inputs_that_do_not_fit_are_the_callers_error(dense_path: Path, tokens: np.ndarray) -> None:
    case = _case(dense_path, dense_path, tokens)
    with pytest.raises(BadInputError, match=r"no input 'encoder\.layer\.0\.k'"):
        interleaved(case, QUICK)


def test_a_measurement_of_nothing_is_refused(dense_path: Path, tokens: np.ndarray) -> None:
    case = _case(dense_path, dense_path, tokens)
    for empty in ({"pairs": 0}, {"processes": 0}, {"levels": ()}):
        with pytest.raises(BadInputError, match="nothing would be measured"):
            interleaved(case, replace(QUICK, **empty))


def test_a_measurement_that_takes_too_long_is_stopped(
    dense_path: Path, selecting_path: Path, tokens: np.ndarray
) -> None:
    with pytest.raises(SecateurError, match="longer than"):
        interleaved(_case(dense_path, selecting_path, tokens), replace(QUICK, timeout_s=0.01))


def _rows(*times: tuple[int, float, float]) -> list[BenchRow]:
    fixed = dict.fromkeys(
        ("p10", "p90", "p95", "dense_p10", "dense_p90", "dense_p95", "flops_ratio", "efficiency",
         "efficiency_p10", "efficiency_p90"), 1.0
    )  # fmt: skip
    return [
        BenchRow("v", batch, 128, dense, pruned, optimisation_level="all", processes=1, pairs=1,
                 **fixed)
        for batch, dense, pruned in times
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "batch"),
    [
        ([(1, 10, 5), (8, 80, 40)], 1),
        ([(1, 10, 12), (8, 80, 40)], 8),
        ([(1, 10, 9), (4, 40, 41), (8, 80, 40)], 8),
        ([(1, 10, 12), (8, 80, 81)], None),
        ([], None),
    ],
)
def test_break_even_is_where_pruning_begins_to_win_for_good(times: list, batch: int | None) -> None:
    assert break_even_batch(_rows(*times)) == batch


def test_golden_inputs_grow_and_shrink_along_their_named_axes() -> None:
    info = TensorInfo("ids", "int64", ("batch", "tokens"))
    found = resized({"ids": np.array([[1, 2, 3]])}, [info], {"batch": 2, "tokens": 5})
    assert found["ids"].tolist() == [[1, 2, 3, 1, 2]] * 2
    assert resized({"ids": np.array([[1, 2, 3]])}, [info], {"tokens": 2})["ids"].tolist() == [
        [1, 2]
    ]
