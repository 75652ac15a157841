"""What statistics cost: peak memory on a 1 GB model, time per sample beside plain inference.

Writes a LLaMA-like float32 model with its weights in a file beside it. In a process each, runs
samples through the dense model, and ranks its heads and FFN channels by norms of activations
(``output_norm``, ``wanda``) and by diagonals of Hessians (``obd``). A sample's time is that from
asking for it to asking for the next, the first one not counted. As JSON; 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from large_model import WeightFile, peak_bytes
from synthetic_models import Decoder, decoder

LAYER = {"width": 2048, "heads": 16, "kv_heads": 16, "head_width": 128, "ffn": 5504}
VOCABULARY = 2048
PLAIN, CRITERIA = "plain inference", ("output_norm", "wanda", "obd")
PEAK_BOUND, TIMES_BOUND = 2 << 30, 1.5


def build(folder: Path, gigabytes: float) -> WeightFile:
    """Write ``model.onnx`` and its weights, at least so large."""
    weights, layers = WeightFile(folder / "model.data", ir.DataType.FLOAT), 0
    while weights.end < gigabytes * 1e9:
        layers, weights.end = layers + 1, 0
        sizes = Decoder(layers, **LAYER, vocabulary=VOCABULARY, dtype=ir.DataType.FLOAT)
        model = decoder(sizes, weights)
    weights.write()
    ir.save(model, folder / "model.onnx")
    return weights


class Samples:
    """Batches of one sample, and when each was asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.samples, self.tokens = options.samples, options.tokens
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield texts of random tokens with a causal mask and rotary tables."""
        rng = np.random.default_rng(0)
        half = LAYER["head_width"] // 2
        angle = np.outer(np.arange(self.tokens), np.tile(10000.0 ** -(np.arange(half) / half), 2))
        causal = np.triu(np.full((self.tokens, self.tokens), -1e9), 1)
        fixed = {"mask": causal, "cos": np.cos(angle), "sin": np.sin(angle)}
        rows = {name: array[None, None].astype(np.float32) for name, array in fixed.items()}
        for _ in range(self.samples):
            self.asked.append(time.perf_counter())
            yield {"input_ids": rng.integers(0, VOCABULARY, (1, self.tokens)), **rows}
        self.asked.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of each sample but the first."""
        return np.diff(self.asked)[1:].tolist()


def measure(path: Path, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one of the ways in this process."""
    import secateur as sc
    from secateur.calibration.importance import Context, rank
    from secateur.calibration.planning import removable
    from secateur.workflow.model_session import open_model

    model = sc.from_onnx(path)
    data = Samples(options)
    if what == PLAIN:
        with open_model(model) as run:
            for batch in data:
                run(batch)
    else:
        analysis = sc.analyse(model)
        groups = tuple(one for role in ("heads", "ffn") for one in removable(analysis, role))
        rank(what, Context(analysis, groups, data))
    return {
        "seconds_per_sample": round(statistics.median(data.seconds), 4),
        "peak_bytes": peak_bytes(),
    }


def in_fresh_process(path: Path, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path), what]
    command += ["--samples", str(options.samples), "--tokens", str(options.tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turns; the median of the rounds."""
    weights = build(folder, options.gigabytes)
    names = (PLAIN, *CRITERIA)
    rounds = [
        {name: in_fresh_process(folder / "model.onnx", name, options) for name in names}
        for _ in range(options.rounds)
    ]
    rows = {}
    for name in names:
        seconds = statistics.median(one[name]["seconds_per_sample"] for one in rounds)
        peak = max(one[name]["peak_bytes"] for one in rounds)
        rows[name] = {"seconds_per_sample": seconds, "peak_bytes": peak}
    plain = rows[PLAIN]["seconds_per_sample"]
    for row in rows.values():
        row["times_plain"] = round(row["seconds_per_sample"] / plain, 3)
    return {
        "weights_bytes": weights.end,
        "largest_tensor_bytes": weights.largest,
        "samples": options.samples,
        "tokens_per_sample": options.tokens,
        "rounds": options.rounds,
        "peak_bound_bytes": PEAK_BOUND,
        "times_plain_bound": TIMES_BOUND,
        "rows": rows,
        "passed": all(
            rows[name]["peak_bytes"] < PEAK_BOUND and rows[name]["times_plain"] <= TIMES_BOUND
            for name in CRITERIA
        ),
    }


def main() -> int:
    """Print the row; 0 where all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of weights, at least")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64, help="of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turns")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="disk to work on")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "WAY"))
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Path(options.child[0]), options.child[1], options)))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="statistics.") as folder:
        row = run(Path(folder), options)
    text = json.dumps(row, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if row["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
