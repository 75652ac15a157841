"""Measured times for a search: layers by tokens, and finished models against one another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from secateur.calibration.search.layer_times import LayerTimes, layer_times
from secateur.export.onnx_file import save
from secateur.runtime.backend import Arrays, Run
from secateur.runtime.backends.onnxruntime import OnnxRuntime
from secateur.workflow.counting import full_inputs
from secateur.workflow.golden import default_budgets

_RUNS = 10
LEVEL = "all"


def measure_layers(
    models: Sequence[ir.Model], lengths: Sequence[int], batch: int, *, n_layers: int
) -> LayerTimes:
    """Time a model, then the same with one site of each kind that keeps all, at several lengths.

    In turns, and of each the fastest run: what else the machine does can only add, and would
    bend the search toward schedules that are cheap in the table alone.
    """
    best: list[dict[int, float]] = [{} for _ in models]
    with TemporaryDirectory(prefix="secateur-") as folder, ExitStack() as stack:
        runs = []
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.onnx"
            save(model, path)
            runs.append(stack.enter_context(OnnxRuntime(optimisation=LEVEL).session(path)))
        for _ in range(_RUNS):
            for length in lengths:
                inputs = full_inputs(models[0], batch=batch, tokens=length)
                for model, run, found in zip(models, runs, best, strict=True):
                    taken = _milliseconds(run, {**inputs, **default_budgets(model)})
                    found[batch * length] = min(taken, found.get(batch * length, taken))
    return layer_times(best[0], best[1:], n_layers)


def _milliseconds(run: Run, inputs: Arrays) -> float:
    start = time.perf_counter()
    run(inputs)
    return 1e3 * (time.perf_counter() - start)


def race(
    models: Mapping[str, ir.Model], batches: Sequence[Arrays], *, rounds: int, folder: Path
) -> dict[str, float]:
    """Milliseconds that each model takes for all batches.

    The models run in turns. Each is compared with the mean of its own round, so that a spell in
    which the machine is slow counts for all alike; of these shares the median counts.
    """
    with ExitStack() as stack:
        runs = {}
        for number, (name, model) in enumerate(models.items()):
            path = folder / f"race{number}.onnx"
            save(model, path)
            runs[name] = stack.enter_context(OnnxRuntime(optimisation=LEVEL).session(path))
        feeds = {name: default_budgets(model) for name, model in models.items()}
        taken = np.zeros((rounds + 1, len(models)))
        for number in range(rounds + 1):
            for at, (name, run) in enumerate(runs.items()):
                taken[number, at] = sum(
                    _milliseconds(run, {**batch, **feeds[name]}) for batch in batches
                )
    means = taken[1:].mean(axis=1, keepdims=True)  # the first round warms up
    times = np.median(taken[1:] / means, axis=0) * np.median(means)
    return dict(zip(models, times.tolist(), strict=True))


__all__ = ["LEVEL", "measure_layers", "race"]
