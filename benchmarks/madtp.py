"""What MADTP saves: at batch 1, and in batches whose samples are regrouped between stages.

    python benchmarks/madtp.py vision     # BLIP-base-sized encoder, forced counts, half the work
    python benchmarks/madtp.py staged     # the trained digits model, real counts, batches of 16
    python benchmarks/madtp.py engines    # which forms TensorRT-RTX builds; needs no GPU

Every command writes its entry of ``benchmarks/results/madtp.json``. Run the timings with nothing
else on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.errors import SecateurError
from secateur.export.madtp_models import nlvr_graph, vision_graph
from secateur.export.madtp_parts import Form
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.digits import make_examples
from secateur.models.madtp.digits_model import load_weights
from secateur.models.madtp.encoder import Pruning
from secateur.models.madtp.macs import macs
from secateur.models.madtp.tasks import BlipNlvr, Compression
from secateur.models.madtp.towers import blip_image
from secateur.models.madtp.work import nlvr_macs
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.backends.tensorrt import TensorRt
from secateur.runtime.bench import BenchCase, BenchModel, BenchOptions, interleaved
from secateur.runtime.staged import Arrays, Run, Staged
from secateur.workflow.madtp_stages import split

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "madtp.json"
WEIGHTS = ROOT / "examples" / "madtp" / "weights"

HALF = 0.5
EFFICIENCY_BOUND = 0.85
LAYERS, PATCHES, CONCEPTS, WIDTH = 12, 576, 100, 768
"""Of BLIP's base vision encoder on the 384 x 384 images of NLVR2."""

BATCH, QUEUE, ROUNDS = 16, 256, 25
THROUGHPUT_BOUND, EQUAL = 1.3, 1e-4
SPLITS = ((0, 2, 5), (1, 3, 5), (0, 1, 3, 5))
"""Vision layers at whose cuts the graph of the digits model is split."""
ROOM = BATCH * (1 + 36)
"""Tokens of a batch of images before they are pruned."""
CAPABILITY = "sm86"
PRUNING: tuple[Form, ...] = ("schedule", "decoupled", "faithful")
Array = NDArray[Any]


def vision(folder: Path) -> dict[str, Any]:
    """Latency at batch 1 against multiply-adds, with counts that halve the multiply-adds."""
    net, concepts = blip_base()
    pixels = torch.randn(1, 3, 384, 384)
    counts = halving_counts(net, concepts, pixels)
    feeds = {"pixel_values": pixels.numpy()}
    models = {}
    for form in ("dense", "schedule"):
        print(f"export: {form}", flush=True)
        path = folder / f"{form}.onnx"
        ir.save(vision_graph(net, concepts, form), path)  # type: ignore[arg-type]
        more = {} if form == "dense" else {"image_counts": counts.numpy()}
        pruning = Pruning() if form == "dense" else Pruning(counts=counts)
        work = vision_macs(net, concepts, pixels, pruning)
        models[form] = BenchModel(path, feeds | more, float(work))
    check_vision(net, concepts, (pixels, counts), models["schedule"])
    dense, pruned = models["dense"], models["schedule"]
    case = BenchCase("BLIP-base vision, MADTP schedule", 1, PATCHES + 1, dense, pruned)
    row = interleaved(case, BenchOptions(processes=3, pairs=8, warm_up=2, threads=1))
    found = {"counts": counts.tolist(), "mmacs": {n: m.flops / 1e6 for n, m in models.items()}}
    return found | row.to_json() | {"bound": EFFICIENCY_BOUND}


def blip_base() -> tuple[nn.Module, Concepts]:
    """The encoder with random weights."""
    from transformers import BlipVisionConfig, BlipVisionModel

    torch.manual_seed(0)
    config = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        image_size=384,
        patch_size=16,
    )
    return BlipVisionModel(config).eval(), Concepts(CONCEPTS, WIDTH)


def halving_counts(net: nn.Module, concepts: Concepts, pixels: torch.Tensor) -> torch.Tensor:
    """Counts (layers,) that fall by one factor per layer, so that half the multiply-adds go."""
    dense = vision_macs(net, concepts, pixels, Pruning())
    low, high = 0.5, 1.0
    for _ in range(9):
        factor = (low + high) / 2
        spent = vision_macs(net, concepts, pixels, Pruning(counts=falling(factor)))
        low, high = (low, factor) if spent > HALF * dense else (factor, high)
    return falling(low)


def falling(factor: float) -> torch.Tensor:
    return torch.tensor([max(1, int(PATCHES * factor ** (i + 1))) for i in range(LAYERS)])


@torch.no_grad()
def vision_macs(net: nn.Module, concepts: Concepts, pixels: torch.Tensor, pruning: Pruning) -> int:
    return macs(lambda given: blip_image(net, concepts.weight, given["x"], pruning), {"x": pixels})


@torch.no_grad()
def check_vision(
    net: nn.Module,
    concepts: Concepts,
    given: tuple[torch.Tensor, torch.Tensor],
    pruned: BenchModel,
) -> None:
    """Hold the graph to the model before it is timed."""
    pixels, counts = given
    want = blip_image(net, concepts.weight, pixels, Pruning(counts=counts)).hidden.numpy()
    (made,) = ort.InferenceSession(str(pruned.path)).run(None, dict(pruned.inputs))
    # random weights: two tokens that are as important may change places
    error = float(np.abs(made[:, 0] - want[:, 0]).max() / np.abs(want[:, 0]).max())
    print(f"parity of the class token: {error:.1e}, shape {made.shape}", flush=True)
    if made.shape != want.shape or not error < 1e-3:
        raise SystemExit(f"the graph differs from its model by {error:.2g}")


@dataclass(frozen=True)
class Digits:
    """The trained model at half the multiply-adds, and a queue of test samples."""

    net: BlipNlvr
    compression: Compression
    queue: Arrays


def digits() -> Digits:
    base, _ = load_weights(WEIGHTS / "dense.safetensors")
    net, notes = load_weights(WEIGHTS / "madtp-0.5.safetensors", base)
    inputs = make_examples(QUEUE, "test", seed=1).inputs(slice(0, QUEUE))
    queue = {name: value.numpy() for name, value in inputs.items()}
    longest = int(queue["attention_mask"].sum(axis=1).max())
    for name in ("input_ids", "attention_mask"):
        queue[name] = queue[name][:, :longest]
    strength = float(notes["strength"])
    queue["temperature"] = np.array(strength, dtype=np.float32)
    return Digits(net, Compression.at(strength), queue)


def staged(folder: Path) -> dict[str, Any]:
    """Seconds for a queue: batches as they come, and regrouped between stages."""
    del folder
    given = digits()
    model = nlvr_graph(given.net)
    whole = session(ir.to_proto(model).SerializeToString())
    alone = np.concatenate([whole(rows(given.queue, i, 1))["logits"] for i in range(QUEUE)])
    ways = ways_through(model, whole, given.queue)
    worst = {name: relative(way(), alone) for name, way in ways.items()}
    if max(worst.values()) > EQUAL:
        raise SystemExit(f"a sample is not what it is alone: {worst}")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    seconds = {name: float(np.median(taken)) for name, taken in times.items()}
    return {
        "batch": BATCH,
        "queue": QUEUE,
        "rounds": ROUNDS,
        "seconds": seconds,
        "throughput_of_padding": {n: seconds["padded"] / value for n, value in seconds.items()},
        "multiply_adds_of_padding": padding_macs(given),
        "difference_from_alone": worst,
        "bound": THROUGHPUT_BOUND,
    }


def ways_through(model: ir.Model, whole: Run, queue: Arrays) -> dict[str, Callable[[], Array]]:
    """What is measured, by name; all give the logits of the queue."""
    ways: dict[str, Callable[[], Array]] = {"padded": lambda: padded(whole, queue)}
    for sites in SPLITS:
        parts = split(model, [f"vision.encoder.layers.{i}" for i in sites])
        stages = [session(part.SerializeToString()) for part in parts.models]
        run = Staged(stages, parts.boundaries).run
        name = f"cut after {', '.join(map(str, sites))}"
        for tokens, how in ((0, name), (ROOM, f"{name}, up to {ROOM} tokens")):
            once = partial(run, queue, BATCH, shared=("temperature",), tokens=tokens)
            ways[how] = lambda once=once: once()["logits"]  # type: ignore[misc]
    return ways


@torch.no_grad()
def padding_macs(given: Digits) -> float:
    """Multiply-adds of batches at their longest sample's lengths over those of samples alone."""
    inputs = {n: torch.from_numpy(v) for n, v in given.queue.items() if v.ndim}
    alone = float(nlvr_macs(given.net, inputs, given.compression).sum())
    spent = 0
    for at in range(0, QUEUE, BATCH):
        batch = {name: value[at : at + BATCH] for name, value in inputs.items()}
        spent += macs(lambda x: given.net(**x, compression=given.compression), batch)
    return spent / alone


def session(model: bytes) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    opened = ort.InferenceSession(model, options)
    names = [value.name for value in opened.get_outputs()]
    wanted = {value.name for value in opened.get_inputs()}

    def run(given: Mapping[str, Any]) -> Mapping[str, Any]:
        feeds = {name: array for name, array in given.items() if name in wanted}
        return dict(zip(names, opened.run(None, feeds), strict=True))

    return run


def rows(queue: Arrays, at: int, count: int) -> Arrays:
    return {n: value[at : at + count] if value.ndim else value for n, value in queue.items()}


def padded(whole: Run, queue: Arrays) -> Array:
    parts = [whole(rows(queue, at, BATCH))["logits"] for at in range(0, QUEUE, BATCH)]
    return np.concatenate(parts)


def relative(made: Array, want: Array) -> float:
    return float(np.abs(made - want).max() / np.abs(want).max())


def engines(folder: Path) -> dict[str, Any]:
    """Build the graph of the digits model for TensorRT-RTX, in every form that prunes."""
    given = digits()
    return {form: engine(folder, given, form) for form in PRUNING}


def engine(folder: Path, given: Digits, form: Form) -> dict[str, Any]:
    path, start = folder / f"{form}.onnx", time.time()
    ir.save(nlvr_graph(given.net, form), path)
    spec = EngineSpec(profiles(), counts(form), compute_capabilities=(CAPABILITY,), timeout_s=900)
    try:
        built = TensorRt("rtx").build_with_record(path, spec)
    except SecateurError as error:
        return {"built": False, "why": str(error), "where": str(error.where)}
    print(f"{form}: built in {time.time() - start:.0f} s with the export", flush=True)
    version = built.record["versions"]["tensorrt"]
    return {"built": True, "bytes": len(built.engine), "for": CAPABILITY, "version": version}


def profiles() -> dict[str, ShapeRange]:
    text = ShapeRange((1, 6), (1, 9), (16, 12))
    pixels = ShapeRange((1, 2, 3, 48, 48), (1, 2, 3, 48, 48), (16, 2, 3, 48, 48))
    return {"pixel_values": pixels, "input_ids": text, "attention_mask": text}


def counts(form: Form) -> dict[str, ShapeRange]:
    if form != "schedule":
        return {}
    return {
        "image_counts": ShapeRange((1,) * 6, (23, 18, 12, 9, 8, 8), (36,) * 6),
        "text_counts": ShapeRange((1,) * 3, (8, 7, 7), (12,) * 3),
    }


def main() -> int:
    commands = {"vision": vision, "staged": staged, "engines": engines}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=commands)
    name = parser.parse_args().command
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        made = commands[name](Path(temporary))
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(entries | {name: made}, indent=1, sort_keys=True) + "\n")
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
