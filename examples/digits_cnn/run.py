"""Prune half the channels of a small CNN, before or after training, and train what is left.

    python examples/digits_cnn/run.py

Train, prune, fine-tune: the trained network is exported, half of its channels go, and
``secateur.to_torch`` gives the rest back as a module under the original parameter names. It is
fine-tuned, exported again, and timed next to the dense one. Prune, train: the same before any
training. Every accuracy is that of the exported graph in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from network import DigitsCNN
from torch import nn
from training import Digits, fit, load_digits

import secateur as sc
from secateur.export.onnx_file import save
from secateur.runtime.bench import BenchCase, BenchModel, BenchOptions, interleaved
from secateur.workflow.flops import count_flops

RATIO = 0.5
"""Share of the channels that goes."""
CRITERIA = ("l1", "l2", "random")
BATCH = 64


def export(net: nn.Module, *, for_training: bool = False) -> ir.Model:
    """As a graph for any number of images; for training with batch norms of its own."""
    images = {"images": torch.rand(2, 1, 8, 8)}
    return sc.from_torch(net, images, {"images": {0: "batch"}}, for_training=for_training)


def halved(model: ir.Model, importance: str) -> ir.Model:
    """Without half of its channels: residual streams and the insides of the blocks."""
    plan = sc.plan(sc.analyse(model), "channels", ratio=RATIO, importance=importance)
    return sc.remove(model, plan)


def accuracy(model: ir.Model, digits: Digits, folder: Path) -> float:
    """Per cent of the held-out digits that the graph names correctly in ONNX Runtime."""
    path = save(model, folder / "model.onnx")[0]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": digits.test_images.numpy()})[0]
    return 100 * float((logits.argmax(axis=1) == digits.test_labels.numpy()).mean())


def bench_model(model: ir.Model, path: Path) -> BenchModel:
    """What the clock needs: a file, a batch of random images, and the FLOPs they cost."""
    save(model, path)
    inputs = {"images": np.random.default_rng(0).random((BATCH, 1, 8, 8), dtype=np.float32)}
    return BenchModel(path, inputs, count_flops(model, inputs).total)


def train_prune_tune(digits: Digits, options: argparse.Namespace, folder: Path) -> None:
    """One line per criterion: accuracy dense, pruned, fine-tuned, and the time of both."""
    torch.manual_seed(0)
    net = fit(DigitsCNN(), digits, epochs=options.epochs)
    dense = export(net, for_training=True)
    shipped = export(net)  # batch norms folded into the convolutions
    whole = accuracy(shipped, digits, folder)
    print(f"{'train, prune, tune':<20}  dense   pruned  tuned   latency of {BATCH} images")
    for importance in options.by:
        pruned = halved(dense, importance)
        small = sc.to_torch(pruned)
        tuned = export(fit(small, digits, epochs=options.tune, rate=5e-3))
        models = (bench_model(m, folder / f"{i}.onnx") for i, m in enumerate((shipped, tuned)))
        row = interleaved(
            BenchCase(importance, BATCH, 0, *models),
            BenchOptions(processes=1, pairs=options.pairs, threads=1),
        )
        scores = (whole, accuracy(pruned, digits, folder), accuracy(tuned, digits, folder))
        cells = "  ".join(f"{score:4.1f} %" for score in scores)
        times = f"{row.dense_ms:.2f} -> {row.pruned_ms:.2f} ms, FLOPs / {row.flops_ratio:.2f}"
        print(f"{importance:<20}  {cells}  {times}", flush=True)


def prune_train(digits: Digits, options: argparse.Namespace, folder: Path) -> None:
    """One line per criterion: the accuracy of half a network that was trained from scratch."""
    torch.manual_seed(0)
    untrained = export(DigitsCNN().eval(), for_training=True)
    print(f"{'prune, train':<20}  accuracy  parameters")
    models = {"dense": untrained} | {name: halved(untrained, name) for name in options.by}
    for name, model in models.items():
        net = fit(sc.to_torch(model), digits, epochs=options.epochs)
        score = accuracy(export(net), digits, folder)
        count = sum(parameter.numel() for parameter in net.parameters())
        print(f"{name:<20}  {score:6.1f} %  {count}", flush=True)


PARTS = {"tune": train_prune_tune, "init": prune_train}


def main() -> None:
    parser = argparse.ArgumentParser(description="half a CNN on digits, pruned and trained")
    parser.add_argument("part", nargs="*", default=list(PARTS), help="tune, init, or both")
    parser.add_argument("--by", nargs="*", default=list(CRITERIA), help="what ranks the channels")
    parser.add_argument("--epochs", type=int, default=15, help="of training")
    parser.add_argument("--tune", type=int, default=5, help="epochs of fine-tuning")
    parser.add_argument("--pairs", type=int, default=20, help="timed runs of each model")
    options = parser.parse_args()
    if unknown := set(options.part) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    digits = load_digits()
    for part in options.part:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](digits, options, Path(folder))
        print(f"in {time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    main()
