"""Train a small ViT on handwritten digits, prune its heads and tokens, and say what it costs.

    python examples/digits_vit/run.py

Everything happens here: training (less than two minutes on one core), export, removal of a quarter
of the heads with proof, token selection after two blocks, accuracy on held-out digits and latency,
dense and pruned interleaved, in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from model import DigitsViT
from train import Digits, accuracy, load_digits, train

import secateur as sc
from secateur.export.onnx_file import save
from secateur.runtime.bench import BenchCase, BenchModel, BenchOptions, interleaved
from secateur.workflow.counting import full_inputs
from secateur.workflow.flops import count_flops

HEADS = 0.25
"""Share of the heads of each block that goes."""
KEEP = {0: 0.6, 1: 0.6}
"""Share of the tokens that stay behind a block, of those that reach it."""
BATCHES = (1, 32)
TOKENS = 65


@dataclass(frozen=True, slots=True)
class Variant:
    """A model, and the file that it lies in."""

    name: str
    model: ir.Model
    path: Path

    def predictions(self, images: np.ndarray) -> np.ndarray:
        """(n, 1, 8, 8) images to (n,) digits, by ONNX Runtime."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        feeds = full_inputs(self.model, batch=len(images), tokens=TOKENS) | {"images": images}
        logits = session.run([self.model.graph.outputs[0].name], feeds)[0]
        return logits.argmax(axis=1)

    def bench_model(self, batch: int) -> BenchModel:
        """What the clock needs: random images, and the FLOPs they cost."""
        inputs = full_inputs(self.model, batch=batch, tokens=TOKENS)
        return BenchModel(self.path, inputs, count_flops(self.model, inputs).total)


def export(net: DigitsViT) -> ir.Model:
    """The trained model as a graph; the batch may have any size."""
    return sc.from_torch(net, {"images": torch.rand(2, 1, 8, 8)}, {"images": {0: "batch"}})


def variants(net: DigitsViT, digits: Digits, folder: Path) -> Iterator[Variant]:
    """The dense model, and what becomes of it."""
    dense = export(net)
    batches = [{"images": digits.train_images[:256].numpy()}]
    groups = sc.analyse(dense)
    plan = sc.plan(groups, "heads", ratio=HEADS, importance="output_norm", data=batches)
    fewer = sc.remove(dense, plan, data=batches)
    sites = [
        sc.Select(f"blocks.{block}", by="class_row", keep=keep) for block, keep in KEEP.items()
    ]
    models = {
        "dense": dense,
        "heads": fewer,
        "tokens": sc.select(dense, sites),
        "heads + tokens": sc.select(fewer, sites),
    }
    for name, model in models.items():
        path = folder / f"{name.replace(' + ', '_')}.onnx"
        save(model, path)
        yield Variant(name, model, path)


def show(dense: Variant, variant: Variant, digits: Digits, pairs: int) -> None:
    """One line: accuracy, and latency next to that of the dense model in the same run."""
    right = variant.predictions(digits.test_images.numpy()) == digits.test_labels.numpy()
    cells = [f"{variant.name:<16}{100 * right.mean():6.1f} %"]
    for batch in BATCHES if variant is not dense and pairs else ():
        models = dense.bench_model(batch), variant.bench_model(batch)
        case = BenchCase(variant.name, batch, TOKENS, *models)
        row = interleaved(case, BenchOptions(processes=1, pairs=pairs))
        cells.append(
            f"{row.dense_ms:7.2f} -> {row.pruned_ms:6.2f} ms, FLOPs / {row.flops_ratio:.2f}"
        )
    print("   ".join(cells), flush=True)


def compare_with_own_logic(net: DigitsViT, tokens: Variant, digits: Digits) -> None:
    """The same weights in a model that calls ``select_tokens`` in its own forward."""
    own = DigitsViT(keep=KEEP).eval()
    own.load_state_dict(net.state_dict())
    with torch.no_grad():
        expected = own(digits.test_images).argmax(1).numpy()
    same = int((tokens.predictions(digits.test_images.numpy()) == expected).sum())
    print(f"a model that drops tokens in its own forward agrees on {same} of {len(expected)}")

    operators = [
        Counter(node.op_type for node in m.graph) for m in (sc.select(export(own)), tokens.model)
    ]
    print(f"and exports to {'the same' if operators[0] == operators[1] else 'other'} operators")


def main() -> None:
    parser = argparse.ArgumentParser(description="a small ViT on digits, trained and pruned")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=20, help="timed runs of each model; 0: none")
    options = parser.parse_args()
    digits, started = load_digits(), time.perf_counter()
    net = train(digits, epochs=options.epochs)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    print(
        f"PyTorch         {100 * accuracy(net, digits):6.1f} %  of {len(digits.test_labels)} digits"
    )

    with tempfile.TemporaryDirectory() as folder:
        made = list(variants(net, digits, Path(folder)))
        print(f"{'':<16}accuracy   " + "   ".join(f"batch {batch:<26}" for batch in BATCHES))
        for variant in made:
            show(made[0], variant, digits, options.pairs)
        compare_with_own_logic(net, made[2], digits)


if __name__ == "__main__":
    main()
