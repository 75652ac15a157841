"""Attention in forms of its own: batch and heads in one axis, Einsum, relative positions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.passes.selection.models import DH, H, Variant, write
from tests.passes.selection.reference import run
from tests.passes.selection.support import amounts, check, feeds, insert, selections, site

from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.sites import attention_of
from secateur.workflow.golden import budget_feeds, token_sites
from secateur.workflow.model_session import open_model
from secateur.workflow.onnx_reference import golden_from_onnx
from secateur.workflow.parity import Options
from secateur.workflow.parity import check as check_forced
from secateur.workflow.selecting import Select, select_tokens

RAGGED = (9, 4, 7)

FORMS = {
    "a bias of positions, batch and heads in one axis": Variant(form="merged"),
    "the same, scores replaced": Variant(form="merged", mask="where"),
    "the same, causal": Variant(form="merged", mask="causal"),
    "heads never apart": Variant(form="folded"),
    "Einsum": Variant(form="einsum"),
    "Einsum, scores replaced": Variant(form="einsum", mask="where"),
    "Einsum, fixed tokens": Variant(form="einsum", mask="none", tokens=9),
    "relative positions": Variant(form="disentangled"),
    "relative positions, scores replaced": Variant(form="disentangled", mask="where"),
    "relative positions, a mask of pairs": Variant(form="disentangled", mask="pairs"),
    "talking heads": Variant(form="talking"),
    "talking heads, with a bias": Variant(form="talking", mask="none", guard=True, tokens=9),
    "talking heads, a matrix from the left": Variant(form="talking_matrix", mask="where"),
    "talking heads, Gemm": Variant(form="talking_gemm"),
    "talking heads, Einsum": Variant(form="talking_einsum"),
    "talking heads, a convolution": Variant(form="talking_conv", mask="causal"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_block_is_found_once(name: str) -> None:
    found = find_sites(ir.from_proto(write(FORMS[name])[0]))
    assert [one.name for one in found] == [site(layer) for layer in range(3)]
    there = [attention_of(one) for one in found]
    assert {(one.heads, one.key_heads, one.head_dim) for one in there} == {(H, H, DH)}


SEEN = (
    [(name, "class_row") for name in FORMS]
    + [
        (name, signal)
        for name in (
            "heads never apart",
            "Einsum",
            "a bias of positions, batch and heads in one axis",
        )
        for signal in ("column_mean", "keys", "values")
    ]
    + [("talking heads, with a bias", "column_mean"), ("talking heads", "column_mean")]
)


@pytest.mark.parametrize(("name", "signal"), SEEN)
def test_two_sites_equal_the_masked_dense_graph(name: str, signal: str) -> None:
    variant = FORMS[name]
    lengths = (variant.tokens,) * 3 if variant.tokens else RAGGED
    check(variant, (0, 1), lengths, signal=signal, permille=(700, 600))


@pytest.mark.parametrize("name", FORMS)
def test_a_sample_in_a_batch_gives_what_it_gives_alone(name: str) -> None:
    variant = FORMS[name]
    model = insert(write(variant)[0], selections((0, 1)))
    lengths = (variant.tokens,) * 3 if variant.tokens else RAGGED
    fed, asked = feeds(variant, lengths), amounts((0, 1), (700, 600))
    whole = run(model, fed | asked)["y"]
    for i, length in enumerate(lengths):
        alone = {key: array[i : i + 1, :length] for key, array in fed.items()}
        np.testing.assert_allclose(run(model, alone | asked)["y"][0], whole[i], atol=1e-5)


@pytest.mark.parametrize("form", ["talking", "talking_gemm", "talking_einsum", "talking_conv"])
@pytest.mark.parametrize("signal", ["class_row", "column_mean"])
def test_a_bias_behind_the_softmax_weighs_no_token_that_is_gone(form: str, signal: str) -> None:
    variant = Variant(form=form, guard=True)
    check(variant, (0, 1), RAGGED, signal=signal, permille=(700, 600))


@pytest.mark.parametrize("form", ["folded", "einsum", "disentangled", "talking"])
def test_forced_twin_agrees_with_the_reference_of_the_file(form: str) -> None:
    dense = ir.from_proto(write(Variant(form=form, guard=form == "talking"))[0])
    wanted = [Select(site(layer), "class_row", 0.6, 1) for layer in (0, 1)]
    model = select_tokens(dense, wanted)
    sites, asked = token_sites(model, {}), budget_feeds(model, {})
    golden = golden_from_onnx(dense, feeds(Variant(), RAGGED), sites, feeds=asked)
    with open_model(force(model)) as twin:
        report = check_forced([golden], twin, free=None, options=Options())
    assert report.passed, [(row.subject, row.note) for row in report.rows() if not row.passed]
    assert len(report.sites) == len(wanted)
