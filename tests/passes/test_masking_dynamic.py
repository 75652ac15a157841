"""The dense twin where a cut axis has a length that is known only at run time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tests.laws.small_models import network

from secateur.errors import PreconditionError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

_FLAT = """
flat (float[batch, 2, rows, columns] x) => (float[batch] y) {{
    wide = Conv (x, kernel)
    turned = Transpose <perm = {perm}> (wide)
    line = Reshape(turned, open)
    y = {op} (line, last)
}}
"""
_SQUARES = "ReduceSumSquare <keepdims = 0>"


def _network(perm: str, op: str, size: str = "rows, columns", opset: int = 20) -> ir.Model:
    text = _FLAT.format(perm=perm, op=op).replace("rows, columns", size)
    constants = {"open": np.array([0, -1]), "last": np.array([1])}
    return network(text, {"kernel": (4, 2, 1, 1)}, constants, opset)


def _cut(model: ir.Model) -> Plan:
    analysis = analyse(model)
    (name,) = (group.name for group in analysis.groups if group.removable)
    return make_plan(analysis, {name: (0, 3)})


def _run(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return y


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    ("perm", "size"),
    [
        ("[0, 1, 2, 3]", "rows, columns"),
        ("[0, 2, 3, 1]", "rows, columns"),
        ("[0, 2, 1, 3]", "rows, 5"),
        ("[0, 2, 1, 3]", "3, columns"),
    ],
    ids=["channels first", "channels last", "rows before", "columns behind"],
)
def test_channels_beside_positions_of_any_number_are_masked(
    perm: str, size: str, opset: int
) -> None:
    model = _network(perm, _SQUARES if opset > 17 else "ReduceSum <keepdims = 0>", size, opset)
    plan = _cut(model)
    small, twin = remove(model, plan), mask(model, plan)
    for shape in ((2, 2, 3, 5), (1, 2, *(3 if size[0] == "3" else 7, 5 if "5" in size else 1))):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(_run(small, x), _run(twin, x), rtol=1e-5, atol=1e-6)


def test_channels_between_two_unknown_lengths_have_no_twin_and_the_node_is_named() -> None:
    model = _network("[0, 2, 1, 3]", _SQUARES)
    with pytest.raises(PreconditionError, match=r"dynamic size[\s\S]*ReduceSumSquare"):
        mask(model, _cut(model))
