"""MADTP, fewer heads, narrower layers and half precision in one graph, on the trained digits model.

    python benchmarks/madtp_composed.py

Exports the committed weights of p = 0.5, takes a quarter of the heads and of the inner units away
by groups, lowers the rest to float16, and prints accuracy on the test examples, multiply-adds,
latency at batch 1 and bytes after every step. Nothing is fine-tuned. Writes the ``composed``
entry of ``benchmarks/results/madtp.json``; run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from madtp import RESULTS, WEIGHTS, Digits, digits, rows, session

import secateur as sc
from secateur.export.madtp_models import nlvr_graph
from secateur.graph_passes import flops
from secateur.models.madtp.digits import make_examples
from secateur.models.madtp.digits_model import load_weights
from secateur.runtime.staged import Arrays, Run

RATIO = 0.25
STEPS = (("heads", "l2"), ("ffn", "output_norm"))
"""What goes, and by which criterion: the best of five on a thousand training examples."""
CALIBRATED, TESTED, COUNTED, TIMED, WARM_UP = 200, 2_000, 50, 200, 10
ALONE_BOUND = 2e-3
"""Between a sample in a batch and by itself, as a share of the largest logit, in float16."""


def graphs(given: Digits) -> dict[str, ir.Model]:
    """The graph after every step, by what was done to it."""
    pruning = nlvr_graph(given.net)
    data = batches("train", CALIBRATED, 0, given)
    dense, _ = load_weights(WEIGHTS / "dense.safetensors")
    made = {"dense": nlvr_graph(dense, "dense"), "MADTP": pruning}
    removed = pruning
    for what, importance in STEPS:
        plan = sc.plan(sc.analyse(removed), what, ratio=RATIO, importance=importance, data=data)
        removed = sc.remove(removed, plan)
    made["MADTP, fewer heads and units"] = removed
    made["MADTP, fewer heads and units, float16"] = sc.lower(removed, "fp16", data=data)
    return made


def batches(split: Literal["train", "test"], count: int, seed: int, given: Digits) -> list[Arrays]:
    """Inputs of examples, fifty at a time."""
    inputs = make_examples(count, split, seed=seed).inputs(slice(0, count))
    whole = {name: value.numpy() for name, value in inputs.items()}
    knob = {"temperature": given.queue["temperature"]}
    return [rows(whole, at, 50) | knob for at in range(0, count, 50)]


def accuracy(run: Run, given: Digits) -> float:
    labels = make_examples(TESTED, "test", seed=1).labels
    said = [run(b)["logits"].argmax(axis=1) for b in batches("test", TESTED, 1, given)]
    return float((np.concatenate(said) == labels).mean())


def multiply_adds(model: ir.Model, queue: Arrays) -> float:
    """Mean over samples by themselves; a lowered graph has those of what it was made from."""
    observed = flops.observed(model)
    run = session(ir.to_proto(observed).SerializeToString())
    counted = [
        flops.count(model, flops.shapes_from(run(rows(queue, i, 1)))) for i in range(COUNTED)
    ]
    return float(np.mean([sum(found.values()) / 2 for found in counted]))


def latencies(runs: Mapping[str, Run], queue: Arrays) -> dict[str, float]:
    """Median milliseconds of a sample; the graphs take turns, sample by sample."""
    taken = np.zeros((TIMED, len(runs)))
    for i in range(-WARM_UP, TIMED):
        sample = rows(queue, abs(i), 1)
        for j, run in enumerate(runs.values()):
            start = time.perf_counter()
            run(sample)
            taken[i, j] = time.perf_counter() - start
    return dict(zip(runs, (1e3 * np.median(taken, axis=0)).tolist(), strict=True))


def check_alone(run: Run, queue: Arrays) -> float:
    """Hold samples in a batch to themselves alone."""
    together = run(rows(queue, 0, 32))["logits"]
    alone = np.concatenate([run(rows(queue, i, 1))["logits"] for i in range(32)])
    error = float(np.abs(together - alone).max() / np.abs(alone).max())
    if not error < ALONE_BOUND:
        raise SystemExit(f"a sample is not what it is alone: {error:.2g}")
    return error


def main() -> int:
    torch.set_num_threads(1)
    given = digits()
    models = graphs(given)
    files = {name: ir.to_proto(model).SerializeToString() for name, model in models.items()}
    runs = {name: session(file) for name, file in files.items()}
    milliseconds = latencies(runs, given.queue)
    found = {}
    for name, run in runs.items():
        model = models[name if "float16" not in name else name.removesuffix(", float16")]
        found[name] = {
            "accuracy": accuracy(run, given),
            "million_multiply_adds": multiply_adds(model, given.queue) / 1e6,
            "latency_ms": milliseconds[name],
            "bytes": len(files[name]),
            "difference_from_alone": check_alone(run, given.queue),
        }
        print(name, json.dumps(found[name]), flush=True)
    entries = json.loads(RESULTS.read_text())
    RESULTS.write_text(json.dumps(entries | {"composed": found}, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
