"""Weights fitted to what is left: against least squares in numpy, with every form of a bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network, run
from tests.parity import tiny

from secateur.calibration.activations import observe
from secateur.calibration.compensation import COMPENSATIONS, Remembered, compensate
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

KEPT = (0, 2, 3)
_MATMUL = """
mlp (float[batch, 4, 6] x) => (float[batch, 4, 3] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    y = MatMul(b, w2)
}
"""
_BIASED = _MATMUL.replace("y = MatMul(b, w2)", "c = MatMul(b, w2)\n    y = Add(c, b2)")
_GEMM = """
mlp (float[batch, 6] x) => (float[batch, 3] y) {
    a = Gemm(x, w1)
    b = Relu(a)
    y = Gemm <transB = 1> (b, w2)
}
"""
_CONV = """
cnn (float[batch, 2, 6, 5] x) => (float[batch, 3, h, w] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu(a)
    y = Conv <strides = [2, 1]> (b, w2)
}
"""
_SHARED = """
shared (float[batch, 4, 6] x) => (float[batch, 4, 3] y, float[batch, 4, 3] z) {
    a = MatMul(x, w1)
    b = Relu(a)
    c = Sigmoid(a)
    y = MatMul(b, w2)
    z = MatMul(c, w2)
}
"""
FORMS = {
    "MatMul": (_MATMUL, {"w1": (6, 5), "w2": (5, 3)}, (4, 6)),
    "MatMul and Add": (_BIASED, {"w1": (6, 5), "w2": (5, 3), "b2": (3,)}, (4, 6)),
    "Gemm": (_GEMM, {"w1": (6, 5), "w2": (3, 5)}, (6,)),
    "Conv": (_CONV, {"w1": (5, 2, 3, 3), "w2": (3, 5, 2, 3)}, (2, 6, 5)),
}


def small_case(form: str) -> tuple[ir.Model, Plan, np.ndarray]:
    text, weights, shape = FORMS[form]
    model = network(text, weights)
    analysis = analyse(model)
    axis = 0 if form == "Conv" else 1
    plan = make_plan(analysis, {group_of(analysis, "w1", axis).name: KEPT})
    x = np.random.default_rng(0).standard_normal((40, *shape)).astype(np.float32)
    return model, plan, x


def values(model: ir.Model, x: np.ndarray, name: str) -> np.ndarray:
    ((_, seen),) = observe(model, [name], [{"x": x}])
    return seen[name].astype(np.float64)


def error(dense: ir.Model, small: ir.Model, x: np.ndarray) -> float:
    return float(np.square(values(dense, x, "y") - values(small, x, "y")).sum())


@pytest.mark.parametrize("form", FORMS)
def test_the_refit_is_the_best_there_is_on_its_data(form: str) -> None:
    model, plan, x = small_case(form)
    fitted = remove(compensate(model, plan, [{"x": x}]), plan)
    best = error(model, fitted, x)
    rng = np.random.default_rng(1)
    for _ in range(3):  # no weight nearby does better, but for the damping's share
        moved = fitted.clone()
        value = moved.graph.initializers["w2"]
        array = value.const_value.numpy()
        noise = rng.standard_normal(array.shape).astype(np.float32)
        value.const_value = ir.tensor(array + 0.05 * noise, name="w2")
        assert error(model, moved, x) > best
    assert best < 0.7 * error(model, remove(model, plan), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", sorted(COMPENSATIONS))
def test_every_method_is_closer_than_none_on_every_form(form: str, method: str) -> None:
    model, plan, x = small_case(form)
    fitted = remove(compensate(model, plan, [{"x": x}], method=method), plan)
    assert error(model, fitted, x) < error(model, remove(model, plan), x)


@pytest.mark.parametrize("form", ["MatMul", "MatMul and Add", "Gemm"])
def test_the_bias_of_flap_is_the_mean_of_what_went(form: str) -> None:
    model, plan, x = small_case(form)
    fitted = remove(compensate(model, plan, [{"x": x}], method="bias"), plan)
    plain = remove(model, plan)
    went = values(model, x, "b").reshape(-1, 5).mean(axis=0)[[1, 4]]
    w2 = model.graph.initializers["w2"].const_value.numpy().astype(np.float64)
    columns = w2[:, [1, 4]] if form == "Gemm" else w2[[1, 4]].T
    want = values(plain, x, "y") + columns @ went
    np.testing.assert_allclose(values(fitted, x, "y"), want, rtol=1e-3, atol=1e-4)


def test_the_closed_form_of_obspa_is_the_update_by_the_inverse_hessian() -> None:
    model, plan, x = small_case("MatMul")
    fitted = compensate(model, plan, [{"x": x}], method="obspa")
    rows = values(model, x, "b").reshape(-1, 5)
    hessian = rows.T @ rows * 2 / len(x)
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(5))
    w = model.graph.initializers["w2"].const_value.numpy().T.astype(np.float64)
    gone = [1, 4]
    want = w - w[:, gone] @ np.linalg.inv(inverse[np.ix_(gone, gone)]) @ inverse[gone]
    got = fitted.graph.initializers["w2"].const_value.numpy().T
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    assert not got[:, gone].any()


def test_a_shared_weight_is_fitted_to_all_that_read_it() -> None:
    model = network(_SHARED, {"w1": (6, 5), "w2": (5, 3)})
    analysis = analyse(model)
    plan = make_plan(analysis, {group_of(analysis, "w1", 1).name: KEPT})
    x = np.random.default_rng(0).standard_normal((40, 4, 6)).astype(np.float32)
    fitted = compensate(model, plan, [{"x": x}], method="obspa")
    assert set(fitted.graph.initializers) == {"w1", "w2"}
    rows = np.concatenate([values(model, x, name).reshape(-1, 5) for name in "bc"])
    gram = rows.T @ rows
    gram += 0.01 * np.diag(gram).mean() * np.eye(5)
    w = model.graph.initializers["w2"].const_value.numpy().T.astype(np.float64)
    kept = list(KEPT)
    want = np.linalg.solve(gram[np.ix_(kept, kept)], (gram @ w.T)[kept])
    got = fitted.graph.initializers["w2"].const_value.numpy()[kept]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_another_reader_of_the_weight_keeps_the_old_one() -> None:
    text = _MATMUL.replace("(float[batch, 4, 3] y)", "(float[batch, 4, 3] y, float[5, 3] z)")
    text = text.replace("y = MatMul(b, w2)", "y = MatMul(b, w2)\n    z = MatMul(eye, w2)")
    model = network(text, {"w1": (6, 5), "w2": (5, 3)}, {"eye": np.eye(5, dtype=np.float32)})
    analysis = analyse(model)
    plan = make_plan(analysis, {group_of(analysis, "w1", 1).name: KEPT})
    x = np.random.default_rng(0).standard_normal((40, 4, 6)).astype(np.float32)
    fitted = compensate(model, plan, [{"x": x}])
    w2 = model.graph.initializers["w2"].const_value.numpy()
    np.testing.assert_array_equal(values(fitted, x, "z"), w2)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(tiny.exported())


@pytest.mark.parametrize("propagate", [False, True])
def test_a_transformer_stays_closer_with_heads_and_channels_made_up_for(
    analysis: Analysis, propagate: bool
) -> None:
    keep = {group.name: (0, 1, 3) for group in analysis.by_role("heads")}
    keep |= {group.name: tuple(range(0, 24, 2)) for group in analysis.by_role("ffn")}
    plan = make_plan(analysis, keep)
    model = tiny.exported()
    rng = np.random.default_rng(3)
    data = [
        {"input_ids": rng.integers(0, 40, (16, 12)), "attention_mask": np.ones((16, 12), np.int64)}
        for _ in range(4)
    ]

    def distance(dense: ir.Model) -> float:
        ((_, want),) = observe(model, ["pooled"], data[:1])
        ((_, got),) = observe(remove(dense, plan), ["pooled"], data[:1])
        return float(np.square(want["pooled"] - got["pooled"]).sum())

    fitted = compensate(model, plan, data, propagate=propagate)
    assert distance(fitted) < 0.5 * distance(model)


def test_the_model_itself_stays_as_it_is() -> None:
    model, plan, x = small_case("Conv")
    before = run(model)
    compensate(model, plan, [{"x": x}])
    np.testing.assert_array_equal(run(model)[0], before[0])


def test_an_unknown_method_is_refused(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match="unknown compensation"):
        compensate(analysis.model, Plan({}), [], method="least_square")


def test_a_removal_under_a_norm_is_refused() -> None:
    with pytest.raises(BadInputError, match="under a norm"):
        compensate(tiny.exported(), Plan({}, allow_inexact=True), [tiny.BATCH])


def test_sums_of_one_pass_serve_every_plan_and_method(analysis: Analysis) -> None:
    read = [0]

    class Counted(list):
        def __iter__(self):
            read[0] += 1
            return super().__iter__()

    known = Remembered(Counted([tiny.BATCH]))
    (name,) = {group.name for group in analysis.by_role("ffn")[:1]}
    for kept in (tuple(range(12)), tuple(range(6, 20))):
        plan = make_plan(analysis, {name: kept})
        for method in ("obspa", "least_squares"):
            again = compensate(analysis.model, plan, known, method=method)
            alone = compensate(analysis.model, plan, [tiny.BATCH], method=method)
            for key, value in alone.graph.initializers.items():
                same = again.graph.initializers[key].const_value.numpy()
                np.testing.assert_allclose(same, value.const_value.numpy(), rtol=1e-6)
    assert read[0] == 1  # both methods take the same sums
