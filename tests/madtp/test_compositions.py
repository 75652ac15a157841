"""MADTP, removal by groups and half precision in one graph."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest
from tests.madtp import graphs, small

from secateur.export.madtp_assembly import FLOAT32_KEY as EXPORTED_KEY
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.names import module_path
from secateur.graph_passes.plan import Plan
from secateur.graph_passes.precision.decisions import FLOAT32_KEY, Precision
from secateur.graph_passes.precision.lower import lower_precision
from secateur.graph_passes.removal import remove

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
CUT = ("heads", "ffn", "channels")
"""Heads and inner units; the channels are concepts, which a layer can do without."""


@functools.cache
def _plan(form):
    """Half of everything that MADTP's own arithmetic runs through, at random."""
    rng = np.random.default_rng(0)
    groups = [g for g in analyse(graphs.nlvr(form)[1]).groups if g.removable and g.role in CUT]
    chosen = {g.name: rng.permutation(g.size)[: g.size // 2] for g in groups}
    return Plan({name: tuple(sorted(map(int, units))) for name, units in chosen.items()})


@functools.cache
def _removed(form):
    return remove(graphs.nlvr(form)[1], _plan(form))


@functools.cache
def _lowered(dtype, form="decoupled"):
    return lower_precision(_removed(form), Precision(dtype))


def _decisions(model):
    return [node for node in model.graph if module_path(node).endswith(".decision")]


def _types(node):
    return {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}


def test_export_and_precision_mean_the_same_metadata():
    assert EXPORTED_KEY == FLOAT32_KEY


@pytest.mark.sweep
@pytest.mark.parametrize("temperature", [0.5, 3.0, 20.0])
def test_a_pruning_graph_without_heads_inner_units_and_concepts_is_its_masked_twin(temperature):
    kinds = {name.split(" ")[0] for name in _plan("decoupled").keep}
    assert kinds == {"heads", "FFN", "channels"}
    twin = mask(graphs.nlvr("decoupled")[1], _plan("decoupled"))
    given = graphs.feeds(small.nlvr_inputs(), temperature=temperature)
    made, want, whole = (
        session.run(None, given)[0]
        for session in (
            graphs.session_of(_removed("decoupled")),
            graphs.session_of(twin),
            graphs.nlvr("decoupled")[2],
        )
    )
    graphs.close(made, want)
    assert np.abs(whole - want).max() > 0.01 * np.abs(want).max()


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.name.lower())
def test_what_judges_and_counts_tokens_stays_in_float32(dtype):
    model = _lowered(dtype)
    judging = _decisions(model)
    assert len({module_path(node) for node in judging}) == 4
    assert {"ReduceMin", "Softmax", "MatMul"} <= {node.op_type for node in judging}
    assert [node.name for node in judging if dtype in _types(node)] == []
    products = [n for n in model.graph if n.op_type == "MatMul" and n not in judging]
    assert all(dtype in _types(node) for node in products)


@pytest.mark.sweep
def test_a_sample_of_the_composed_graph_is_what_it_is_alone():
    session = graphs.session_of(_lowered(ir.DataType.FLOAT16))
    given = graphs.feeds(small.nlvr_inputs(), temperature=3.0)
    (together,) = session.run(None, given)
    for b in range(3):
        graphs.close(session.run(None, graphs.rows(given, b))[0][0], together[b], 2e-3)


@pytest.mark.sweep
def test_the_composed_schedule_is_the_float32_one_to_half_precision():
    given = graphs.feeds(small.nlvr_inputs(), image_counts=[8, 4], text_counts=[5, 3])
    made, want = (
        graphs.session_of(model).run(None, given)[0]
        for model in (_lowered(ir.DataType.FLOAT16, "schedule"), _removed("schedule"))
    )
    graphs.close(made, want, 2e-2)


@pytest.mark.sweep
def test_the_composed_graph_still_splits_into_stages():
    """Removal and precision keep the names that the cuts were recorded under."""
    model = _lowered(ir.DataType.FLOAT16)
    staged = graphs.staged(model, ["vision.encoder.layers.0", "text.encoder.layer.0"])
    given = graphs.feeds(small.nlvr_inputs(), temperature=3.0)
    made = staged.run(given, 2, shared=("temperature",))["logits"]
    graphs.close(made, graphs.session_of(model).run(None, given)[0], 2e-3)
