"""Bisecting names the module in which an error was planted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.parity import tiny
from torch import nn

from secateur.errors import BadInputError
from secateur.graph_passes.names import parameter_names
from secateur.workflow.bisect import BisectOptions, bisect
from secateur.workflow.module_outputs import boundaries

BATCH = tiny.BATCH


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return tiny.bert()


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny.exported()


def planted(model: ir.Model, parameter: str, number: float) -> ir.Model:
    """A copy in which one entry of a weight is another."""
    copy = model.clone()
    name = next(n for n, p in parameter_names(copy).items() if p == parameter)
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.flat[0] = number
    value.const_value = ir.tensor(array, name=name)
    return copy


def test_two_equal_models_have_no_bad_layer(net: nn.Module, model: ir.Model) -> None:
    report = bisect(net, model, BATCH, BisectOptions())
    assert report.first_bad is None
    assert len(report.checks) > 10
    assert report.to_json()["first_bad"] is None


@pytest.mark.parametrize(("layer", "part"), [(0, "attention.v"), (1, "up"), (2, "norm2")])
def test_a_planted_error_is_found_in_its_module(
    net: nn.Module, model: ir.Model, layer: int, part: str
) -> None:
    bad = planted(model, f"layers.{layer}.{part}.weight", 7.0)
    report = bisect(net, bad, BATCH, BisectOptions())
    assert report.first_bad is not None
    assert report.first_bad.module == f"layers.{layer}.{part}"
    assert f"layers.{layer}.{part}" in report.advice


def test_two_graphs_are_compared_value_by_value(model: ir.Model) -> None:
    bad = planted(model, "layers.1.down.weight", 7.0)
    report = bisect(model, bad, BATCH, BisectOptions())
    assert report.first_bad is not None
    assert report.first_bad.module == "layers.1.down"
    assert report.first_bad.operator in {"MatMul", "Gemm"}
    before = report.checks[: report.checks.index(report.first_bad)]
    assert all(check.relative_error == 0.0 for check in before)


def test_nan_gets_advice_about_overflow(net: nn.Module, model: ir.Model) -> None:
    report = bisect(net, planted(model, "layers.1.up.weight", np.inf), BATCH, BisectOptions())
    assert report.first_bad is not None
    assert report.first_bad.module == "layers.1.up"
    assert "overflow" in report.advice


def test_the_bound_decides(net: nn.Module, model: ir.Model) -> None:
    assert bisect(net, model, BATCH, BisectOptions(bound=1e-12)).first_bad is not None


def test_values_end_the_innermost_module(model: ir.Model) -> None:
    paths = list(boundaries(model).values())
    assert "layers.0.attention.o" in paths
    assert "layers.0.norm2" in paths
    assert paths.index("layers.0.attention.q") < paths.index("layers.0.norm2")


def test_models_without_a_common_value_are_refused(model: ir.Model) -> None:
    other = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n] a) => (float[n] y) { y = Neg(a) }'
    )
    with pytest.raises(BadInputError, match="in common"):
        bisect(model, other, BATCH, BisectOptions())
