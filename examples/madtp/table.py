"""Export the committed models, check them, and print what pruning costs and gives.

    python examples/madtp/table.py

Multiply-adds are of samples run by themselves; latency (median) and CPU time (mean) are of ONNX
Runtime at batch 1 with one thread, over the same test samples. What MADTP is compared with prunes
to the same multiply-adds: with weights of its own where training made some, else ("of MADTP")
without training, on the weights that were fine-tuned under MADTP. "Taught" weights were trained
longer, with the dense model to teach.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table

from secateur.export.madtp_assembly import Traces
from secateur.export.madtp_models import nlvr_graph
from secateur.export.madtp_parts import Form
from secateur.models.madtp.digits import Examples, make_examples
from secateur.models.madtp.digits_model import load_weights
from secateur.models.madtp.rules import RULES, Rule
from secateur.models.madtp.search import Target
from secateur.models.madtp.tasks import BlipNlvr, Compression
from secateur.models.madtp.training import accuracy, find_temperature
from secateur.models.madtp.work import nlvr_macs

HERE = Path(__file__).parent
REDUCTIONS = ("0.3", "0.5", "0.6", "0.7", "0.8")
TITLES = {
    "madtp": "MADTP",
    "attention": "MADTP without MAG",
    "class": "top-k by class attention",
    "random": "random",
}
TESTED, MEASURED, TIMED = 2_000, 250, 200
BOUND = 1e-3
"""Of the graph's logits against the model's, as a share of the largest."""
WARM_UP = 10
Feeds = dict[str, np.ndarray]
Timed = tuple[dict[str, Any], ort.InferenceSession, float]
"""A row, its graph and its strength."""


@dataclass(frozen=True)
class Data:
    """What all rows share."""

    test: Examples
    traces: Traces = field(default_factory=dict)
    runs: list[Timed] = field(default_factory=list)
    """What is timed when all rows are there."""


@dataclass(frozen=True)
class Subject:
    """What a row is about."""

    rule: Rule
    reduction: str
    net: BlipNlvr
    weights: str = "own"

    def named(self) -> dict[str, Any]:
        """The cells that say what a row is about."""
        return {"rule": self.rule, "reduction": self.reduction, "weights": self.weights}


class ParityFailure(SystemExit):
    """A graph that does not answer as its model does."""


def session_of(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def feeds(examples: Examples, rows: slice, strength: float) -> Feeds:
    """Inputs of the graph; texts are as long as the longest of them."""
    made = {name: value.numpy() for name, value in examples.inputs(rows).items()}
    longest = int(made["attention_mask"].sum(axis=1).max())
    for name in ("input_ids", "attention_mask"):
        made[name] = made[name][:, :longest]
    return made | ({"temperature": np.array(strength, dtype=np.float32)} if strength else {})


def graph_accuracy(session: ort.InferenceSession, examples: Examples, strength: float) -> float:
    right = 0
    for at in range(0, TESTED, 50):
        rows = slice(at, at + 50)
        (logits,) = session.run(None, feeds(examples, rows, strength))
        right += int((logits.argmax(axis=1) == examples.labels[rows]).sum())
    return right / TESTED


def parity(
    net: BlipNlvr, session: ort.InferenceSession, examples: Examples, compression: Compression
) -> float:
    """Largest difference of logits in batches of different samples, relative to the largest."""
    with torch.no_grad():
        want = net(**examples.inputs(slice(0, 64)), compression=compression)["logits"].numpy()
    strength = float(compression.image.temperature)
    (made,) = session.run(None, feeds(examples, slice(0, 64), strength))
    error = float(np.abs(made - want).max() / np.abs(want).max())
    if not error < BOUND:
        raise ParityFailure(f"the graph differs from its model by {error:.2g}")
    return error


def time_all(runs: list[Timed], examples: Examples) -> None:
    """Enter latency (median) and CPU time (mean) of a sample, in milliseconds, in every row.

    The graphs take turns, sample by sample, so that a slow moment of the machine hits all of them.
    """
    taken = np.zeros((TIMED, len(runs), 2))
    for i in range(-WARM_UP, TIMED):
        for j, (_, session, strength) in enumerate(runs):
            sample = feeds(examples, slice(abs(i), abs(i) + 1), strength)
            start = np.array([time.perf_counter(), time.process_time()])
            session.run(None, sample)
            taken[i, j] = np.array([time.perf_counter(), time.process_time()]) - start
    for j, (row, _, _) in enumerate(runs):
        row["latency_ms"] = 1e3 * float(np.median(taken[:, j, 0]))
        row["cpu_ms"] = 1e3 * float(taken[:, j, 1].mean())


def measured(subject: Subject, strength: float, data: Data) -> dict[str, Any]:
    """One row of the table."""
    compression = Compression.at(strength, by=subject.rule)
    torch.manual_seed(0)
    macs = nlvr_macs(subject.net, data.test.inputs(slice(0, MEASURED)), compression)
    row = subject.named() | {"strength": strength, "mmacs": float(macs.mean()) / 1e6}
    if strength and subject.rule == "random":  # ONNX Runtime draws other numbers than PyTorch
        return row | {"accuracy": accuracy(subject.net, data.test, compression)}
    form: Form = "decoupled" if strength else "dense"
    graph = nlvr_graph(subject.net, form, rule=subject.rule, traces=data.traces)
    session = session_of(graph)
    error = parity(subject.net, session, data.test, compression)
    right = graph_accuracy(session, data.test, strength)
    row |= {"accuracy": right, "parity": error}
    data.runs.append((row, session, strength))
    return row


def rows_of(reduction: str, base: BlipNlvr, data: Data) -> Iterator[dict[str, Any]]:
    """MADTP at a reduction, and what it is compared with at the same multiply-adds."""
    net, strength = opened("madtp", reduction, base)
    yield measured(Subject("madtp", reduction, net), strength, data)
    for rule in RULES[1:]:
        if weights_file(rule, reduction).exists():
            rival, found = opened(rule, reduction, base)
            yield measured(Subject(rule, reduction, rival), found, data)
            continue
        subject = Subject(rule, reduction, net, weights="of MADTP")
        yield measured(subject, strength_for(subject, strength, data), data)


def taught_rows_of(reduction: str, base: BlipNlvr, data: Data) -> Iterator[dict[str, Any]]:
    """What was trained longer, with the dense model to teach."""
    for rule in RULES:
        if weights_file(rule, f"{reduction}-taught").exists():
            net, strength = opened(rule, f"{reduction}-taught", base)
            yield measured(Subject(rule, reduction, net, "own, taught"), strength, data)


def opened(rule: str, reduction: str, base: BlipNlvr) -> tuple[BlipNlvr, float]:
    """A model, and the strength that training found for it."""
    net, notes = load_weights(weights_file(rule, reduction), base)
    return net, float(notes["strength"])


def strength_for(subject: Subject, temperature: float, data: Data) -> float:
    """At which a rule has the multiply-adds of MADTP on the same weights; no answer is read."""
    inputs = data.test.inputs(slice(0, MEASURED))
    macs = float(nlvr_macs(subject.net, inputs, Compression.at(temperature)).mean())
    target = Target(macs, 0.005)
    return find_temperature(
        subject.net, inputs, target, rule=subject.rule, nearest=True
    ).temperature


def printed(rows: list[dict[str, Any]], console: Console) -> None:
    dense = rows[0]
    heads = ("model", "p", "weights", "MMACs", "saved", "accuracy", "lost", "latency", "CPU")
    table = Table(*heads, "parity", title="digits, one sample at a time")
    last_of = {row["reduction"]: row for row in rows}
    for row in rows:
        saved = 1 - row["mmacs"] / dense["mmacs"]
        title = "dense" if row is dense else TITLES[row["rule"]]
        cells = [title, "-" if row is dense else row["reduction"], row["weights"]]
        cells += [f"{row['mmacs']:.2f}", f"{saved:.1%}", f"{row['accuracy']:.2%}"]
        cells.append(f"{100 * (dense['accuracy'] - row['accuracy']):.2f}")
        for name in ("latency_ms", "cpu_ms"):
            cells.append(f"{row[name]:.2f} ms" if name in row else "-")
        cells.append(f"{row['parity']:.0e}" if "parity" in row else "-")
        table.add_row(*cells, end_section=row is last_of[row["reduction"]])
    console.print(table)


def weights_file(rule: str, reduction: str) -> Path:
    return HERE / "weights" / f"{rule}-{reduction}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=HERE.parents[1] / "build" / "madtp.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # as wide as the table where nobody looks at a terminal
    console, start = Console(width=None if sys.stdout.isatty() else 120), time.time()
    data = Data(make_examples(TESTED, "test", seed=1))
    base, _ = load_weights(HERE / "weights" / "dense.safetensors")
    rows = [measured(Subject("madtp", "0", base), 0.0, data)]
    for reduction in REDUCTIONS:
        if weights_file("madtp", reduction).exists():
            given = (reduction, base, data)
            for row in itertools.chain(rows_of(*given), taught_rows_of(*given)):
                rows.append(row)
                done = f"{time.time() - start:4.0f} s: {TITLES[row['rule']]}, p = {reduction}"
                console.print(done, highlight=False)
    time_all(data.runs, data.test)
    printed(rows, console)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"rows": rows, "seconds": time.time() - start}, indent=1))
    console.print(f"{time.time() - start:.0f} s; {arguments.json.name} written")


if __name__ == "__main__":
    main()
