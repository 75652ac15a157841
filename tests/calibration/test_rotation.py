"""A residual stream that is turned: the model gives the same, and rounding loses less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.laws.small_models import network
from tests.parity import tiny
from torch import Tensor, nn

from secateur.calibration.activations import observe
from secateur.calibration.quantisation.graph import quantise
from secateur.calibration.quantisation.rotation import orthogonal, rotate
from secateur.calibration.quantisation.scheme import Scheme
from secateur.errors import PreconditionError
from secateur.export.torch_export import from_torch

WORDS, LOUD = 50, 3
_BLOCK = """
    a = MatMul(x, w0)
    p = Pow(a, two)
    m = ReduceMean <keepdims = 1> (p, last)
    r = Sqrt(m)
    k = Div(a, r)
    b = MatMul(k, w1)
    c = Relu(b)
    d = MatMul(c, w2)
    s = Add(a, d)
"""
_WEIGHTS = {"w0": (8, 16), "w1": (16, 12), "w2": (12, 16)}
_CONSTANTS = {"two": np.float32(2), "last": np.array([-1])}
IDS = np.random.default_rng(0).integers(0, WORDS, (6, 9))


@dataclass(frozen=True)
class Shape:
    width: int = 32
    tied: bool = False
    opset: int = 20


class Layer(nn.Module):
    """Pre-norm attention and a gated network, with biases into the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 40), nn.Linear(width, 40)
        self.down = nn.Linear(40, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=earlier)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Causal(nn.Module):
    """Embedding and positions, two layers, a final norm and a head; one loud channel."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, shape.width), nn.Embedding(16, shape.width)
        self.layers = nn.ModuleList(Layer(shape.width) for _ in range(2))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.head = nn.Linear(shape.width, WORDS, bias=False)
        for norm in (self.norm, *(n for layer in self.layers for n in (layer.norm1, layer.norm2))):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
        if shape.tied:
            self.head.weight = self.words.weight
        with torch.no_grad():
            self.words.weight[:, LOUD] *= 60

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def exported(shape: Shape) -> ir.Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Causal(shape).eval()
    axes = {"ids": {0: "batch", 1: "tokens"}}
    return from_torch(net, {"ids": torch.from_numpy(IDS[:2])}, axes, opset=shape.opset)


def answers(model: ir.Model, batch: dict[str, np.ndarray] | None = None) -> np.ndarray:
    name = str(model.graph.outputs[0].name)
    ((_, seen),) = observe(model, [name], [batch or {"ids": IDS}])
    return seen[name]


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("shape", [Shape(), Shape(width=48), Shape(tied=True), Shape(opset=23)])
def test_a_rotated_model_gives_the_same(shape: Shape) -> None:
    model = exported(shape)
    want = answers(model)
    turned = rotate(model)
    assert error(answers(turned), want) < 1e-4
    np.testing.assert_array_equal(answers(model), want)  # the model itself stays
    assert largest(turned) < 0.6 * largest(model)


def largest(model: ir.Model) -> float:
    """The largest number of any table or matrix."""
    weights = [value.const_value.numpy() for value in model.graph.initializers.values()]
    return max(float(np.abs(weight).max()) for weight in weights if weight.ndim == 2)


@pytest.mark.parametrize("size", [1, 2, 12, 64, 96])
def test_the_turn_is_orthogonal(size: int) -> None:
    matrix = orthogonal(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    if size in {2, 64}:
        np.testing.assert_allclose(np.abs(matrix), size**-0.5)


@pytest.mark.parametrize("weights", ["nearest", "gptq"])
def test_rounding_loses_less_where_a_channel_stood_out(weights: str) -> None:
    model, data = exported(Shape()), [{"ids": IDS}]
    want = answers(model)
    plain, turned = (
        error(answers(quantise(model, Scheme("int8", "minmax", weights, rotate=turn), data)), want)
        for turn in (False, True)
    )
    assert turned < 0.6 * plain


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("n = LayerNormalization (s, g)", "mean of the channels"),
        ("n = Relu (s)", "single channels"),
        ("n = Mul (s, s)", "squares of channels"),
        ("n = Add (s, one)", "same for every channel"),
        ("n = Exp (s)", "single channels"),
    ],
)
def test_what_reads_the_stream_in_its_own_basis_is_named(body: str, why: str) -> None:
    text = f"""
    net (float[batch, 4, 8] x) => (float[batch, 4, 8] y) {{
        {_BLOCK}
        {body}
        y = MatMul(n, w3)
    }}
    """
    one = {"g": np.ones(16, np.float32), "one": np.float32(1.5)}
    used = {name: array for name, array in one.items() if f"{name})" in body}
    with pytest.raises(PreconditionError, match=why):
        rotate(network(text, _WEIGHTS | {"w3": (16, 8)}, _CONSTANTS | used))


def test_a_post_norm_model_is_refused() -> None:
    with pytest.raises(PreconditionError, match="mean of the channels"):
        rotate(tiny.exported())


def test_an_output_that_shows_the_stream_is_refused() -> None:
    text = f"net (float[batch, 4, 8] x) => (float[batch, 4, 16] s) {{ {_BLOCK} }}"
    with pytest.raises(PreconditionError, match="an output of the model"):
        rotate(network(text, _WEIGHTS, _CONSTANTS))


def test_a_model_without_a_stream_is_refused() -> None:
    text = """
    net (float[batch, 8] x) => (float[batch, 8] y) {
        a = MatMul(x, w0)
        b = Relu(a)
        y = MatMul(b, w1)
    }
    """
    with pytest.raises(PreconditionError, match="no residual stream"):
        rotate(network(text, {"w0": (8, 16), "w1": (16, 8)}, {}))
