"""FLAP on a graph: statistics, metrics, structures, and the bias that makes up for what went."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.oracles.readers import Reader, readers

from secateur.calibration.activations import observe
from secateur.calibration.compensation import compensate
from secateur.calibration.flap_structures import Structured, shared_out
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.flap import feature_metric
from secateur.calibration.statistics import all_places, gather, places_of
from secateur.calibration.statistics.moments import Fluctuation
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

_HEAD_COST = 170.0
"""512 / 3 neurons as the published code's integer tensor holds it, whatever the width is."""
_CRITERIA = {"WIFV": "flap", "IFV": "flap_ifv", "WIFN": "flap_wifn"}
_PATHS = {"o_proj": "self_attn.o_proj", "down_proj": "mlp.down_proj"}


def check(case) -> None:
    arrays = case.arrays
    analysis, groups = readers(_layers(case))
    groups = tuple(
        replace(group, layer=name.split("_")[0])
        for group, name in zip(groups, _layers(case), strict=True)
    )
    names = dict(zip(_layers(case), groups, strict=True))
    data = [
        {f"{name}_in": arrays[f"{name}_in"][i : i + 1] for name in names}
        for i in range(int(arrays["nsamples"]))
    ]
    _check_statistics(case, analysis, names, data)
    scores = rank(_CRITERIA[case.text("metric")], Context(analysis, groups, data))
    heads = int(arrays["remove_heads"])
    wanted = Structured(case.text("structure"), float(arrays["pruning_ratio"]), heads)
    costs = {g.name: _HEAD_COST if g.role == "heads" else 1.0 for g in groups}
    if wanted.by_hand:  # there the published code counts by the width of the toy's heads
        costs = {g.name: (4 * 8 if g.role == "heads" else 3) * 32.0 for g in groups}
    keep = shared_out(scores, groups, wanted, costs)
    for name, group in names.items():
        layer, _, kind = name.partition("_")
        want = arrays[f"{layer}_{'head' if kind == 'o_proj' else 'mlp'}_keep"]
        assert keep[group.name] == tuple(np.flatnonzero(want)), name
    _check_bias(case, analysis, keep, data)


def _layers(case) -> dict[str, Reader]:
    """The output projections of every layer, heads before neurons."""
    n_layers = sum(name.endswith("_head_keep") for name in case.arrays)
    width = int(case.arrays["head_dim"])
    return {
        f"L{i}_{kind}": Reader(
            case.arrays[f"dense__model.layers.{i}.{path}.weight"],
            width if kind == "o_proj" else 1,
            "heads" if kind == "o_proj" else "ffn",
        )
        for kind, path in _PATHS.items()
        for i in range(n_layers)
    }


def _check_statistics(case, analysis, names, data) -> None:
    known = all_places(analysis)
    places = {name: places_of(group, known)[0] for name, group in names.items()}
    sums = {name: Fluctuation() for name in names}
    gather(analysis.model, [(places[name], sums[name]) for name in names], data)
    for name, found in sums.items():
        metric = feature_metric(found, places[name].matrix(), case.text("metric"))
        np.testing.assert_allclose(found.mean, case.arrays[f"{name}_mean"], atol=1e-5)
        np.testing.assert_allclose(metric, case.arrays[f"{name}_metric"], rtol=1e-4, atol=1e-6)


def _check_bias(case, analysis, keep, data) -> None:
    """The smaller graph is the published smaller weight with its bias, on what it reads."""
    plan = make_plan(analysis, keep)
    fitted = compensate(analysis.model, plan, data, method="bias")
    outputs = {f"{name}_out": name for name in _layers(case)}
    for batch, seen in observe(remove(fitted, plan), list(outputs), data):
        for output, name in outputs.items():
            layer, _, kind = name.partition("_")
            path = f"pruned__model.layers.{layer[1:]}.{_PATHS[kind]}"
            weight, bias = (case.arrays[f"{path}.{x}"] for x in ("weight", "bias"))
            want_keep = case.arrays[f"{layer}_{'head' if kind == 'o_proj' else 'mlp'}_keep"]
            width = batch[f"{name}_in"].shape[-1] // len(want_keep)
            read = batch[f"{name}_in"][..., np.repeat(want_keep, width)]
            np.testing.assert_allclose(seen[output], read @ weight.T + bias, rtol=1e-3, atol=2e-5)
