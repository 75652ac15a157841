"""Times a dense and a pruned model against each other, so that the ratio can be believed.

Both run in one process, in turns, so that a slow moment of the machine hits both; threads do
not spin; the whole is repeated in fresh processes, whose medians are taken. The optimisation
level is the one that is best for the *dense* model.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInputError, SecateurError
from secateur.runtime.backend import Arrays
from secateur.runtime.backends.onnxruntime import OPTIMISATION_LEVELS
from secateur.runtime.build_worker import error_from_json

logger = logging.getLogger(__name__)

# Levels differ by more than what so few runs leave uncertain, or it does not matter which.
_RUNS_PER_LEVEL = 7


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model file, what it is fed, and what that costs in FLOPs.

    Only the ratio of two models' FLOPs counts, so any common unit will do; 0 is unknown.
    """

    path: Path
    inputs: Arrays
    flops: float


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How to measure. ``threads`` = 0 leaves the number to the backend.

    ``levels`` are the optimisation levels to choose from, by the dense model's best run.
    """

    processes: int = 3
    pairs: int = 20
    warm_up: int = 5
    threads: int = 0
    levels: tuple[str, ...] = OPTIMISATION_LEVELS
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One line of ``bench.json``; times in milliseconds.

    ``dense_ms`` and ``pruned_ms`` are medians over processes of the median in each, and so is
    ``efficiency`` = (dense_ms / pruned_ms) / flops_ratio, 1.0 being what the FLOPs promise.
    ``p10``, ``p90`` and ``p95`` are percentiles of the pruned model's times over all runs,
    ``dense_p10`` and so on those of the dense one; ``efficiency_p10`` and ``efficiency_p90``
    are over single pairs. Without FLOPs, ratio and efficiencies are None.
    """

    variant: str
    batch: int
    tokens: int
    dense_ms: float
    pruned_ms: float
    flops_ratio: float | None
    efficiency: float | None
    p10: float
    p90: float
    p95: float
    dense_p10: float
    dense_p90: float
    dense_p95: float
    efficiency_p10: float | None
    efficiency_p90: float | None
    optimisation_level: str
    processes: int
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BenchCase:
    """What a row is about: names for the reader, and the two models."""

    variant: str
    batch: int
    tokens: int
    dense: BenchModel
    pruned: BenchModel


@dataclass(frozen=True, slots=True)
class _Times:
    """Milliseconds of one process, pair by pair."""

    dense: list[float] = field(default_factory=list)
    pruned: list[float] = field(default_factory=list)


def interleaved(case: BenchCase, options: BenchOptions = BenchOptions()) -> BenchRow:
    """Measure one case; every number in the row comes from this one run.

    Raises BadInputError for models or inputs that do not run.
    """
    if options.processes < 1 or options.pairs < 1 or not options.levels:
        raise BadInputError(
            "nothing would be measured", wanted="at least one process, one pair and one level"
        )
    level = best_level(case.dense, options)
    times = [_run_worker(case, options, level) for _ in range(options.processes)]
    return _row(case, options, level, times=times)


def best_level(dense: BenchModel, options: BenchOptions) -> str:
    """The optimisation level at which the dense model's best run is shortest, in one process."""
    if len(options.levels) == 1:
        return options.levels[0]
    request = {
        "dense": str(dense.path.resolve()),
        "levels": list(options.levels),
        "runs": _RUNS_PER_LEVEL,
        "warm_up": min(2, options.warm_up),
        "threads": options.threads,
    }
    shortest = _ask("levels", request, {"dense": dense.inputs}, options.timeout_s)
    level = min(options.levels, key=lambda name: float(shortest[name]))
    logger.info("optimisation level %s is best for the dense model: %s", level, shortest)
    return level


def break_even_batch(rows: Iterable[BenchRow]) -> int | None:
    """Smallest measured batch from which on pruning is faster; None when it never is."""
    found = None
    for row in sorted(rows, key=lambda row: row.batch, reverse=True):
        if row.pruned_ms >= row.dense_ms:
            break
        found = row.batch
    return found


def _run_worker(case: BenchCase, options: BenchOptions, level: str) -> _Times:
    request = {
        "dense": str(case.dense.path.resolve()),
        "pruned": str(case.pruned.path.resolve()),
        "level": level,
        "pairs": options.pairs,
        "warm_up": options.warm_up,
        "threads": options.threads,
    }
    inputs = {"dense": case.dense.inputs, "pruned": case.pruned.inputs}
    return _Times(**_ask("pairs", request, inputs, options.timeout_s))


def _ask(
    task: str, request: Mapping[str, Any], inputs: Mapping[str, Arrays], timeout_s: float
) -> dict[str, Any]:
    """Run ``bench_worker`` in a fresh process and read its answer."""
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps({"task": task, **request}))
        for model, arrays in inputs.items():
            np.savez(folder / f"{model}.npz", allow_pickle=False, **dict(arrays))
        command = [sys.executable, "-P", "-m", "secateur.runtime.bench_worker", name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SecateurError(
                f"a measurement took longer than {timeout_s:g} s and was stopped",
                next_step="measure fewer pairs or a smaller batch",
            ) from error
        if (folder / "error.json").is_file():
            raise error_from_json(json.loads((folder / "error.json").read_text()))
        if done.returncode != 0:
            raise SecateurError(
                f"the measuring process died with status {done.returncode}",
                got=done.stderr[-1000:].strip(),
            )
        answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
        return answer


def _row(case: BenchCase, options: BenchOptions, level: str, *, times: list[_Times]) -> BenchRow:
    dense_ms = float(np.median([np.median(one.dense) for one in times]))
    pruned_ms = float(np.median([np.median(one.pruned) for one in times]))
    dense = np.concatenate([one.dense for one in times])
    pruned = np.concatenate([one.pruned for one in times])
    ratio = _flops_ratio(case)
    by_process = [np.median(one.dense) / np.median(one.pruned) for one in times]

    def efficiency(speed_up: float) -> float | None:
        return float(speed_up) / ratio if ratio else None

    p10, p90, p95 = (float(p) for p in np.percentile(pruned, (10, 90, 95)))
    d10, d90, d95 = (float(p) for p in np.percentile(dense, (10, 90, 95)))
    e10, e90 = (float(p) for p in np.percentile(dense / pruned, (10, 90)))
    return BenchRow(
        variant=case.variant,
        batch=case.batch,
        tokens=case.tokens,
        dense_ms=dense_ms,
        pruned_ms=pruned_ms,
        flops_ratio=ratio,
        efficiency=efficiency(float(np.median(by_process))),
        p10=p10,
        p90=p90,
        p95=p95,
        dense_p10=d10,
        dense_p90=d90,
        dense_p95=d95,
        efficiency_p10=efficiency(e10),
        efficiency_p90=efficiency(e90),
        optimisation_level=level,
        processes=options.processes,
        pairs=options.pairs,
    )


def _flops_ratio(case: BenchCase) -> float | None:
    if case.dense.flops <= 0 or case.pruned.flops <= 0:
        return None
    ratio = case.dense.flops / case.pruned.flops
    return ratio if math.isfinite(ratio) else None


__all__ = [
    "BenchCase",
    "BenchModel",
    "BenchOptions",
    "BenchRow",
    "best_level",
    "break_even_batch",
    "interleaved",
]
