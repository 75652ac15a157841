"""The child process of a measurement: ``python -m secateur.runtime.bench_worker FOLDER``.

Reads ``request.json`` and the inputs in the folder; writes ``answer.json`` or ``error.json``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.runtime.backend import Arrays, Run
from secateur.runtime.backends.onnxruntime import OnnxRuntime
from secateur.runtime.build_worker import error_to_json
from secateur.runtime.npz import read_npz


def main(folder: Path) -> int:
    """Measure what the request says; 0, or 1 with the error in ``error.json``."""
    request = json.loads((folder / "request.json").read_text())
    try:
        task = time_pairs if request["task"] == "pairs" else time_levels
        answer = task(request, folder)
    except SecateurError as error:
        (folder / "error.json").write_text(json.dumps(error_to_json(error)))
        return 1
    (folder / "answer.json").write_text(json.dumps(answer))
    return 0


def time_pairs(request: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Milliseconds of the dense and the pruned model, in turns; who begins alternates."""
    backend = OnnxRuntime(optimisation=request["level"], threads=request["threads"])
    dense_inputs, pruned_inputs = _inputs(folder, "dense"), _inputs(folder, "pruned")
    with (
        backend.session(Path(request["dense"])) as dense,
        backend.session(Path(request["pruned"])) as pruned,
    ):
        for _ in range(request["warm_up"]):
            dense(dense_inputs)
            pruned(pruned_inputs)
        times: dict[str, list[float]] = {"dense": [], "pruned": []}
        turns = [("dense", dense, dense_inputs), ("pruned", pruned, pruned_inputs)]
        for pair in range(request["pairs"]):
            for name, run, inputs in turns if pair % 2 == 0 else reversed(turns):
                times[name].append(_milliseconds(run, inputs))
    return times


def time_levels(request: dict[str, Any], folder: Path) -> dict[str, float]:
    """Shortest milliseconds of the dense model at every level, one live session at a time.

    The shortest run, unlike the median, does not depend on what else the machine did just then.
    """
    return {level: _shortest_at(level, request, folder) for level in request["levels"]}


def _shortest_at(level: str, request: dict[str, Any], folder: Path) -> float:
    inputs = _inputs(folder, "dense")
    backend = OnnxRuntime(optimisation=level, threads=request["threads"])
    with backend.session(Path(request["dense"])) as run:
        for _ in range(request["warm_up"]):
            run(inputs)
        return min(_milliseconds(run, inputs) for _ in range(request["runs"]))


def _milliseconds(run: Run, inputs: Arrays) -> float:
    start = time.perf_counter()
    run(inputs)
    return (time.perf_counter() - start) * 1e3


def _inputs(folder: Path, model: str) -> Arrays:
    return read_npz(folder / f"{model}.npz", what="inputs to measure with")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))


__all__ = ["main", "time_levels", "time_pairs"]
