"""Outputs of a selecting graph: per-token rows put back, kept positions, forced twin."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.passes.selection.models import Variant, build, write
from tests.passes.selection.reference import Arrays, dense, positions, relative_error, run
from tests.passes.selection.support import (
    TOLERANCE,
    amounts,
    expect,
    feeds,
    insert,
    selections,
    site,
)

from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.force_selection import force

RAGGED = (9, 4, 7)
TOKENS = Variant(pool="tokens")
MASKED = Variant(pool="mask")
SHARE = amounts((0, 1), (700, 600))


def test_dropped_tokens_return_the_state_they_left_with() -> None:
    model, names = write(TOKENS)
    fed = feeds(TOKENS, RAGGED)
    want = expect(TOKENS, (0, 1), fed, permille=(700, 600))
    hidden = [names[f"hidden.{layer}"] for layer in (0, 1)]
    twin = dense(model, [0, 1], watch=tuple(hidden))
    first = twin.run(fed, [~want.kept[0]] * 2)
    left = np.where(want.kept[0][:, :, None], first[hidden[1]], first[hidden[0]])
    rows = np.where(want.kept[1][:, :, None], want.y, left)
    got = run(insert(model, selections((0, 1)), outputs="exit"), fed | SHARE)
    assert relative_error(got["y"], rows) < TOLERANCE


def test_kept_rows_alone_can_be_returned() -> None:
    fed = feeds(TOKENS, RAGGED)
    want = expect(TOKENS, (0, 1), fed, permille=(700, 600))
    got = run(insert(build(TOKENS), selections((0, 1)), outputs="leave"), fed | SHARE)
    assert got["y"].shape[1] == positions(want.kept[1]).shape[1]
    for b, kept in enumerate(want.kept[1]):
        assert relative_error(got["y"][b, : kept.sum()], want.y[b, kept]) < TOLERANCE


def test_restored_output_keeps_its_declared_shape() -> None:
    model = insert(build(TOKENS), selections((0,)))
    dims = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "tokens", 16]


def test_restore_refuses_tokens_on_another_axis() -> None:
    model = build(TOKENS)
    turned = onnx.helper.make_node("Transpose", ["y"], ["turned"], name="turn", perm=[1, 0, 2])
    model.graph.node.append(turned)
    model.graph.output[0].name = "turned"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for name in ("tokens", "batch", 16):
        dim = model.graph.output[0].type.tensor_type.shape.dim.add()
        dim.dim_param, dim.dim_value = ("", name) if isinstance(name, int) else (name, 0)
        if isinstance(name, str):
            dim.dim_param = name
    with pytest.raises(PreconditionError, match="cannot be put back"):
        insert(model, selections((0,)))


def test_exit_states_need_hidden_states() -> None:
    model = build(TOKENS)
    model.graph.node[-1].CopyFrom(
        onnx.helper.make_node("ReduceMax", [model.graph.node[-1].input[0], "last"], ["y"], "m")
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 1
    insert(model, selections((0,)))
    with pytest.raises(PreconditionError, match="not a hidden state"):
        insert(model, selections((0,)), outputs="exit")


def test_kept_positions_are_an_output_only_when_asked_for() -> None:
    model = insert(build(MASKED), selections((0,), expose_kept=False))
    assert [output.name for output in model.graph.output] == ["y"]
    assert json.loads(model.metadata_props[0].value)[0]["kept_output"] is None


def test_record_of_a_site() -> None:
    model = insert(build(MASKED), selections((0, 1)))
    meta = {prop.key: prop.value for prop in model.metadata_props}
    first, second = json.loads(meta["secateur.sites"])
    assert first["site"] == site(0)
    assert second["bias"] == f"{site(1)}.score_bias"
    assert first["budget"] == {"kind": "permille", "input": f"{site(0)}.permille", "default": 600}
    assert first["per_sample"]
    assert first["protected"] == 1


# --- forced twin -----------------------------------------------------------------------------


def _twin(variant: Variant = MASKED) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    shipped = insert(build(variant), selections((0, 1)))
    twin = ir.to_proto(force(ir.from_proto(shipped)))
    onnx.checker.check_model(twin, full_check=True)
    return shipped, twin


def _no_bias() -> Arrays:
    return {f"{site(at)}.score_bias": np.zeros((1, 1), np.float32) for at in (0, 1)}


def test_bias_has_a_default_in_the_shipped_model_and_none_in_the_twin() -> None:
    shipped, twin = _twin()
    names = {item.name for item in shipped.graph.initializer}
    assert f"{site(0)}.score_bias" in names
    assert f"{site(0)}.score_bias" in {item.name for item in shipped.graph.input}
    assert f"{site(0)}.score_bias" not in {item.name for item in twin.graph.initializer}


def test_twin_without_bias_equals_the_shipped_model() -> None:
    shipped, twin = _twin()
    fed = feeds(MASKED, RAGGED) | SHARE
    want, got = run(shipped, fed), run(twin, fed | _no_bias())
    np.testing.assert_array_equal(got["y"], want["y"])
    np.testing.assert_array_equal(got[f"{site(0)}.index"], want[f"{site(0)}.kept"])


def test_twin_keeps_what_it_is_told_and_says_what_it_would_have_kept() -> None:
    _, twin = _twin()
    fed = feeds(MASKED, (9, 9)) | amounts((0, 1), (400, 1000))
    free = run(twin, fed | _no_bias())
    told = np.zeros((2, 9), np.float32)
    told[:, [2, 5, 7]] = 1e9
    got = run(twin, fed | _no_bias() | {f"{site(0)}.score_bias": told})
    assert got[f"{site(0)}.kept"].tolist() == [[0, 2, 5, 7]] * 2
    np.testing.assert_array_equal(got[f"{site(0)}.index"], free[f"{site(0)}.index"])
    np.testing.assert_array_equal(got[f"{site(0)}.score"], free[f"{site(0)}.score"])


def test_twin_score_is_the_reference_score() -> None:
    _, twin = _twin()
    fed = feeds(MASKED, RAGGED)
    want = expect(MASKED, (0, 1), fed, permille=(700, 600))
    got = run(twin, fed | SHARE | _no_bias())[f"{site(0)}.score"]
    seen = np.isfinite(got)
    np.testing.assert_allclose(got[seen], want.scores[0][seen], rtol=1e-5)
    assert (got[:, 0] == np.inf).all()
    assert (got[fed["mask"] == 0] == -np.inf).all()


def test_bias_protects_a_token_in_the_shipped_model() -> None:
    shipped, _ = _twin()
    fed = feeds(MASKED, (9,)) | amounts((0, 1), (300, 1000))
    bias = np.zeros((1, 9), np.float32)
    bias[0, 8] = 1e9
    got = run(shipped, fed | {f"{site(0)}.score_bias": bias})
    assert 8 in got[f"{site(0)}.kept"][0]


def test_only_a_selecting_model_has_a_twin() -> None:
    with pytest.raises(BadInputError, match="selects no tokens"):
        force(ir.from_proto(build()))


def test_twin_of_constant_counts() -> None:
    from secateur.graph_passes.selection.budget import Budget

    variant = Variant(mask="none", tokens=8, sizes="constant")
    shipped = insert(build(variant), selections((0, 1), budget=Budget("count", 5, False)))
    twin = ir.to_proto(force(ir.from_proto(shipped)))
    fed = feeds(variant, (8, 8))
    np.testing.assert_array_equal(run(twin, fed | _no_bias())["y"], run(shipped, fed)["y"])
