"""Take half the heads of the digits ViT and win the accuracy back by fine-tuning.

    python examples/digits_cnn/vit_heads.py

The model and its training are those of examples/digits_vit; the heads that go are drawn at
random, so that there is something to win back.
"""

from __future__ import annotations

import argparse
import time

import torch
from training import accuracy, fit, load_digits

import secateur as sc


def main() -> None:
    parser = argparse.ArgumentParser(description="heads of the digits ViT, pruned and tuned")
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    parser.add_argument("--tune", type=int, default=4, help="epochs of fine-tuning")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the heads that goes")
    parser.add_argument("--importance", default="random", help="what ranks the heads")
    options = parser.parse_args()
    from train import train

    started, digits = time.perf_counter(), load_digits()
    net = train(digits, epochs=options.epochs)
    batch = {"images": torch.rand(2, 1, 8, 8)}
    dense = sc.from_torch(net, batch, {"images": {0: "batch"}})
    plan = sc.plan(sc.analyse(dense), "heads", ratio=options.ratio, importance=options.importance)
    small = sc.to_torch(sc.remove(dense, plan))
    counts = [sum(p.numel() for p in model.parameters()) for model in (net, small)]
    print(f"dense   {accuracy(net, digits):5.1f} %  {counts[0]} parameters")
    print(f"pruned  {accuracy(small, digits):5.1f} %  {counts[1]} parameters")
    fit(small, digits, epochs=options.tune, rate=1e-3)
    print(f"tuned   {accuracy(small, digits):5.1f} %")
    again = sc.from_torch(small, batch, {"images": {0: "batch"}})
    print(f"exported again: {len(again.graph)} nodes, in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
