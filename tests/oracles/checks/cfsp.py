"""CFSP on a graph: layer importance, shares per layer, activity, kept channels.

The graph has the published FFN with the norm before it; what attention adds is not in the vectors,
so it is handed in: what is left of a layer's step when that of its FFN is taken off.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import network

from secateur.calibration.activations import observe
from secateur.calibration.block_shares import block_importances, layer_ends
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.cfsp import channel_scores, keep_channels, keep_ratios
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

_LAYER = """
    p{i} = MatMul(h{i}, o{i})
    a{i} = Add(p{i}, attended{i})
    s{i} = Add(h{i}, a{i})
    squares{i} = Mul(s{i}, s{i})
    square{i} = ReduceMean(squares{i}, last)
    large{i} = Add(square{i}, tiny)
    length{i} = Sqrt(large{i})
    n{i} = Div(s{i}, length{i})
    g{i} = MatMul(n{i}, gate{i})
    u{i} = MatMul(n{i}, up{i})
    c{i} = Sigmoid(g{i})
    d{i} = Mul(g{i}, c{i})
    e{i} = Mul(d{i}, u{i})
    m{i} = MatMul(e{i}, down{i})
    h{next} = Add(s{i}, m{i})
"""
_MODULES = {
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def check(case) -> None:
    arrays = case.arrays
    n_layers = len(arrays["keep_ratio_per_layer"])
    model, data = _model(case, n_layers), _data(case, n_layers)
    _check_stream(case, model, data, n_layers)
    analysis = analyse(model)
    groups = tuple(_group(analysis, i) for i in range(n_layers))
    ends = [layer_ends(analysis, group) for group in groups]
    assert ends == [(f"h{i}", f"h{i + 1}") for i in range(n_layers)]
    sums, n_tokens = block_importances(analysis, groups, data, case.text("global_metric"))
    importance = np.array(list(sums.values()))
    assert n_tokens == arrays["L0_hidden_in"][..., 0].size
    np.testing.assert_allclose(importance, arrays["layer_importance_sum"], rtol=1e-4)
    keep = keep_ratios(importance, float(arrays["pruning_ratio"]), float(arrays["a"]))
    np.testing.assert_allclose(keep, arrays["keep_ratio_per_layer"], rtol=1e-4)
    active = list(rank("cfsp", Context(analysis, groups, data)).values())
    kept = {}
    for i, group in enumerate(groups):
        np.testing.assert_allclose(active[i] ** 2, arrays[f"L{i}_scaler_row"], rtol=1e-4)
        stays = _kept(case, i, active[i], keep[i])
        np.testing.assert_array_equal(stays, arrays[f"L{i}_keep"])
        kept[group.name] = tuple(np.flatnonzero(stays).tolist())
    small = remove(model, make_plan(analysis, kept))
    for i in range(n_layers):
        for name in ("gate", "up", "down"):
            want = arrays[f"pruned__model.layers.{i}.{_MODULES[name]}.weight"]
            got = small.graph.initializers[f"{name}{i}"].const_value.numpy()
            np.testing.assert_array_equal(got.T, want)


def _kept(case, layer: int, active: np.ndarray, keep: float) -> np.ndarray:
    """Mask of the channels that stay."""
    arrays, path = case.arrays, f"dense__model.layers.{layer}.mlp"
    weights = [arrays[f"{path}.down_proj.weight"]]
    if case.text("local_metric").startswith("three"):
        weights += [arrays[f"{path}.{name}_proj.weight"].T for name in ("up", "gate")]
    scores = channel_scores(weights, active, float(arrays["b"]), float(arrays["c"]))
    return keep_channels(scores, keep, 128 if bool(arrays["round_to_128"]) else 1)


def _model(case, n_layers: int) -> ir.Model:
    """All layers, each with its input of what attention adds."""
    width = case.arrays["L0_hidden_in"].shape[-1]
    names = ["h0", *(f"attended{i}" for i in range(n_layers))]
    inputs = ", ".join(f"float[batch, tokens, {width}] {name}" for name in names)
    constants: dict[str, object] = {"last": np.array([-1]), "tiny": np.float32(1e-6)}
    records = {}
    for i in range(n_layers):
        constants[f"o{i}"] = np.zeros((width, width), np.float32)
        for name, path in _MODULES.items():
            parameter = f"model.layers.{i}.{path}.weight"
            records[f"{name}{i}"] = {"name": parameter, "transpose": [1, 0]}
            if name != "o":
                weight = case.arrays[f"dense__{parameter}"].T
                constants[f"{name}{i}"] = np.ascontiguousarray(weight)
    layers = "".join(_LAYER.format(i=i, next=i + 1) for i in range(n_layers))
    output = f"float[batch, tokens, {width}] h{n_layers}"
    model: ir.Model = network(f"llama ({inputs}) => ({output}) {{{layers}}}", {}, constants)
    model.metadata_props["secateur.parameters"] = json.dumps(records)
    for node in model.graph:
        read = next((v.name for v in node.inputs if v is not None and v.name in records), None)
        if read is not None:
            path = records[read]["name"].removesuffix(".weight")
            node.name = f"/{path.replace('.', '/').replace('layers/', 'layers.')}/MatMul"
    return model


def _data(case, n_layers: int) -> list[dict[str, np.ndarray]]:
    """A sample at a time."""
    arrays = case.arrays
    whole = {"h0": arrays["L0_hidden_in"]}
    for i in range(n_layers):
        down = arrays[f"dense__model.layers.{i}.mlp.down_proj.weight"]
        middle = arrays[f"L{i}_hidden_out"] - arrays[f"L{i}_down_proj_in"] @ down.T
        whole[f"attended{i}"] = middle - arrays[f"L{i}_hidden_in"]
    return [
        {name: array[i : i + 1] for name, array in whole.items()}
        for i in range(int(arrays["nsamples"]))
    ]


def _check_stream(case, model: ir.Model, data: list[dict], n_layers: int) -> None:
    """The graph computes the hidden states and the FFN's inner ones that the vectors hold."""
    wanted = {f"h{i + 1}": f"L{i}_hidden_out" for i in range(n_layers)}
    wanted |= {f"e{i}": f"L{i}_down_proj_in" for i in range(n_layers)}
    for sample, (_, seen) in enumerate(observe(model, list(wanted), data)):
        for name, want in wanted.items():
            np.testing.assert_allclose(
                seen[name][0], case.arrays[want][sample], rtol=1e-3, atol=1e-4
            )


def _group(analysis: Analysis, layer: int) -> Group:
    """The channels of a layer's FFN; named here, for no attention tells a graph's FFN apart."""
    both = {f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("up", "down")}
    inner = len(analysis.model.graph.initializers[f"down{layer}"].const_value.numpy())
    group = next(
        g for g in analysis.groups if g.size == inner and both <= {u.parameter for u in g.weights}
    )
    return replace(group, role="ffn", layer=f"model.layers.{layer}")
