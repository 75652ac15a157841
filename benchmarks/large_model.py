"""Prune a decoder that is larger than memory should be, and hold it to bounds, as JSON.

Writes a LLaMA-like model with its weights in a file beside it, removes a quarter of the
key-value heads and half of the FFN in a fresh process, and compares: the peak of that process
(VmHWM) with 1 GiB + 2 x the largest tensor, its time with 3 x `cp` of the same weights on the
same disk, and the weights written with slices of those read. 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from synthetic_models import Decoder, decoder

GIB = 1 << 30
HEAD_SHARE, FFN_SHARE = 0.25, 0.5
LAYER = {"width": 4096, "heads": 32, "kv_heads": 8, "head_width": 128, "ffn": 11008}
SAMPLES = ("layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj", "layers.1.mlp.down_proj")


class WeightFile:
    """Hands out tensors in a file that does not exist yet, one behind the other."""

    def __init__(self, path: Path, dtype: ir.DataType) -> None:
        self.path, self.dtype, self.end = path, dtype, 0
        self.largest = 0

    def __call__(self, name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
        """Reserve the next bytes of the file for a weight."""
        tensor = ir.ExternalTensor(
            self.path.name,
            self.end,
            None,
            self.dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self.path.parent,
        )
        self.end += tensor.nbytes
        self.largest = max(self.largest, tensor.nbytes)
        return tensor

    def write(self) -> None:
        """Fill the file with small normal numbers, drawn once and written in turns."""
        rng = np.random.default_rng(0)
        drawn = (rng.standard_normal((1 << 24) + 977) * 0.02).astype(self.dtype.numpy())
        block = drawn.view(np.uint8).data
        with self.path.open("wb") as file:
            while file.tell() < self.end:
                file.write(block[: min(len(block), self.end - file.tell())])


def build(folder: Path, gigabytes: float, dtype: ir.DataType) -> WeightFile:
    """Write ``dense.onnx`` and its weights, at least so large; nothing of them is in memory."""
    weights = WeightFile(folder / "dense.data", dtype)
    layers = 1
    while True:
        weights.end = 0
        model = decoder(Decoder(layers, **LAYER, vocabulary=32000, dtype=dtype), weights)
        if weights.end >= gigabytes * 1e9:
            break
        layers += 1
    weights.write()
    ir.save(model, folder / "dense.onnx")
    return weights


def prune(source: Path, target: Path, importance: str) -> dict[str, Any]:
    """Open, rank, remove and save; seconds of each step and this process's peak."""
    import secateur as sc
    from secateur.calibration.planning import combine
    from secateur.graph_passes.removal import remove

    marks = [time.perf_counter()]
    model = sc.from_onnx(source)
    marks.append(time.perf_counter())
    found = sc.analyse(model)
    marks.append(time.perf_counter())
    heads = sc.plan(found, "heads", ratio=HEAD_SHARE, importance=importance)
    ffn = sc.plan(found, "ffn", ratio=FFN_SHARE, importance=importance)
    plan = combine(found, [heads, ffn])
    marks.append(time.perf_counter())
    small = remove(model, plan)
    marks.append(time.perf_counter())
    written = sc.save(small, target) if hasattr(sc, "save") else _save(small, target)
    marks.append(time.perf_counter())
    steps = dict(zip(("open", "analyse", "plan", "remove", "save"), np.diff(marks), strict=True))
    target.with_suffix(".plan.json").write_text(plan.to_json(), encoding="utf-8")
    return {
        "steps_s": {name: round(float(seconds), 2) for name, seconds in steps.items()},
        "seconds": round(marks[-1] - marks[0], 2),
        "peak_bytes": peak_bytes(),
        "written_bytes": sum(path.stat().st_size for path in written),
    }


def _save(model: ir.Model, target: Path) -> tuple[Path, ...]:
    from secateur.export.onnx_file import save

    return save(model, target)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)


def in_fresh_process(source: Path, target: Path, importance: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(source), str(target), importance]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row | {"process_seconds": round(time.perf_counter() - started, 2)}


def copy_seconds(source: Path, target: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    return time.perf_counter() - started


def forget(path: Path) -> None:
    """Let neither side read from memory what the other has just read."""
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def equal_samples(dense: Path, pruned: Path) -> int:
    """Count weights of the pruned file that are the expected slices; ValueError for another."""
    plan = json.loads(pruned.with_suffix(".plan.json").read_text(encoding="utf-8"))["keep"]
    before, after = (ir.load(path).graph.initializers for path in (dense, pruned))
    for sample in SAMPLES:
        layer = ".".join(["model", *sample.split(".")[:2]])
        cut = {"q_proj": ("heads", 1), "o_proj": ("heads", 0), "down_proj": ("FFN", 0)}
        word, axis = cut[sample.rsplit(".", 1)[1]]
        kept = np.array(plan[f"{word} of {layer}"])
        whole = before[f"model.{sample}.weight"].const_value.numpy()
        run = LAYER["heads"] // LAYER["kv_heads"] * LAYER["head_width"] if word == "heads" else 1
        rows = (kept[:, None] * run + np.arange(run)).ravel()
        if not np.array_equal(
            after[f"model.{sample}.weight"].const_value.numpy(), whole.take(rows, axis)
        ):
            raise ValueError(f"{sample} is not the slice of the dense weight that stays")
    return len(SAMPLES)


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    weights = build(folder, options.gigabytes, ir.DataType[options.dtype])
    dense, pruned, copy = folder / "dense.onnx", folder / "pruned.onnx", folder / "copy.data"
    rows, copies = [], []
    for _ in range(options.rounds):
        forget(weights.path)
        copies.append(copy_seconds(weights.path, copy))
        copy.unlink()
        forget(weights.path)
        rows.append(in_fresh_process(dense, pruned, options.importance))
    peak = max(row["peak_bytes"] for row in rows)
    seconds = statistics.median(row["seconds"] for row in rows)
    copying = statistics.median(copies)
    bound = GIB + 2 * weights.largest
    return {
        "weights_bytes": weights.end,
        "dtype": options.dtype,
        "largest_tensor_bytes": weights.largest,
        "importance": options.importance,
        "peak_bytes": peak,
        "peak_bound_bytes": bound,
        "cp_seconds": [round(second, 2) for second in copies],
        "prune": rows,
        "times_cp": round(seconds / copying, 2),
        "times_cp_bound": options.times_cp,
        "equal_samples": equal_samples(dense, pruned),
        "passed": peak < bound and seconds <= options.times_cp * copying,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of weights, at least")
    parser.add_argument("--dtype", default="FLOAT16", choices=["FLOAT16", "FLOAT"])
    parser.add_argument("--importance", default="random", help="criterion that ranks the units")
    parser.add_argument("--rounds", type=int, default=2, help="of cp and pruning in turns")
    parser.add_argument("--times-cp", type=float, default=3.0, help="bound on the time")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="disk to work on")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--child", nargs=3, metavar=("SOURCE", "TARGET", "IMPORTANCE"))
    options = parser.parse_args()
    if options.child:
        source, target, importance = options.child
        print(json.dumps(prune(Path(source), Path(target), importance)))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    needed = options.gigabytes * 1e9 * 3
    if shutil.disk_usage(options.folder).free < needed:
        raise SystemExit(f"{options.folder} has less than {needed / 1e9:.0f} GB free")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="large.") as folder:
        row = run(Path(folder), options)
    text = json.dumps(row, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if row["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
