"""Traced selectors: the small graphs that the passes splice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from secateur.errors import BadInputError
from secateur.export import verify
from secateur.export.selector_graph import Signature, trace
from secateur.models.selectors import SELECTORS, SIGNALS, resolve_selector

SIGNATURE = Signature(heads=2, head_dim=4, width=8)
SIZES = {
    "batch": 3,
    "tokens": 37,  # a class token and a square of patches
    "heads": 2,
    "query_heads": 2,
    "head_dim": 4,
    "width": 8,
    "layers": 2,
    "kept": 9,
}
GRIDS = frozenset({"hiprune"})
"""Methods that have to know the number of tokens while they are traced."""


def feeds(axes):
    """Random signals by name; the padding of ``valid`` is on the right."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for name, dims in axes.items():
        values = torch.randn([SIZES.get(dim, 5) for dim in dims], generator=generator)
        made[name] = values.softmax(-1) if "tokens" in dims[-1:] else values
    if "valid" in made:
        lengths = torch.tensor([37, 30, 20])
        made["valid"] = torch.arange(37)[None] < lengths[:, None]
    return made


def one_of_a_kind():
    """All methods, those behind the first of their kind only in the sweep."""
    seen, made = set(), []
    for name, chosen in SELECTORS.items():
        marks = pytest.mark.sweep if chosen.kind in seen else ()
        made.append(pytest.param(name, marks=marks))
        seen.add(chosen.kind)
    return made


@pytest.mark.parametrize("name", one_of_a_kind())
def test_graph_gives_the_decision_of_the_selector(name):
    chosen = SELECTORS[name]
    graph = trace(name, replace(SIGNATURE, tokens=37 if name in GRIDS else None))
    signals = feeds({signal: chosen.axes(signal) for signal in chosen.signals})
    count = torch.tensor([12, 10, 9])
    made = chosen.decide(signals, count, SIGNATURE.protected)
    want = {"score": made.score, "count_kept": made.count, "state": made.state}
    index = torch.arange(9).expand(3, -1).contiguous()
    others = {"count": count, "index": index, "valid_kept": torch.ones_like(index) > 0}
    inputs = [str(value.name) for value in graph.graph.inputs]
    got = verify.run(graph, {key: {**signals, **others}[key].numpy() for key in inputs})
    for output, value in want.items():
        assert (output in got) == (value is not None)
        if value is not None:
            np.testing.assert_allclose(got[output], value.numpy(), rtol=1e-5, atol=1e-5)


def test_inputs_are_the_signals_and_dimensions_are_named():
    graph = trace("key_norm", SIGNATURE)
    assert [(v.name, str(v.shape)) for v in graph.graph.inputs] == [("keys", "[batch,2,tokens,4]")]
    assert [(v.name, str(v.shape)) for v in graph.graph.outputs] == [("score", "[batch,tokens]")]
    assert graph.metadata_props["secateur.selector"] == "key_norm"


def test_every_call_gets_its_own_copy():
    first, second = trace("hidden_norm", SIGNATURE), trace("hidden_norm", SIGNATURE)
    first.graph.outputs[0].name = "changed"
    assert second.graph.outputs[0].name == "score"


def test_fp16_signals_give_fp32_scores():
    graph = trace("value_norm", Signature(2, 4, 8, dtype=ir.DataType.FLOAT16))
    assert graph.graph.inputs[0].dtype == ir.DataType.FLOAT16
    assert graph.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_opset_of_the_host_is_used():
    assert trace("hidden_norm", Signature(2, 4, 8, opset=23)).opset_imports[""] == 23


def test_integer_signals_are_refused():
    with pytest.raises(BadInputError, match="cannot read this type"):
        trace("hidden_norm", Signature(2, 4, 8, dtype=ir.DataType.INT8))


def two_signals(hidden, valid):
    return hidden.float().sum(dim=-1) * valid


def per_head(keys):
    return keys.float().norm(dim=-1)


def half(hidden):
    return hidden.half().sum(dim=-1)


def undefined(hidden):
    return hidden.float().sum(dim=-1) * float("nan")


def baked(hidden):
    return hidden.float().sum(dim=-1)[:, : int(hidden.shape[1] * 1.0)]


def test_user_function_is_traced_with_its_signals_in_order():
    spec = f"{__name__}:two_signals"
    graph = trace(spec, SIGNATURE)
    assert [value.name for value in graph.graph.inputs] == ["hidden", "valid"]
    signals = feeds({"hidden": SIGNALS["hidden"], "valid": SIGNALS["valid"]})
    want = resolve_selector(spec).score(**signals).numpy()
    got = verify.run(graph, {key: value.numpy() for key, value in signals.items()})["score"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("per_head", "does not give one score per token"),
        ("half", "does not give one score per token"),
        ("undefined", "gives NaN"),
        ("baked", "cannot keep a declared dimension dynamic"),
    ],
)
def test_selector_that_breaks_the_contract_is_refused(function, message):
    with pytest.raises(BadInputError, match=message):
        trace(f"{__name__}:{function}", SIGNATURE)
