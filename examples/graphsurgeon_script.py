"""A GraphSurgeon script that calls three passes of Secateur between its own edits.

    python examples/graphsurgeon_script.py [OUTPUT.onnx]

The model is the digits transformer of examples/digits_vit, untrained. The script gives it a
softmax, removes a quarter of its heads, lets it drop half of the tokens after the second block,
makes the forced twin that a parity check needs, and runs what came out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime as ort
import torch

sys.path.insert(0, str(Path(__file__).parent / "digits_vit"))
from model import Config, DigitsViT

from secateur.calibration.allocation import Allocation
from secateur.calibration.planning import Ranking, plan
from secateur.export.selector_graph import Signature, trace
from secateur.export.torch_export import from_torch
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.graphsurgeon import from_graphsurgeon, on_graphsurgeon, to_graphsurgeon
from secateur.graph_passes.removal import remove
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import InsertTokenSelection, Selection

SITE = "blocks.1"
CONFIG = Config()


def digits_graph() -> gs.Graph:
    """The model as a GraphSurgeon graph; with a file it would be gs.import_onnx(onnx.load(...))."""
    torch.manual_seed(0)
    net = DigitsViT(CONFIG).eval()
    images = torch.rand(2, 1, CONFIG.side, CONFIG.side)
    return to_graphsurgeon(from_torch(net, {"images": images}, {"images": {0: "batch"}}))


def add_softmax(graph: gs.Graph) -> None:
    """An edit as GraphSurgeon scripts make them: probabilities instead of logits."""
    (logits,) = graph.outputs
    probabilities = gs.Variable("probabilities", dtype=np.float32, shape=logits.shape)
    graph.layer(op="Softmax", inputs=[logits], outputs=[probabilities], attrs={"axis": -1})
    graph.outputs = [probabilities]


def without_a_quarter_of_the_heads(model: ir.Model) -> ir.Model:
    """The heads with the smallest weights go, in each layer."""
    return remove(model, plan(model, "heads", Allocation(ratio=0.25), Ranking("l2")))


def token_selection() -> InsertTokenSelection:
    """Half of the tokens stay behind ``SITE``, those that the class token looks at most."""
    head_dim = CONFIG.width // CONFIG.heads
    heads = CONFIG.heads * 3 // 4
    selector = trace("class_row", Signature(heads=heads, head_dim=head_dim, width=CONFIG.width))
    budget = Budget(kind="permille", default=500, is_input=True)
    return InsertTokenSelection((Selection(SITE, selector, budget, expose_kept=True),))


def open_session(graph: gs.Graph) -> ort.InferenceSession:
    """ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = ir.to_proto(from_graphsurgeon(graph)).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    graph = digits_graph()
    add_softmax(graph)
    print(f"dense         {len(graph.nodes)} nodes")
    graph = on_graphsurgeon(without_a_quarter_of_the_heads, graph)
    print(f"fewer heads   {len(graph.nodes)} nodes")
    graph = on_graphsurgeon(token_selection(), graph)
    print(f"fewer tokens  {len(graph.nodes)} nodes")
    twin = on_graphsurgeon(force, graph)
    print(f"forced twin   {len(twin.nodes)} nodes, inputs {[i.name for i in twin.inputs]}")

    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    session = open_session(graph)
    for permille in (1000, 500, 250):
        inputs = {"images": images, f"{SITE}.permille": np.array([permille])}
        probabilities, kept = session.run(["probabilities", f"{SITE}.kept"], inputs)
        counts = (kept >= 0).sum(axis=1).tolist()
        print(f"keep {permille / 10:>5.1f} %: {counts} of {CONFIG.tokens} tokens")
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    if len(sys.argv) > 1:
        onnx.save(ir.to_proto(from_graphsurgeon(graph)), sys.argv[1])
        print(f"wrote {sys.argv[1]}")


if __name__ == "__main__":
    main()
