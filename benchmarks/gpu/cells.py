"""One model of the GPU programme, in a process of its own: every way and batch, row by row.

    python -m benchmarks.gpu.cells CASE ROWS.jsonl --device cuda --seconds 90

Rows are appended as they are measured, so that a process that dies leaves those before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from benchmarks.gpu.models import Case, Inputs, cases
from torch import nn

import secateur as sc
from secateur.errors import SecateurError
from secateur.export.onnx_file import save
from secateur.graph_passes.attention import find_sites
from secateur.runtime import cuda_driver
from secateur.runtime.backend import BACKENDS, Built, EngineSpec, ShapeRange
from secateur.runtime.backends.onnxruntime import PROVIDERS
from secateur.workflow.flops import count_flops
from secateur.workflow.precision import Lowering, lower

REMOVED = 0.25
KEPT = 0.7
BATCHES = (1, 8, 64)
WARM_UP, MOST_RUNS, MOST_SECONDS = 5, 100, 1.5
WAYS = {
    "cuda": (
        "eager", "compile", "tensorrt dense", "tensorrt pruned", "rtx dense", "rtx pruned",
        "onnxruntime:cuda dense", "onnxruntime:cuda pruned",
    ),
    "cpu": ("eager", "onnxruntime dense", "onnxruntime pruned"),
}  # fmt: skip
"""What is measured on each device; "cpu" is there to try the programme's own code."""

Call = Callable[[], object]


class Bench:
    """A case: its module, its graphs as files, and the clock that the programme runs by."""

    def __init__(self, case: Case, device: str, folder: Path, seconds: float) -> None:
        self.case = case
        self.device = device
        self.folder = folder
        self.ends = time.monotonic() + seconds
        self.net = case.make().eval()
        self.half = device == "cuda"
        self.flops_ratio = 0.0

    def prepare(self) -> None:
        """Export, prune heads and FFN, drop tokens, lower to half precision."""
        case = self.case
        example = case.inputs(2)
        dense = sc.from_torch(self.net, example, case.dynamic)
        arrays = {name: tensor.numpy() for name, tensor in example.items()}
        pruned = dense
        for what in ("heads", "ffn"):
            pruned = sc.remove(pruned, sc.plan(sc.analyse(pruned), what, ratio=REMOVED))
        names = [site.name for site in find_sites(pruned)]
        places = sorted({len(names) * quarter // 4 for quarter in (1, 2, 3)})
        chosen = [sc.Select(names[i], keep=KEPT, budget="constant") for i in places]
        pruned = sc.select(pruned, chosen)
        self.flops_ratio = count_flops(dense, arrays).total / count_flops(pruned, arrays).total
        for name, graph in (("dense", dense), ("pruned", pruned)):
            self._save(name, graph, arrays)

    def _save(self, name: str, graph: ir.Model, arrays: dict[str, np.ndarray]) -> None:
        if self.half:
            graph = lower(graph, Lowering("float16"), [arrays])
        (self.folder / name).mkdir()
        save(graph, self.folder / name / "model.onnx")

    def check_time(self) -> None:
        """TimeoutError once the programme's clock has run out."""
        if time.monotonic() > self.ends:
            raise TimeoutError("no time left in the programme")

    def spec(self) -> EngineSpec:
        """Shapes of batch 1 over 8 to 64."""
        shapes = {n: tuple(t.shape[1:]) for n, t in self.case.inputs(1).items()}
        ends = {n: ShapeRange(*((batch, *s) for batch in BATCHES)) for n, s in shapes.items()}
        return EngineSpec(profiles=ends)


@contextmanager
def calls(bench: Bench, way: str) -> Iterator[Callable[[Inputs], Call]]:
    """Yield what makes a call of a way from inputs; the engine lives as long as the block."""
    if way in {"eager", "compile"}:
        yield _torch_calls(bench, compiled=way == "compile")
        return
    target, _, graph = way.partition(" ")
    file = bench.folder / graph / "model.onnx"
    backend, _, provider = target.partition(":")
    if backend == "onnxruntime":
        providers = {"providers": PROVIDERS[provider]} if provider else {}
        with BACKENDS[backend](optimisation="all", **providers).session(file) as run:
            yield lambda inputs: lambda: run({n: t.cpu().numpy() for n, t in inputs.items()})
        return
    built: Built = BACKENDS[backend]().build_with_record(file, bench.spec())  # type: ignore[attr-defined]
    with BACKENDS[backend]().session(built.engine) as run:
        yield lambda inputs: lambda: run(inputs)  # type: ignore[arg-type]


def _torch_calls(bench: Bench, *, compiled: bool) -> Callable[[Inputs], Call]:
    net: nn.Module = bench.net.to(bench.device)
    net = net.half() if bench.half else net
    net = torch.compile(net) if compiled else net  # type: ignore[assignment]

    def make(inputs: Inputs) -> Call:
        half = {
            n: t.half() if bench.half and t.is_floating_point() else t for n, t in inputs.items()
        }

        def call() -> object:
            with torch.inference_mode():
                out = net(**half)
            if bench.device == "cuda":
                torch.cuda.synchronize()
            return out

        return call

    return make


def measure(call: Call, ends: float) -> dict[str, float]:
    """Median and p95 in ms, after a warm-up; fewer runs where time is short."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    stop = min(ends, time.monotonic() + MOST_SECONDS)
    while len(times) < MOST_RUNS and (len(times) < 5 or time.monotonic() < stop):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    median, p95 = np.percentile(times, (50, 95))
    return {"median_ms": float(median), "p95_ms": float(p95), "runs": len(times)}


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """A row for every way and batch, measured or with the reason why not."""
    failed = _reason(bench.prepare)
    for way in WAYS[bench.device]:
        if failed and way not in {"eager", "compile"}:
            yield from (_not_run(bench, way, batch, failed) for batch in BATCHES)
            continue
        yield from _rows_of_way(bench, way)


def _rows_of_way(bench: Bench, way: str) -> Iterator[dict[str, Any]]:
    done = 0
    try:
        with calls(bench, way) as make:
            for batch in BATCHES:
                bench.check_time()
                inputs = {n: t.to(bench.device) for n, t in bench.case.inputs(batch).items()}
                before = _free_mib(bench)
                found = measure(make(inputs), bench.ends)
                used = {"memory_mib": before - _free_mib(bench)} if bench.device == "cuda" else {}
                ratio = {"flops_ratio": bench.flops_ratio} if way.endswith("pruned") else {}
                yield {**_key(bench, way, batch), **found, **used, **ratio}
                done += 1
    except (SecateurError, RuntimeError, TimeoutError, OSError) as error:
        for batch in BATCHES[done:]:
            yield _not_run(bench, way, batch, f"{type(error).__name__}: {error}")


def _reason(step: Call) -> str:
    try:
        step()
    except (SecateurError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _free_mib(bench: Bench) -> int:
    if bench.device != "cuda":
        return 0
    with cuda_driver.device_context():
        return cuda_driver.memory_info()[0] >> 20


def _key(bench: Bench, way: str, batch: int) -> dict[str, Any]:
    return {"model": bench.case.name, "way": way, "batch": batch}


def _not_run(bench: Bench, way: str, batch: int, why: str) -> dict[str, Any]:
    return {**_key(bench, way, batch), "not_run": why}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--device", choices=tuple(WAYS), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=90.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    case = next(case for case in cases(tiny=options.tiny) if case.name == options.case)
    with tempfile.TemporaryDirectory() as name, options.rows.open("a") as file:
        for row in rows(Bench(case, options.device, Path(name), options.seconds)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
