"""Criteria that walk the graph: SynFlow's flow through weights, relevance back from the answer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.laws.small_models import group_of, network
from tests.parity import tiny
from torch import nn

from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.relevance import convolution, filter_scores, linear
from secateur.calibration.importance.relevance_walk import relevance_at
from secateur.errors import BadInputError, PreconditionError
from secateur.export.torch_export import from_torch
from secateur.graph_passes.groups import analyse

_CNN = """
cnn (float[batch, 3, 6, 6] x) => (float[batch, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    s = Relu(c)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""
_WEIGHTS = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (6, 4, 3, 3), "w3": (5, 6), "b3": (5,)}
X = np.random.default_rng(0).random((7, 3, 6, 6)).astype(np.float32)


class Residual(nn.Module):
    """Batch norms of both signs, a shortcut and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(x + self.last(self.inner(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def cnn() -> ir.Model:
    return network(_CNN, _WEIGHTS, {})


def residual(*, folded: bool) -> ir.Model:
    net = tiny.seeded(Residual)
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, -1.0]))
        net.last.weight.copy_(torch.tensor([-1.0, 0.5, 1.5, -2.0]))
    images = torch.from_numpy(X[:2])
    return from_torch(net, {"x": images}, {"x": {0: "batch"}}, for_training=not folded)


def scores(model: ir.Model, importance: str, weight: str, **options: object) -> np.ndarray:
    analysis = analyse(model)
    groups = (group_of(analysis, weight, 0),)
    return next(iter(rank(importance, Context(analysis, groups, **options)).values()))


def weights_of(model: ir.Model) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(model.graph.initializers[name].const_value.numpy().copy())
        for name in _WEIGHTS
    }


def test_synflow_is_the_flow_through_absolute_weights(cnn: ir.Model) -> None:
    w = {name: x.double().abs().requires_grad_() for name, x in weights_of(cnn).items()}
    x = torch.ones(1, 3, 6, 6, dtype=torch.float64)
    x = torch.relu(nn.functional.conv2d(x, w["w1"], w["b1"], padding=1))
    x = torch.relu(nn.functional.conv2d(x, w["w2"], padding=1)).mean((2, 3))
    (x @ w["w3"].T + w["b3"]).sum().backward()
    want = (w["w1"] * w["w1"].grad).sum((1, 2, 3)) + w["b1"] * w["b1"].grad
    want = want + (w["w2"] * w["w2"].grad).sum((0, 2, 3))
    np.testing.assert_allclose(scores(cnn, "synflow", "w1"), want.detach().numpy(), rtol=1e-6)


def test_synflow_takes_the_numbers_of_a_batch_norm_absolute_too() -> None:
    model = residual(folded=False)
    net = tiny.seeded(Residual).double()
    state = {name: x.double() for name, x in _state_of(model).items()}
    net.load_state_dict({name: x.abs() for name, x in state.items()}, strict=False)
    net.eval()(torch.ones(1, 3, 6, 6, dtype=torch.float64)).sum().backward()
    names = {"inner.weight": 0, "inner.bias": 0, "last.weight": 0, "last.bias": 0, "stem.weight": 0}
    names |= {"stem.bias": 0, "norm.weight": 0, "norm.bias": 0}
    flows = {name: net.get_parameter(name) * net.get_parameter(name).grad for name in names}
    want = sum(flow.flatten(1).sum(1) if flow.ndim > 1 else flow for flow in flows.values())
    want = want + flows["inner.weight"].sum((0, 2, 3))
    want = want + (net.head.weight * net.head.weight.grad).sum(0)
    analysis = analyse(model)
    (group,) = (g for g in analysis.by_role("residual") or analysis.groups if g.size == 4)
    (got,) = rank("synflow", Context(analysis, (group,))).values()
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-6)


def _state_of(model: ir.Model) -> dict[str, torch.Tensor]:
    from secateur.export.to_torch import to_torch

    return dict(to_torch(model).state_dict())


@pytest.mark.parametrize("importance", ["synflow", "relevance"])
def test_attention_is_refused_with_its_node(importance: str) -> None:
    analysis = analyse(tiny.exported())
    with pytest.raises(PreconditionError, match=r"no path of weights|no rule for"):
        rank(importance, Context(analysis, analysis.by_role("ffn"), [tiny.BATCH]))


def test_synflow_on_whole_numbers_is_refused() -> None:
    text = """
    bag (int64[batch, 4] ids) => (float[batch, 4, 3] y) {
        a = Gather(table, ids)
        h = MatMul(a, w1)
        y = MatMul(h, w2)
    }
    """
    model = network(text, {"table": (9, 5), "w1": (5, 6), "w2": (6, 3)}, {})
    analysis = analyse(model)
    with pytest.raises(PreconditionError, match="whole numbers"):
        rank("synflow", Context(analysis, (group_of(analysis, "w1", 1),)))


def test_relevance_follows_the_published_rules(cnn: ir.Model) -> None:
    w = {name: x.double().numpy() for name, x in weights_of(cnn).items()}
    labels = np.arange(7) % 5
    first = torch.from_numpy(X).double()
    a = torch.relu(
        nn.functional.conv2d(first, *(torch.from_numpy(w[n]) for n in ("w1", "b1")), padding=1)
    ).numpy()
    b = torch.relu(
        nn.functional.conv2d(torch.from_numpy(a), torch.from_numpy(w["w2"]), padding=1)
    ).numpy()
    pooled = b.mean((2, 3))
    back = linear(pooled, w["w3"], np.eye(5)[labels])
    spread = b / 36 * (back / (pooled + 1e-9))[:, :, None, None]
    want = filter_scores(convolution(a, w["w2"], spread))
    got = scores(
        cnn, "relevance", "w1", data=[{"x": X[:3]}, {"x": X[3:]}], arrays={"labels": labels}
    )
    np.testing.assert_allclose(got, want, rtol=1e-3)
    # z-plus relevance is never negative: sizes of every sample add up to the same.
    again = scores(cnn, "relevance_samples", "w1", data=[{"x": X}], arrays={"labels": labels})
    np.testing.assert_allclose(again, want, rtol=1e-3)


def test_without_labels_the_models_own_answers_are_explained(cnn: ir.Model) -> None:
    from secateur.calibration.activations import observe

    ((_, seen),) = observe(cnn, ["y"], [{"x": X}])
    labels = seen["y"].argmax(1)
    given = scores(cnn, "relevance", "w1", data=[{"x": X}], arrays={"labels": labels})
    np.testing.assert_allclose(scores(cnn, "relevance", "w1", data=[{"x": X}]), given)


def test_relevance_is_neither_made_nor_lost_and_does_not_see_a_folded_norm() -> None:
    found = []
    for folded in (True, False):
        model = residual(folded=folded)
        (stem,) = (
            str(node.outputs[0].name)
            for node in model.graph
            if node.op_type == "Conv" and node.inputs[0].name == "x"
        )
        found.append(relevance_at(model, [(stem, 1), ("x", 1)], [{"x": X}], None))
    for folded, kept in zip(found[0].values(), found[1].values(), strict=True):
        np.testing.assert_allclose(kept, folded, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), "labels"),
        (np.full(7, 5), "below 5"),
        (np.zeros(7), "whole number"),
        (np.zeros(9, np.int64), "as many labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(cnn: ir.Model, labels, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        scores(cnn, "relevance", "w1", data=[{"x": X}], arrays={"labels": labels})


def test_relevance_without_data_is_refused(cnn: ir.Model) -> None:
    with pytest.raises(BadInputError, match="needs data"):
        scores(cnn, "relevance", "w1")


def test_a_gate_has_no_rule() -> None:
    text = """
    gated (float[batch, 6] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        b = MatMul(x, w2)
        c = Mul(a, b)
        y = MatMul(c, w3)
    }
    """
    model = network(text, {"w1": (6, 4), "w2": (6, 4), "w3": (4, 3)}, {})
    analysis = analyse(model)
    context = Context(analysis, (group_of(analysis, "w1", 1),), [{"x": X[:, 0, 0]}])
    with pytest.raises(PreconditionError, match="no rule for Mul"):
        rank("relevance", context)
