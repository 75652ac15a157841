"""How long the analysis of a graph takes by its number of nodes; shape inference apart.

Builds decoder blocks and bottleneck blocks of 1 000, 10 000 and 20 000 nodes and prints the
seconds of shape inference, of the walk over the axes and of the whole analysis with its named
groups. 1 when a walk over 10 000 nodes takes longer than the bound.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from synthetic_models import Decoder, decoder, residual_cnn

from secateur.graph_passes.axes import analyse_axes
from secateur.graph_passes.axes.programs import PROGRAMS
from secateur.graph_passes.groups import analyse_prepared
from secateur.graph_passes.prepare import prepare

NODES_PER_LAYER, NODES_PER_BLOCK = 60, 10
BOUNDED_NODES = 10_000


def ones(name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
    """Return a weight; the analysis never reads one."""
    return ir.tensor(np.ones(shape, np.float32), name=name)


def decoder_graph(nodes: int) -> ir.Model:
    return decoder(Decoder(nodes // NODES_PER_LAYER, 64, 8, 4, 8, 128, 100), ones)


def cnn_graph(nodes: int) -> ir.Model:
    return residual_cnn(nodes // NODES_PER_BLOCK, ones, width=16)


def best_seconds(work: Callable[[], object], runs: int) -> float:
    """Return the fastest run: whatever else the machine does only adds.

    Seconds are those of the processor, of which one core is used. No run finds what rules
    said in the one before, and giving memory back is in none.
    """
    seconds = []
    for _ in range(runs):
        PROGRAMS.clear()
        gc.collect()
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
        del result
    return min(seconds)


def row(kind: str, build: Callable[[int], ir.Model], nodes: int, runs: int) -> dict[str, object]:
    model = build(nodes)
    started = time.process_time()
    prepared = prepare(model)
    inference = time.process_time() - started
    count = len(prepared.graph)
    walk = best_seconds(lambda: analyse_axes(prepared), runs)
    groups = best_seconds(lambda: analyse_prepared(prepared), runs)
    return {
        "blocks": kind,
        "nodes": count,
        "shape_inference_s": round(inference, 3),
        "walk_s": round(walk, 3),
        "walk_ns_per_node": round(walk / count * 1e9),
        "analysis_s": round(groups, 3),
        "analysis_ns_per_node": round(groups / count * 1e9),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, BOUNDED_NODES, 20_000])
    parser.add_argument("--runs", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--bound", type=float, default=0.5, help="seconds for 10 000 nodes")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    rows = []
    for kind, build in (("decoder", decoder_graph), ("cnn", cnn_graph)):
        for nodes in options.nodes:
            rows.append(row(kind, build, nodes, options.runs))
            print(json.dumps(rows[-1]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    walks = [
        float(str(found["walk_s"])) * BOUNDED_NODES / int(str(found["nodes"]))
        for found in rows
        if abs(int(str(found["nodes"])) - BOUNDED_NODES) < BOUNDED_NODES / 10
    ]
    return 1 if any(seconds > options.bound for seconds in walks) else 0


if __name__ == "__main__":
    sys.exit(main())
