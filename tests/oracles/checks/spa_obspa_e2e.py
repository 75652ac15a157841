"""Two layers from scores to the pruned network, on the graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from secateur.calibration.activations import observe
from secateur.calibration.allocation import best
from secateur.calibration.compensation.obspa import sweep
from secateur.calibration.compensation.writing import write_weight
from secateur.calibration.importance.obspa import weight_scores
from secateur.calibration.statistics import Gram, Place, all_places, gather
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
mlp (float[batch, 3, {into}] x) => (float[batch, 3, {out}] y) {{
    a = MatMul(x, w0)
    b = Add(a, b0)
    c = Relu(b)
    d = MatMul(c, w2)
    y = Add(d, b2)
}}
"""
_REDUCTIONS = {"median": lambda rows: rows.min(0), "mean": lambda rows: rows.mean(0),
               "max": lambda rows: rows.max(0), "sum": lambda rows: rows.sum(0)}  # fmt: skip
"""torch's median of two is the lower one."""


def check(case) -> None:
    arrays = case.arrays
    model = _network(arrays)
    analysis = analyse(model)
    first, second = all_places(analysis)
    data = [{"x": x[None]} for x in arrays["X"]]
    sums = _hessians(analysis, data)
    for place, name in ((first, "0"), (second, "2")):
        np.testing.assert_allclose(sums[name], arrays[f"H{name}"], rtol=1e-3, atol=1e-3)
        scores = weight_scores(place.matrix(), sums[name])
        np.testing.assert_allclose(scores, arrays[f"scores{name}"], rtol=2e-3, atol=1e-4)
    gone = _chosen(arrays, first, second, sums)
    kept = np.ones(len(arrays["b0"]), dtype=bool)
    kept[gone] = False
    _second_pass(analysis, arrays, kept, data)
    (group,) = (g for g in analysis.groups if g.size == len(kept) and g.removable)
    small = remove(
        analysis.model, make_plan(analysis, {group.name: tuple(np.flatnonzero(kept).tolist())})
    )
    ((_, seen),) = observe(small, ["y"], [{"x": arrays["X"]}])
    np.testing.assert_allclose(seen["y"], arrays["y_pruned"], rtol=1e-3, atol=1e-4)
    for name, published in (("w0", "W0_final"), ("w2", "W2_final")):
        stored = small.graph.initializers[name].const_value.numpy().T
        np.testing.assert_allclose(stored, arrays[published], rtol=2e-3, atol=1e-4)


def _chosen(arrays, first: Place, second: Place, sums) -> np.ndarray:
    power = int(arrays["p"])
    rows = np.abs(weight_scores(first.matrix(), sums["0"])) ** power
    columns = np.abs(weight_scores(second.matrix(), sums["2"])) ** power
    found = _REDUCTIONS[str(arrays["reduction"])](np.stack([rows.sum(1), columns.sum(0)]))
    np.testing.assert_allclose(found, arrays["importance"], rtol=5e-3)
    n_units = len(found)
    n_pruned = int(n_units * float(arrays["sparsity"]))
    assert n_pruned == int(arrays["n_pruned"])
    gone = np.setdiff1d(np.arange(n_units), best(found, n_units - n_pruned))
    np.testing.assert_array_equal(gone, np.sort(arrays["pruned_idx"]))
    return gone


def _second_pass(analysis: Analysis, arrays, kept: np.ndarray, data) -> None:
    """Rows of the first layer vanish; its removed units then emit relu(b0), as published."""
    first, second = all_places(analysis)
    write_weight(analysis.model, [first], first.matrix() * kept[:, None])
    hessian = _hessians(analysis, data)["2"]
    np.testing.assert_allclose(hessian, arrays["H2_second_pass"], rtol=1e-3, atol=1e-3)
    swept = sweep(second.matrix(), kept, hessian)
    np.testing.assert_allclose(swept, arrays["W2_updated"], rtol=2e-3, atol=1e-4)
    write_weight(analysis.model, [second], swept)


def _hessians(analysis: Analysis, data) -> dict[str, np.ndarray]:
    places = dict(zip("02", all_places(analysis), strict=True))
    sums = {name: Gram() for name in places}
    gather(analysis.model, [(places[name], sums[name]) for name in places], data)
    return {name: total.hessian for name, total in sums.items()}


def _network(arrays) -> ir.Model:
    into, out = arrays["W0"].shape[1], arrays["W2"].shape[0]
    proto = parser.parse_model(_TEXT.format(into=into, out=out))
    for name, array in (("w0", arrays["W0"].T), ("b0", arrays["b0"]),
                        ("w2", arrays["W2"].T), ("b2", arrays["b2"])):  # fmt: skip
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)
