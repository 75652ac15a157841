"""Rows that ids from outside read: a vocabulary loses words, and the ids stay what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tests.laws.small_models import digest, network

from secateur.calibration.allocation import Allocation
from secateur.calibration.planning import Ranking, plan
from secateur.errors import BadInputError
from secateur.export import to_torch
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove
from secateur.recipe import Removal
from secateur.workflow.pruning import prune_graph, recorded_plan

_WORDS = 12
_UNTIED = """
words (int64[batch, n] ids) => (float[batch, n, 5] y) {
    rows = Gather(embedding, ids)
    y = MatMul(rows, head)
}
"""
_TIED = """
tied (int64[batch, n] ids) => (float[batch, n, 12] logits) {
    rows = Gather(embedding, ids)
    turned = Transpose <perm = [1, 0]> (embedding)
    hidden = Tanh(rows)
    logits = MatMul(hidden, turned)
}
"""
_MOVED = """
moved (int32[batch, n] ids) => (float[batch, n, 5] y) {
    flat = Reshape(ids, open)
    wide = Cast <to = 7> (flat)
    lines = Gather(embedding, wide)
    shape = Shape <start = 0, end = 2> (ids)
    whole = Concat <axis = 0> (shape, five)
    y = Reshape(lines, whole)
}
"""
_TWO = """
two (int64[batch, n] ids, int64[batch, m] answers) =>
    (float[batch, n, 4] x, float[batch, m, 4] y) {
    x = Gather(embedding, ids)
    y = Gather(embedding, answers)
}
"""
_COMPARED = """
compared (int64[batch, n] ids) => (float[batch, n, 4] y) {
    rows = Gather(embedding, ids)
    there = Equal(ids, padding)
    weights = Cast <to = 1> (there)
    column = Unsqueeze(weights, last)
    y = Mul(rows, column)
}
"""
_SPLIT = """
split (int64[batch, n] ids) => (float[batch, n, 4, 3] y) {
    rows = Gather(embedding, ids)
    wide = MatMul(rows, up)
    hidden = Tanh(wide)
    narrow = MatMul(hidden, down)
    turned = Transpose <perm = [1, 0]> (embedding)
    logits = MatMul(narrow, turned)
    y = Reshape(logits, grid)
}
"""
_WEIGHTS = {"embedding": (_WORDS, 4), "head": (4, 5), "up": (4, 6), "down": (6, 4)}
_ALLOW = {"ids": 3}


def _network(text: str) -> ir.Model:
    weights = {name: shape for name, shape in _WEIGHTS.items() if name in text}
    if text is _MOVED:
        weights["embedding"] = (_WORDS, 5)
    known = {
        "open": np.array([-1]),
        "five": np.array([5]),
        "padding": np.array(5),
        "last": np.array([-1]),
        "grid": np.array([0, 0, 4, 3]),
    }
    return network(text, weights, {name: a for name, a in known.items() if f" {name})" in text})


def _run(model: ir.Model, feeds: Mapping[str, NDArray]) -> Sequence[NDArray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def _every_id(model: ir.Model) -> dict[str, NDArray]:
    ids = np.random.default_rng(0).permutation(_WORDS)
    return {
        str(value.name): np.stack([ids, ids[::-1]]).astype(value.dtype.numpy())
        for value in model.graph.inputs
    }


def _vocabulary(model: ir.Model, allow: Mapping[str, int], outputs: Sequence[str] = ()) -> str:
    (group,) = analyse(model, allow_ids=allow, allow_outputs=outputs).by_role("vocabulary")
    return group.name


def _cut(model: ir.Model, allow: Mapping[str, int], outputs: Sequence[str] = ()) -> Plan:
    analysis = analyse(model, allow_ids=allow, allow_outputs=outputs)
    return make_plan(analysis, {_vocabulary(model, allow, outputs): (0, 3, 4, 7, 11)})


@pytest.mark.parametrize("text", [_UNTIED, _MOVED, _COMPARED], ids=["plain", "moved", "compared"])
def test_ids_that_stay_read_their_rows_and_others_read_the_stand_in(text: str) -> None:
    model = _network(text)
    before, feeds = digest(model), _every_id(model)
    made = _cut(model, _ALLOW)
    small = remove(model, made)
    weight = small.graph.initializers["embedding"].const_value
    assert weight is not None
    assert weight.shape[0] == 5
    (got,), (twin,) = _run(small, feeds), _run(mask(model, made), feeds)
    np.testing.assert_array_equal(got, twin)
    if text is not _COMPARED:  # which compares the ids as they were given
        read = np.where(np.isin(feeds["ids"], (0, 3, 4, 7, 11)), feeds["ids"], 3)
        (wanted,) = _run(model, {"ids": read.astype(feeds["ids"].dtype)})
        np.testing.assert_array_equal(got, wanted)
    assert digest(model) == before


def test_a_vocabulary_that_the_model_lays_out_in_two_axes_stays_and_the_rest_is_cut() -> None:
    model = _network(_SPLIT)
    analysis = analyse(model, allow_ids=_ALLOW)
    rows, columns = analysis.by_role("vocabulary")
    assert any("not one axis" in reason.text for reason in (*rows.frozen, *columns.frozen))
    (hidden,) = (group.name for group in analysis.groups if group.size == 6)
    made = make_plan(analysis, {hidden: (0, 2, 5)})
    feeds = _every_id(model)
    (got,), (twin,) = _run(remove(model, made), feeds), _run(mask(model, made), feeds)
    np.testing.assert_allclose(got, twin, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", [_UNTIED, _MOVED], ids=["plain", "moved"])
def test_more_rows_go_in_a_second_cut_by_what_the_first_left(text: str) -> None:
    model = _network(text)
    first = remove(model, _cut(model, _ALLOW))  # leaves 0, 3, 4, 7, 11
    again = make_plan(analyse(first, allow_ids=_ALLOW), {_vocabulary(first, _ALLOW): (1, 4)})
    second, feeds = remove(first, again), _every_id(model)
    (got,), (twin,) = _run(second, feeds), _run(mask(first, again), feeds)
    np.testing.assert_array_equal(got, twin)
    read = np.where(np.isin(feeds["ids"], (3, 11)), feeds["ids"], 3)
    (wanted,) = _run(model, {"ids": read.astype(feeds["ids"].dtype)})
    np.testing.assert_array_equal(got, wanted)
    rows = second.graph.initializers["embedding"].const_value
    assert rows is not None
    assert rows.shape[0] == 2
    tables = [v for v in second.graph.initializers.values() if "table" in (v.name or "")]
    assert [table.shape for table in tables] == [(_WORDS,)]


def test_another_stand_in_of_a_second_cut_is_an_id_as_well() -> None:
    model = _network(_UNTIED)
    first = remove(model, _cut(model, _ALLOW))
    another = {"ids": 7}
    name = _vocabulary(first, another)
    with pytest.raises(BadInputError, match="removes row 3"):  # where the row of 7 stands now
        make_plan(analyse(first, allow_ids=another), {name: (0, 1)})
    again = make_plan(analyse(first, allow_ids=another), {name: (0, 3)})
    (got,) = _run(remove(first, again), {"ids": np.array([[0, 1, 7, 11]])})
    (wanted,) = _run(model, {"ids": np.array([[0, 7, 7, 7]])})
    np.testing.assert_array_equal(got, wanted)


def test_rows_go_only_where_the_ids_are_named() -> None:
    model = _network(_UNTIED)
    assert not analyse(model).by_role("vocabulary")
    with pytest.raises(BadInputError, match="no vocabulary that can be removed") as refused:
        plan(model, "vocabulary", Allocation(0.5), Ranking("l2"))
    assert "--allow-ids" in refused.value.next_step
    (rows,) = analyse(model).by_role("rows")
    with pytest.raises(BadInputError, match="cannot be cut") as refused:
        make_plan(analyse(model), {rows.name: (0, 1)})
    assert "--allow-ids" in refused.value.next_step


def test_a_tied_head_loses_the_same_words_where_its_output_may_change() -> None:
    model = _network(_TIED)
    name, feeds = _vocabulary(model, _ALLOW), _every_id(model)
    with pytest.raises(BadInputError, match="cannot be cut") as refused:
        make_plan(analyse(model, allow_ids=_ALLOW), {name: (0, 3)})
    assert refused.value.next_step.endswith("--allow-output logits")
    made = _cut(model, _ALLOW, ["logits"])
    small = remove(model, made)
    (got,), (twin,), (dense,) = (_run(m, feeds) for m in (small, mask(model, made), model))
    np.testing.assert_allclose(got, twin, rtol=1e-5, atol=1e-6)
    stay = np.isin(feeds["ids"], (0, 3, 4, 7, 11))
    np.testing.assert_allclose(got[stay], dense[stay][:, [0, 3, 4, 7, 11]], rtol=1e-5, atol=1e-6)
    assert len([v for v in small.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]) == 1


def test_a_weight_that_two_inputs_read_goes_where_both_are_named() -> None:
    model = _network(_TWO)
    with pytest.raises(BadInputError, match="cannot be cut"):
        _cut(model, _ALLOW)
    made, feeds = _cut(model, {"ids": 3, "answers": 0}), _every_id(model)
    for got, wanted in zip(
        _run(remove(model, made), feeds), _run(mask(model, made), feeds), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_what_stands_in_always_stays() -> None:
    model = _network(_UNTIED)
    table = model.graph.initializers["embedding"]
    assert table.const_value is not None
    rows = table.const_value.numpy().copy()
    rows[3] = 0.0  # what no criterion would keep
    table.const_value = ir.tensor(rows, name="embedding")
    analysis = analyse(model, allow_ids=_ALLOW)
    made = plan(analysis, "vocabulary", Allocation(0.75), Ranking("l2"))
    ((name, kept),) = made.keep.items()
    assert 3 in kept
    assert len(kept) == 3
    others = np.argsort(-np.linalg.norm(rows, axis=1))[:2]
    assert set(kept) == {3, *others.tolist()}
    with pytest.raises(BadInputError, match="removes row 3") as refused:
        make_plan(analysis, {name: (0, 1)})
    assert "--allow-ids" in refused.value.next_step


@pytest.mark.parametrize(
    ("allow", "says", "wanted"),
    [
        ({"words": 0}, "no input 'words' of ids", "one of: ids"),
        ({"ids": 12}, "has none itself", "0 to 11"),
        ({"ids": -1}, "has none itself", "0 to 11"),
    ],
)
def test_unknown_inputs_and_ids_are_refused(
    allow: Mapping[str, int], says: str, wanted: str
) -> None:
    with pytest.raises(BadInputError, match=says) as refused:
        analyse(_network(_UNTIED), allow_ids=allow)
    assert refused.value.wanted == wanted


def test_two_stand_ins_of_one_input_are_refused() -> None:
    removals = [Removal(what="vocabulary", ratio=0.5, allow_ids={"ids": i}) for i in (0, 1)]
    with pytest.raises(BadInputError, match="two ids stand in") as refused:
        prune_graph(_network(_UNTIED), removals)
    assert refused.value.got == "0 and 1"


def test_a_removal_is_proved_recorded_and_goes_back_to_torch() -> None:
    import torch

    model = _network(_UNTIED)
    removal = Removal(what="vocabulary", ratio=0.5, allow_ids=_ALLOW)
    pruned = prune_graph(model, [removal])
    assert [proof.relative_error for proof in pruned.proofs] == [0.0, 0.0]
    assert Plan.from_json(pruned.plan.to_json()) == pruned.plan
    again = recorded_plan(pruned.model)
    assert again is not None
    assert (again.keep, again.allow_ids) == (pruned.plan.keep, _ALLOW)
    feeds = _every_id(model)
    module = to_torch.to_torch(pruned.model)
    got = module(torch.from_numpy(feeds["ids"]))
    (wanted,) = _run(pruned.model, feeds)
    np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert dict(module.named_parameters())["embedding"].shape == (6, 4)
