"""The page of operators says what the rules say, and leaves out none that networks use."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import onnx.defs
import onnx_ir as ir
import pytest

from secateur.graph_passes.axes import AXIS_RULES
from secateur.graph_passes.groups import analyse

ROOT = Path(__file__).parents[2]
NO_NETWORK = {
    "Constant", "If", "Loop", "Scan",  # the walk itself knows these
    "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss",  # training
    "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit",
    "TfIdfVectorizer",  # files and text
}  # fmt: skip
VALUES_OF_OTHER_KINDS = ("Sequence", "Optional")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("operators", ROOT / "docs/make_operators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(maker: ModuleType) -> None:
    written = (ROOT / "docs/reference/operators.md").read_text(encoding="utf-8")
    assert written == maker.page(), "run: python docs/make_operators.py"


def test_every_operator_of_opset_11_to_24_that_computes_on_tensors_has_a_rule() -> None:
    known = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if not schema.domain and schema.since_version <= 24
    }
    left = known - set(AXIS_RULES) - NO_NETWORK
    assert [op for op in sorted(left) if not any(k in op for k in VALUES_OF_OTHER_KINDS)] == []


@pytest.mark.parametrize("op", ["custom.Mystery", "NonZero", "Det"])
def test_what_cannot_be_cut_through_says_so(op: str) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20, "custom" : 1]>
    net (float[8, 8] x) => (float[n, m] y) <float[8, 8] w> {{
        a = MatMul (x, w)
        y = {op} (a)
    }}
    """
    model = ir.from_onnx_text(text)
    model.graph.register_initializer(_weight(model))
    reasons = {reason.text for group in analyse(model).groups for reason in group.frozen}
    named = op.replace(".", ":")
    wanted = {"NonZero": "its positions come out as numbers", "Det": "rows and columns make one"}
    assert any(wanted.get(op, f"no axis rule for the op {named}") in text for text in reasons)


def _weight(model: ir.Model) -> ir.Value:
    import numpy as np

    (matmul,) = [node for node in model.graph if node.op_type == "MatMul"]
    value = matmul.inputs[1]
    assert value is not None
    value.const_value = ir.tensor(np.ones((8, 8), np.float32), name="w")
    return value
