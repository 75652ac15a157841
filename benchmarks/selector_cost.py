"""What selecting costs: every selector as a share of one encoder layer, and whole models.

``prepare FOLDER`` writes the graphs, ``cost FOLDER`` times the nodes that a selection adds to a
layer of a ViT-B, ``models FOLDER`` times a ViT-S and a ViT-B that keep half of their tokens
behind their third layer. Both add rows to ``--output``; ``check`` holds the rows to the bounds.
Run the timings with nothing else on the machine.

The file is not called ``selectors.py``: Python puts a script's folder first on its path, so that
a file of that name would hide the standard library's ``selectors`` from every script beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxruntime import InferenceSession
from selector_models import Encoder, Vit, encoder_inputs

from secateur.export.selector_graph import Signature, trace
from secateur.export.torch_export import from_torch
from secateur.graph_passes import flops
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import Selection, insert_selections
from secateur.models.selectors import SELECTORS

TOKENS = (196, 576, 2880)
KEEPS = (500, 250, 100)
BATCHES = (1, 8)
LARGEST_BYTES = 8 << 30
"""Inputs of the added nodes above this are not made; the row says so."""

WIDTH, HEADS = 768, 12
OPTIONS: dict[str, dict[str, bool | float | str]] = {
    "vtc_cls": {"layers": "-2:"},
    "hiprune": {"layers": "0,-1"},
}
GIVEN = {
    "dtop": {"mask_logits": "input:21x{n}", "class_logits": "input:21x2"},
    "quota": {"relevance": "input:4"},
    "reagent": {"importance": "input:{n}"},
    "recoverable": {"text_similarity": "input:{n}"},
    "todre_relevance": {"image": "input:{n}"},
    "top_vim": {"ssm_out_backward": "input:1536x{n}"},
    "vflowopt_entropy": {"patch_entropy": "input:{n}"},
}
GRIDS = {"hiprune": {196: 14, 576: 24, 2880: 48}}
FREE = frozenset({"vflowopt_stage"})
"""Methods that compute nothing at their site."""

COST_BOUND, COST_TOKENS = 0.05, 576
EFFICIENCY_BOUNDS = {1: 0.90, 8: 0.95}
DEAR = ("full", "column_mean", "column_means")
"""Signals that are the whole attention map."""

ALL_PAIRS = frozenset({"lexrank"})
"""Methods whose published algorithm compares every token with every other."""


def names() -> list[str]:
    """Selectors that compute something."""
    return [name for name in SELECTORS if name not in FREE]


def prepare(folder: Path, only: list[str], tokens: Iterable[int] = TOKENS) -> None:
    """Write, for each number of tokens, the layer and the nodes that each selector adds."""
    folder.mkdir(parents=True, exist_ok=True)
    for n_tokens in tokens:
        host = folder / f"host_{n_tokens}.onnx"
        if not host.is_file():
            inputs = encoder_inputs(n_tokens + 1, WIDTH)
            net = Encoder(WIDTH, HEADS, 2).eval()
            onnx.save(ir.to_proto(from_torch(net, inputs, {"hidden": {0: "batch"}})), host)
    for name in only or names():
        for n_tokens in tokens:
            path = folder / f"{name}_{n_tokens}.onnx"
            if not path.is_file():
                dense = ir.load(folder / f"host_{n_tokens}.onnx")
                onnx.save(added_nodes(selecting(dense, name, n_tokens)), path)
                print(path.name, flush=True)


def selecting(dense: ir.Model, name: str, n_tokens: int) -> ir.Model:
    """The layer with a selection behind it; its share is an input."""
    protected = 0 if name == "top_vim" else 1
    site = find_sites(dense)[-1]
    given = {signal: value.format(n=n_tokens + 1) for signal, value in GIVEN.get(name, {}).items()}
    chosen = Selection(
        site.name,
        traced(name, protected, n_tokens if name in GRIDS else None),
        Budget(protected=protected),
        signals=given,
    )
    return insert_selections(dense, (chosen,), outputs="leave")


@functools.cache
def traced(name: str, protected: int, n_patches: int | None) -> ir.Model:
    """The selector's graph; for one number of patches where it needs a grid."""
    options, tokens = OPTIONS.get(name, {}), None
    if n_patches is not None:
        options, tokens = options | {"grid_width": GRIDS[name][n_patches]}, n_patches + 1
    signature = Signature(HEADS, WIDTH // HEADS, WIDTH, tokens=tokens, protected=protected)
    return trace(name, signature, options)


def added_nodes(model: ir.Model) -> onnx.ModelProto:
    """Cut out what a selection adds: from the signals' sources to the rows that are kept."""
    proto = ir.to_proto(model)
    graph = proto.graph
    rows = next(name for node in graph.node for name in node.output if name.endswith(".tokens"))
    made = {name: node for node in graph.node for name in node.output}
    weights = {one.name for one in graph.initializer}
    kept: dict[str, onnx.NodeProto] = {}
    sources: set[str] = set()
    queue = [rows]
    while queue:
        name = queue.pop()
        node = made.get(name)
        if not name or name in weights or name in kept or name in sources:
            continue
        if node is None or "selection" not in node.name:
            sources.add(name)
            continue
        kept.update(dict.fromkeys(node.output, node))
        queue.extend(reads(node))
    known = {one.name: one for one in (*graph.input, *graph.value_info)}
    nodes = [node for node in graph.node if any(name in kept for name in node.output)]
    used = {name for node in nodes for name in reads(node)}
    cut = onnx.helper.make_graph(
        nodes,
        "added",
        [known[name] for name in sorted(sources)],
        [onnx.helper.make_empty_tensor_value_info(rows)],
        [one for one in graph.initializer if one.name in used],
    )
    return onnx.helper.make_model(
        cut, opset_imports=proto.opset_import, ir_version=proto.ir_version
    )


def reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node takes from around it, those that a loop's body reads among them."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            body = attribute.g
            made = {one.name for one in (*body.input, *body.initializer)}
            made |= {name for inner in body.node for name in inner.output}
            found |= {name for inner in body.node for name in reads(inner)} - made
            found |= {one.name for one in body.output} - made
    return found - {""}


# --- the cost of selecting -----------------------------------------------------------------------


def session(path: Path) -> InferenceSession:
    """ONNX Runtime as deployed, with two threads that do not spin."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def median_ms(run: Callable[[], object], seconds: float = 0.5) -> float:
    """Median of 3 to 30 runs after one that warms up; one that takes long counts itself."""
    started = time.perf_counter()
    run()
    first = time.perf_counter() - started
    if first > 4 * seconds:
        return first * 1e3
    times = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 30):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def values_for(made: InferenceSession, batch: int, n_tokens: int) -> dict[str, np.ndarray] | str:
    """Random inputs of the added nodes; in words how large they are where that is too much."""
    rng, feeds, total = np.random.default_rng(0), {}, 0
    for one in made.get_inputs():
        if one.name.endswith(".permille"):
            continue
        shape = [batch if isinstance(size, str) or size is None else size for size in one.shape]
        total += int(np.prod(shape)) * 4
        if total > LARGEST_BYTES:
            return f"{int(np.prod(shape)) * 4 / 2**30:.1f} GB of {'x'.join(map(str, shape))}"
        array = rng.standard_normal(shape, dtype=np.float32)
        if shape[-2:] == [n_tokens + 1] * 2 or one.name.endswith((".importance", ".relevance")):
            np.exp(array, out=array)
            array /= array.sum(axis=-1, keepdims=True)
        feeds[one.name] = array
    return feeds


def cost_rows(folder: Path, tokens: int, batch: int, only: list[str]) -> list[dict[str, Any]]:
    """Time one number of tokens and one batch.

    The layer is timed before and after the selectors; the smaller median counts.
    """
    host = session(folder / f"host_{tokens}.onnx")
    hidden = encoder_inputs(tokens + 1, WIDTH, batch)["hidden"].numpy()
    of_layer = functools.partial(host.run, None, {"hidden": hidden})
    before = median_ms(of_layer, 1.0) / 2
    found = [(name, added_ms(folder, name, tokens, batch)) for name in only or names()]
    layer = min(before, median_ms(of_layer, 1.0) / 2)
    rows = []
    for name, cost in found:
        row = {"selector": name, "tokens": tokens, "batch": batch, "layer_ms": round(layer, 2)}
        if isinstance(cost, str):
            rows.append(row | {"not_run": cost})
            continue
        shares = {keep: round(ms / layer, 4) for keep, ms in cost.items()}
        rows.append(row | {"ms": cost, "share": shares})
    return rows


def added_ms(folder: Path, name: str, tokens: int, batch: int) -> dict[str, float] | str:
    """Milliseconds by permille kept; in words how large the inputs are where that is too much."""
    made = session(folder / f"{name}_{tokens}.onnx")
    feeds = values_for(made, batch, tokens)
    if isinstance(feeds, str):
        return feeds
    shares = [one.name for one in made.get_inputs() if one.name.endswith(".permille")]
    cost = {}
    for keep in KEEPS if shares else KEEPS[:1]:
        fed = feeds | {share: np.array([keep]) for share in shares}
        cost[str(keep)] = round(median_ms(functools.partial(made.run, None, fed)), 3)
    return cost if shares else dict.fromkeys(map(str, KEEPS), cost[str(KEEPS[0])])


# --- whole models --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A published ViT."""

    width: int
    heads: int


MODELS = {"ViT-S": Shape(384, 6), "ViT-B": Shape(768, 12)}
CUT = "blocks.2"


def prepare_models(folder: Path, model: str, only: list[str]) -> None:
    """Write a dense ViT of 12 layers and 197 tokens, and selecting ones."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, path = MODELS[model], folder / f"{model}.onnx"
    if not path.is_file():
        torch.manual_seed(0)
        net = Vit(shape.width, shape.heads, 12).eval()
        pictures = {"pixel_values": torch.randn(2, 3, 224, 224)}
        onnx.save(ir.to_proto(from_torch(net, pictures, {"pixel_values": {0: "batch"}})), path)
    dense = ir.load(path)
    for name in only:
        grid = name in GRIDS
        signature = Signature(
            shape.heads, shape.width // shape.heads, shape.width, tokens=197 if grid else None
        )
        graph = trace(name, signature, OPTIONS.get(name, {}))
        given = {s: v.format(n=197) for s, v in GIVEN.get(name, {}).items()}
        chosen = Selection(CUT, graph, Budget(default=500, is_input=False), signals=given)
        made = insert_selections(dense, (chosen,))
        onnx.save(ir.to_proto(made), folder / f"{model}_{name}.onnx")


def model_flops(path: Path, feeds: dict[str, np.ndarray]) -> int:
    """FLOPs on observed shapes."""
    watched = path.with_suffix(".observed.onnx")
    graph = ir.load(path)
    onnx.save(ir.to_proto(flops.observed(graph)), watched)
    run = session(watched)
    outputs = [one.name for one in run.get_outputs()]
    shapes = flops.shapes_from(dict(zip(outputs, run.run(outputs, feeds), strict=True)))
    watched.unlink()
    return sum(flops.count(graph, shapes).values())


def model_row(folder: Path, model: str, name: str, batch: int, pairs: int) -> dict[str, Any]:
    """Time a dense and a selecting model in turns."""
    paths = folder / f"{model}.onnx", folder / f"{model}_{name}.onnx"
    rng = np.random.default_rng(0)
    runs, sizes = [], []
    for path in paths:
        made = session(path)
        feeds = {
            one.name: rng.standard_normal(
                [batch if isinstance(d, str) or d is None else d for d in one.shape],
                dtype=np.float32,
            )
            for one in made.get_inputs()
        }
        sizes.append(model_flops(path, feeds))
        runs.append(functools.partial(made.run, None, feeds))
    times: list[list[float]] = [[], []]
    for turn in range(pairs + 2):
        for which, run in enumerate(runs):
            started = time.perf_counter()
            run()
            if turn > 1:
                times[which].append((time.perf_counter() - started) * 1e3)
    dense, pruned = (float(np.median(one)) for one in times)
    ratio = sizes[0] / sizes[1]
    spread = np.percentile(np.array(times[0]) / np.array(times[1]) / ratio, [10, 90])
    return {
        "model": model,
        "selector": name,
        "batch": batch,
        "pairs": pairs,
        "dense_ms": round(dense, 2),
        "pruned_ms": round(pruned, 2),
        "flops_ratio": round(ratio, 3),
        "efficiency": round(dense / pruned / ratio, 3),
        "p10": round(float(spread[0]), 3),
        "p90": round(float(spread[1]), 3),
    }


# --- rows and bounds -----------------------------------------------------------------------------


def is_dear(name: str) -> bool:
    """Whether the published algorithm is sequential, needs the map or compares all pairs."""
    chosen = SELECTORS[name]
    return chosen.kind != "top_k" or bool(set(DEAR) & set(chosen.signals)) or name in ALL_PAIRS


def failures(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Rows that break a bound."""
    found = [
        f"{row['selector']} at batch {row['batch']} costs {share:.1%} of a layer"
        for row in results.get("cost", [])
        if row["tokens"] == COST_TOKENS and not is_dear(row["selector"]) and "share" in row
        for share in [max(row["share"].values())]
        if share > COST_BOUND
    ]
    return found + [
        f"{row['model']} with {row['selector']} at batch {row['batch']}: {row['efficiency']}"
        for row in results.get("models", [])
        if not is_dear(row["selector"]) and row["efficiency"] < EFFICIENCY_BOUNDS[row["batch"]]
    ]


def add(output: Path, kind: str, rows: Iterable[dict[str, Any]]) -> None:
    """Put rows beside those that are there, in the place of those of the same kind."""
    results = json.loads(output.read_text()) if output.is_file() else {}
    keys = ("model", "selector", "tokens", "batch")
    for row in rows:
        same = [row.get(key) for key in keys]
        others = [r for r in results.get(kind, []) if [r.get(key) for key in keys] != same]
        results[kind] = [*others, row]
        print(json.dumps(row), flush=True)
        output.write_text(json.dumps(results, indent=1) + "\n")


def main() -> int:
    """Do one step; 1 when ``check`` finds a bound broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["prepare", "cost", "models", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--batch", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--model", choices=list(MODELS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("build/selectors_cost.json"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.step == "prepare" and options.model:
        prepare_models(options.folder, options.model, options.only)
    elif options.step == "prepare":
        prepare(options.folder, options.only, options.tokens)
    elif options.step == "cost":
        for tokens in options.tokens:
            for batch in options.batch:
                add(options.output, "cost", cost_rows(options.folder, tokens, batch, options.only))
    elif options.step == "models":
        for batch in options.batch:
            rows = (
                model_row(options.folder, options.model, name, batch, options.pairs)
                for name in options.only
            )
            add(options.output, "models", rows)
    else:
        broken = failures(json.loads(options.output.read_text()))
        print("\n".join(broken) or "all bounds hold")
        return 1 if broken else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
