"""Accuracy of the digits ViT with every selector behind its second block, without training.

The model is that of examples/digits_vit. Tokens are dropped by masking, in PyTorch; that graphs
do the same is what ``make selectors`` shows. ``random`` is the control.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "digits_vit"))

from model import DigitsViT  # noqa: E402 - of the example
from train import Digits, accuracy, load_digits, train  # noqa: E402

from secateur.models.reference import TokenSite, run  # noqa: E402
from secateur.models.selectors import SELECTORS  # noqa: E402

KEEPS = (0.75, 0.5, 0.25)
FRAMES = 4
NOT_RUN = {
    "dtop": "needs auxiliary heads that were trained with the model",
    "recoverable": "needs a text",
    "todre_relevance": "needs a text",
    "top_vim": "reads the scan of a state space model",
    "vflowopt_entropy": "a patch of one pixel has no entropy",
    "vflowopt_stage": "carries the scores of vflowopt on",
}


@dataclass(frozen=True)
class Setting:
    """Options of a method on an 8 x 8 grid of tokens, and blocks behind which it selects."""

    options: Mapping[str, bool | float | str] = field(default_factory=dict)
    blocks: tuple[int, ...] = (1,)


SETTINGS = {
    "hiprune": Setting({"layers": "0,-1"}),
    "vtc_cls": Setting({"layers": ":"}),
    "holov": Setting({"crops": 4, "fill": True}),
    "vflowopt": Setting({"base": 8, "columns": 8, "cell": 2.0, "threshold": 2.0}),
    "flowcut": Setting({}, (1,)),
}


def occlusion(net: DigitsViT, images: Tensor) -> Tensor:
    """(65,): by how much predictions fall, on average, where a pixel is made grey."""
    with torch.no_grad():
        sure = net(images).softmax(dim=1)
        label = sure.argmax(dim=1, keepdim=True)
        found = [torch.tensor(1.0)]
        for place in range(64):
            changed = images.flatten(1).clone()
            changed[:, place] = images.mean()
            left = net(changed.view_as(images)).softmax(dim=1).gather(1, label)
            found.append((sure.gather(1, label) - left).mean())
    return torch.stack(found)


def accuracy_with(
    net: DigitsViT, digits: Digits, name: str, permille: int, *, given: Tensor
) -> dict[str, float]:
    """Share of held-out digits named correctly, and tokens left on average."""
    setting = SETTINGS.get(name, Setting())
    n_images = len(digits.test_images)
    signals = {
        "reagent": {"importance": given.expand(n_images, -1)},
        "quota": {"relevance": torch.ones(n_images, FRAMES)},
    }.get(name, {})
    sites = [
        TokenSite(f"blocks.{block}", name, amount=permille, options=setting.options, given=signals)
        for block in setting.blocks
    ]
    found = run(net, {"images": digits.test_images}, sites)
    right = found.outputs["output"].argmax(1) == digits.test_labels
    left = list(found.sites.values())[-1].count.float().mean()
    return {"accuracy": round(float(right.float().mean()), 4), "tokens": round(float(left), 1)}


def main() -> int:
    """Train, or load weights; one row per selector; 0 whatever the numbers are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="a state dict, instead of training")
    parser.add_argument("--output", type=Path, default=Path("build/selector_accuracy.json"))
    options = parser.parse_args()
    digits = load_digits()
    net = train(digits, epochs=0 if options.weights else 30)
    if options.weights:
        net.load_state_dict(torch.load(options.weights, weights_only=True))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    given = occlusion(net, digits.train_images[:300])
    rows: list[dict[str, object]] = [{"selector": "dense", "accuracy": accuracy(net, digits)}]
    for name in sorted(SELECTORS):
        row: dict[str, object] = {"selector": name}
        if name in NOT_RUN:
            row["not_run"] = NOT_RUN[name]
        else:
            for keep in KEEPS:
                row[str(keep)] = accuracy_with(net, digits, name, round(keep * 1000), given=given)
        rows.append(row)
        print(json.dumps(row), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
