"""What a selecting graph must equal: the dense graph with dropped keys masked.

Shares no code with the passes: plain ONNX protos, NumPy and ONNX Runtime without
optimisation. Every softmax behind a site gets -inf at dropped keys, hidden states keep
their full length, and only kept rows (or what is pooled from them) are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

Arrays = dict[str, np.ndarray]


def session(model: onnx.ModelProto, *, optimised: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    return ort.InferenceSession(model.SerializeToString(), options)


def run(model: onnx.ModelProto, feeds: Arrays, *, optimised: bool = False) -> Arrays:
    made = session(model, optimised=optimised)
    names = [output.name for output in made.get_outputs()]
    return dict(zip(names, made.run(names, feeds), strict=True))


@dataclass
class Dense:
    """A dense graph whose softmaxes behind chosen layers take a mask of dropped keys."""

    model: onnx.ModelProto
    sites: list[int]
    probabilities: list[str]

    def run(self, feeds: Arrays, dropped: list[np.ndarray], folded: int = 0) -> Arrays:
        """``dropped[i]`` (B, N) bool: tokens that are gone behind site i.

        ``folded`` heads stand in one axis with the batch at the softmaxes.
        """
        extra = {f"drop{i}": np.where(gone, -np.inf, 0.0).astype(np.float32)[:, None, None, :]
                 for i, gone in enumerate(dropped)}  # fmt: skip
        if not folded:
            return run(self.model, feeds | extra)
        extra = {name: np.repeat(array[:, 0], folded, axis=0) for name, array in extra.items()}
        seen = run(self.model, feeds | extra)
        for name in self.probabilities:
            seen[name] = seen[name].reshape(-1, folded, *seen[name].shape[1:])
        return seen


def dense(
    model: onnx.ModelProto,
    sites: list[int],
    *,
    watch: tuple[str, ...] = (),
    pool: str = "",
    mixed: dict[str, int] | None = None,
) -> Dense:
    """Make the masked twin.

    Args:
        model: Dense graph; its k-th Softmax is layer k.
        sites: Layers behind which tokens are dropped, ascending.
        watch: Values to return besides the outputs.
        pool: Name of an int64 (B, N) mask input that pooling reads; the softmaxes read a
            copy of it, ``attend``, so that pooling can leave dropped tokens out.
        mixed: Layer by name of its weights, where heads are mixed behind its softmax: a bias
            of theirs gives dropped keys a weight, which is made 0 again.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    _zero_dropped(graph, sites, mixed or {})
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node in softmaxes:
            layer = next(i for i, other in enumerate(softmaxes) if other is node)
            behind = [i for i, site in enumerate(sites) if layer > site]
            if behind:
                masked = f"{node.input[0]}/masked"
                nodes.append(
                    onnx.helper.make_node("Add", [node.input[0], f"drop{behind[-1]}"], [masked])
                )
                node.input[0] = masked
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for i in range(len(sites)):
        info = onnx.helper.make_tensor_value_info(f"drop{i}", onnx.TensorProto.FLOAT, None)
        graph.input.append(info)
    probabilities = [node.output[0] for node in softmaxes]
    for name in (*probabilities, *watch):
        graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    if pool:
        _split_mask(graph, pool)
    return Dense(twin, sites, probabilities)


def _zero_dropped(graph: onnx.GraphProto, sites: list[int], mixed: dict[str, int]) -> None:
    """weights -> Where(drop < 0, 0, weights), for their readers and under their name."""
    for name, layer in mixed.items():
        behind = [i for i, site in enumerate(sites) if layer > site]
        if not behind:
            continue
        at, maker = next((i, n) for i, n in enumerate(graph.node) if name in n.output)
        maker.output[0] = f"{name}/whole"
        inputs = [f"drop{behind[-1]}", f"{name}/zero"]
        zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), inputs[1])
        graph.initializer.append(zero)
        made = onnx.helper.make_node
        gone = made("Less", inputs, [f"{name}/gone"])
        kept = made("Where", [f"{name}/gone", inputs[1], f"{name}/whole"], [name])
        graph.node.insert(at + 1, gone)
        graph.node.insert(at + 2, kept)


def _split_mask(graph: onnx.GraphProto, pool: str) -> None:
    """Let everything but the nodes behind the last softmax read ``attend``."""
    last = max(i for i, node in enumerate(graph.node) if node.op_type == "Softmax")
    for node in list(graph.node)[:last]:
        for k, name in enumerate(node.input):
            if name == pool:
                node.input[k] = "attend"
    info = onnx.helper.make_tensor_value_info("attend", onnx.TensorProto.INT64, ["b", "n"])
    graph.input.append(info)


def choose(
    score: np.ndarray,
    alive: np.ndarray,
    *,
    permille: int = 1000,
    count: int = 0,
    protected: int = 1,
) -> np.ndarray:
    """Return the (B, N) bool of what a selection keeps of the tokens that are alive."""
    kept = np.zeros_like(alive)
    for b in range(len(score)):
        tokens = np.flatnonzero(alive[b])
        n = count or (len(tokens) * permille + 999) // 1000
        n = min(max(n, protected), len(tokens))
        ranked = sorted(tokens, key=lambda j: (j not in tokens[:protected], -score[b, j], j))
        kept[b, ranked[:n]] = True
    return kept


def class_row(probabilities: np.ndarray) -> np.ndarray:
    """(B, H, N, N) -> (B, N)."""
    return probabilities[:, :, 0].mean(axis=1)


def positions(kept: np.ndarray) -> np.ndarray:
    """(B, N) bool -> (B, K) positions, ascending, -1 behind the last."""
    width = max(int(kept.sum(axis=1).max()), 1)
    found = np.full((len(kept), width), -1, dtype=np.int64)
    for b, row in enumerate(kept):
        which = np.flatnonzero(row)
        found[b, : len(which)] = which
    return found


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())
