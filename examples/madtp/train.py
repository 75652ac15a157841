"""Train the digits model: dense, then compressed by MADTP or by what it is compared with.

    python examples/madtp/train.py dense
    python examples/madtp/train.py madtp 0.5
    python examples/madtp/train.py madtp 0.6 0.7 --start 0.5
    python examples/madtp/train.py class 0.5
    python examples/madtp/train.py madtp 0.8 --taught

With a start, the first of the reductions goes on from the weights of that reduction, and every
other from those before it. A taught run goes on from the weights of its own reduction.

Every run goes on where an earlier one of the same name was interrupted (checkpoints are below
build/madtp), writes its weights to examples/madtp/weights and a line per epoch to
examples/madtp/training.log.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from secateur.models.madtp.digits import make_examples
from secateur.models.madtp.digits_model import (
    digits_model,
    load_weights,
    save_difference,
    save_weights,
)
from secateur.models.madtp.distillation import Lesson, taught_by
from secateur.models.madtp.loop import Epoch, Training
from secateur.models.madtp.rules import RULES, Rule
from secateur.models.madtp.search import Target
from secateur.models.madtp.tasks import NO_COMPRESSION, BlipNlvr, Compression
from secateur.models.madtp.training import (
    accuracy,
    find_temperature,
    pretrain_vision,
    train,
    train_distilled,
    train_gathering,
)
from secateur.models.madtp.work import nlvr_macs

HERE = Path(__file__).parent
CHECKPOINTS = HERE.parents[1] / "build" / "madtp"
SEEING = Training(epochs=3, steps=100, batch_size=32, noise=0.2)
READING = Training(
    epochs=16,
    steps=100,
    batch_size=128,
    noise=0.1,
    trained=("text.", "cls_head."),
)
GATHERING = Training(epochs=6, steps=60, learning_rate=5e-4, noise=0.1)
EXAMPLES, MEASURED, TESTED = 20_000, 256, 2_000


def compressing(rule: Rule, macs: float, reduction: float, *, further: bool) -> Training:
    """The fine-tuning while it is compressed, or compressed further; the same for every rule."""
    little = reduction < 0.5
    epochs, ramp = (8, 0) if further else (5, 2) if little else (10, 4)
    return Training(
        epochs=epochs,
        steps=60,
        learning_rate=1e-3,
        noise=0.1,
        target=Target(macs, tolerance=0.005),
        rule=rule,
        ramp=ramp,
    )


def log(text: str) -> None:
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
    print(line, flush=True)
    with (HERE / "training.log").open("a") as file:
        file.write(line + "\n")


def logged(name: str, checkpoint: Path) -> Callable[[Epoch], None]:
    """Log epochs as they come; those that a checkpoint already has were logged before."""
    known = len(torch.load(checkpoint, weights_only=True)["epochs"]) if checkpoint.exists() else 0

    def report(epoch: Epoch) -> None:
        if epoch.number >= known:
            used = time.process_time()
            text = f"{name} epoch {epoch.number + 1}: loss {epoch.loss:.4f}"
            log(f"{text}, strength {epoch.temperature:.4g}, {used:.0f} CPU s of this process")

    return report


def train_dense() -> None:
    net, examples = digits_model(), make_examples(EXAMPLES, "train", seed=0)
    stages = (
        ("seeing", SEEING, pretrain_vision),
        ("reading", READING, train),
        ("gathering", GATHERING, train_gathering),
    )
    for name, training, function in stages:
        checkpoint = CHECKPOINTS / f"dense-{name}.pt"
        function(net, examples, training, checkpoint, logged(f"dense {name}", checkpoint))
        if name != "seeing":
            log(f"dense {name}: accuracy {tested(net, NO_COMPRESSION):.4f}")
    save_weights(net, HERE / "weights" / "dense.safetensors", {"rule": "dense"})


@dataclass(frozen=True)
class Run:
    """One compression of the digits model."""

    rule: Rule
    reduction: float
    start: float | None = None
    """Begin with the weights of this reduction; None: with the dense ones."""
    taught: bool = False
    """Go on from the weights of the same reduction, longer, and with the dense model to teach."""

    @property
    def name(self) -> str:
        """In the log."""
        came = f" from p={self.start:g}" if self.start is not None else ""
        return f"{self.rule} p={self.reduction:g}{' taught' if self.taught else came}"

    @property
    def weights(self) -> Path:
        """What it ends with."""
        return weights_file(self.rule, self.reduction, taught=self.taught)

    @property
    def checkpoint(self) -> Path:
        """What it goes on from where it was interrupted."""
        came = f"-from-{self.start:g}" if self.start is not None and not self.taught else ""
        return CHECKPOINTS / f"{self.weights.stem}{came}.pt"

    def training(self, macs: float) -> Training:
        """How."""
        if self.taught:
            return replace(
                compressing(self.rule, macs, self.reduction, further=True),
                epochs=30,
                learning_rate=2e-3,
            )
        return compressing(self.rule, macs, self.reduction, further=self.start is not None)


def weights_file(rule: str, reduction: float, *, taught: bool = False) -> Path:
    return HERE / "weights" / f"{rule}-{reduction:g}{'-taught' if taught else ''}.safetensors"


def compress(wanted: Run) -> None:
    """Fine-tune a model while a rule takes a share of its multiply-adds away."""
    rule, reduction = wanted.rule, wanted.reduction
    base, _ = load_weights(HERE / "weights" / "dense.safetensors")
    net, _ = load_weights(HERE / "weights" / "dense.safetensors")
    start = reduction if wanted.taught else wanted.start
    if start is not None:
        net, _ = load_weights(weights_file(rule, start), base)
    examples = make_examples(EXAMPLES, "train", seed=0)
    measured = examples.inputs(slice(0, MEASURED))
    dense = float(nlvr_macs(base, measured, NO_COMPRESSION).mean())
    macs = (1 - reduction) * dense
    if rule != "madtp":
        macs = max(macs, reached(reduction, base, measured))
    training, checkpoint = wanted.training(macs), wanted.checkpoint
    report = logged(wanted.name, checkpoint)
    if wanted.taught:
        lesson = Lesson(examples, taught_by(base, examples))
        train_distilled(net, lesson, training, checkpoint, report)
    else:
        train(net, examples, training, checkpoint, report)
    # the nearest: what a rule cannot reach is said in the log, and shows in the table
    found = find_temperature(net, measured, Target(macs, 0.002), rule=rule, nearest=True)
    right = tested(net, Compression.at(found.temperature, by=rule))
    log(f"{wanted.name}: accuracy {right:.4f} at strength {found.temperature:.6g}")
    log(f"{wanted.name}: {found.macs:.0f} of {dense:.0f} multiply-adds, target {macs:.0f}")
    notes = {"rule": rule, "reduction": f"{reduction:g}", "strength": repr(found.temperature)}
    save_difference(net, base, wanted.weights, notes)


def reached(reduction: float, base: BlipNlvr, inputs: dict[str, torch.Tensor]) -> float:
    """Multiply-adds that MADTP itself was left with, which its rivals are then trained to."""
    path = weights_file("madtp", reduction)
    if not path.exists():
        return 0.0
    net, notes = load_weights(path, base)
    return float(nlvr_macs(net, inputs, Compression.at(float(notes["strength"]))).mean())


def tested(net: BlipNlvr, compression: Compression) -> float:
    torch.manual_seed(0)  # the random rule draws
    return accuracy(net, make_examples(TESTED, "test", seed=1), compression)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("dense", *RULES))
    parser.add_argument("reduction", nargs="*", type=float, default=[0.5])
    parser.add_argument("--start", type=float, help="reduction whose weights to begin with")
    parser.add_argument("--taught", action="store_true", help="longer, by the dense model")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    if arguments.what == "dense":
        train_dense()
    else:
        start = arguments.start
        for reduction in arguments.reduction:
            compress(Run(arguments.what, reduction, start, taught=arguments.taught))
            start = None if start is None else reduction


if __name__ == "__main__":
    main()
