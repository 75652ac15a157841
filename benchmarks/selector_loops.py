"""A greedy selector as one Loop and unrolled: which builds and runs faster.

DivPrune picks one token after the other. As a Loop its graph serves any number of picks;
unrolled it is made for one. Both are timed on ONNX Runtime, from file to session and per run, and
built with TensorRT-RTX. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.export.torch_export import from_torch
from secateur.models.selectors import divprune
from secateur.models.selectors.parts import State
from secateur.runtime.backend import BACKENDS, EngineSpec
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.profiles import profiles_from_dimensions

PATCHES, BATCHES = 576, (1, 8)
PICKS = (29, 58, 144, 288)
"""5, 10, 25 and 50 %."""


class Greedy(nn.Module):
    """(B, N, N) distances and (B,) picks to the step at which each token was picked."""

    def forward(self, distance: Tensor, n_picks: Tensor) -> Tensor:
        """(B, N) int64."""
        patch = torch.ones_like(distance[:, :, 0], dtype=torch.bool)
        return divprune.farthest_first(distance, patch, n_picks)


def unrolled(steps: int) -> Callable[..., State]:
    """Make a loop that runs a number of times known while tracing."""

    def repeat(_proceed: Callable[..., Tensor], body: Callable[..., State], state: State) -> State:
        for _ in range(steps):
            state = body(*state)
        return state

    return repeat


def distances(batch: int) -> np.ndarray:
    """(B, N, N) float32 of random tokens."""
    rows = np.random.default_rng(0).standard_normal((batch, PATCHES, 64), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    return 1 - rows @ rows.transpose(0, 2, 1)


def export(picks: int, path: Path, *, loop: bool) -> int:
    """Write one form; the number of its nodes."""
    inputs = {
        "distance": torch.from_numpy(distances(2)),
        "n_picks": torch.tensor([picks, picks]),
    }
    dynamic = {"distance": {0: "batch"}, "n_picks": {0: "batch"}}
    if loop:
        model = from_torch(Greedy(), inputs, dynamic)
    else:
        with mock.patch.object(divprune, "repeat_while", unrolled(picks)):
            model = from_torch(Greedy(), inputs, dynamic)
    onnx.save(ir.to_proto(model), path)
    return sum(1 for _ in model.graph.all_nodes())


def timed(path: Path, picks: int, runs: int) -> dict[str, Any]:
    """Seconds until ONNX Runtime has a session, and milliseconds of a run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    started = time.perf_counter()
    made = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: dict[str, Any] = {"session_s": round(time.perf_counter() - started, 3), "run_ms": {}}
    for batch in BATCHES:
        fed = {"distance": distances(batch), "n_picks": np.full(batch, picks)}
        times = []
        for _ in range(runs + 1):
            started = time.perf_counter()
            made.run(None, fed)
            times.append(time.perf_counter() - started)
        found["run_ms"][str(batch)] = round(float(np.median(times[1:])) * 1e3, 2)
    return found


def engine_s(path: Path) -> float | str:
    """Seconds to build for one kind of GPU, or what the builder says."""
    ranges = {"batch": (1, 1, 8)}
    spec = EngineSpec(
        profiles=profiles_from_dimensions(read_outline(path).inputs, ranges),
        compute_capabilities=("sm86",),
        timeout_s=200,
    )
    started = time.perf_counter()
    try:
        BACKENDS["rtx"]().build(path, spec)
    except SecateurError as error:
        return error.what
    return round(time.perf_counter() - started, 1)


def rows(picks: int, runs: int) -> Iterator[dict[str, Any]]:
    """Both forms for one number of picks."""
    for loop in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            started = time.perf_counter()
            n_nodes = export(picks, path, loop=loop)
            yield {
                "form": "Loop" if loop else "unrolled",
                "tokens": PATCHES,
                "picks": picks,
                "nodes": n_nodes,
                "export_s": round(time.perf_counter() - started, 1),
                **timed(path, picks, runs),
                "engine_s": engine_s(path),
            }


def main() -> int:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picks", type=int, nargs="*", default=PICKS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("build/selector_loops.json"))
    options = parser.parse_args()
    found = []
    for picks in options.picks:
        for row in rows(picks, options.runs):
            print(json.dumps(row), flush=True)
            found.append(row)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
