"""The report shows what was found, escapes what came from outside, and needs no network."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from secateur.workflow.report import render_report, spell_count
from secateur.workflow.results import (
    Check,
    Frozen,
    LayerRemoval,
    Proof,
    Results,
    Sample,
    SelectionRow,
    Size,
    spell_error,
)

ROW = {
    "variant": "tokens",
    "batch": 1,
    "tokens": 128,
    "dense_ms": 20.0,
    "pruned_ms": 10.0,
    "flops_ratio": 2.1,
    "efficiency": 0.95,
    "efficiency_p10": 0.93,
    "efficiency_p90": 0.97,
    "optimisation_level": "all",
}


@pytest.fixture
def results():
    return Results(
        name="small",
        source="model.onnx",
        dense=Size(1000, 4000, 10),
        pruned=Size(750, 2000, 12),
        removed=(
            LayerRemoval("layer.0", "heads", 4, (0, 2, 3)),
            LayerRemoval("layer.0", "ffn", 8, tuple(range(6))),
        ),
        proofs=(Proof("random", "y", 2e-7, 1e-5),),
        selections=(SelectionRow("layer.0", "class_row", "60 %", 1, "layer.0.permille"),),
        checks=(Check("onnxruntime", "value", "y", 1e-6, 1e-4, passed=True),),
        samples=(
            Sample("text", ("[CLS]", "sec", "##ateur", "<b>"), {"a": (0, 1, 2), "b": (0, 1)}),
            Sample("digit", kept={"a": (0, 1, 4)}, image=((0.0, 1.0), (1.0, 0.0)), grid=(2, 2)),
        ),
        bench=(ROW,),
        frozen=(Frozen("width", "no neutral element", "norm"),),
    )


def test_report_loads_nothing_from_elsewhere(results):
    page = render_report(results)
    without_names = page.replace("http://www.w3.org/", "")
    assert not re.search(r"https?://|<script|<link|@import", without_names)


def test_report_escapes_the_users_text(results):
    page = render_report(results)
    assert "&lt;b&gt;" in page
    assert "<b>&lt;" not in page.replace("<b>&lt;b", "")
    assert '<span class="w w1"><b>' not in page


def test_a_removed_head_is_an_empty_square(results):
    page = render_report(results)
    assert page.count('class="gone"') == 1
    assert 'title="head 1: removed"' in page


def test_tokens_are_struck_by_the_site_that_dropped_them(results):
    page = render_report(results)
    assert '<span class="w w0">[CLS]</span>' in page
    assert '<span class="w w2 glue">ateur</span>' in page
    assert '<span class="w w1">&lt;b&gt;</span>' in page
    assert "2 of 4 tokens" in page


def test_dropped_patches_are_covered(results):
    page = render_report(results)
    assert page.count('<rect class="p1"') == 2
    assert "data:image/png;base64," in page


def test_a_failed_check_is_told_first(results):
    failed = Check("onnxruntime", "value", "y", 0.1, 1e-4, passed=False)
    assert "every check passed" in render_report(results)
    page = render_report(replace(results, checks=(failed,)))
    assert "every check passed" not in page
    assert "a check failed" in page


def test_a_proof_that_is_nan_has_failed():
    assert not Proof("random", "y", float("nan"), 1e-5).passed


def test_charts_take_the_colours_of_the_page(results):
    page = render_report(results)
    assert "var(--pruned)" in page
    assert "#050607" not in page


def test_a_model_without_anything_pruned_still_has_a_report():
    page = render_report(Results("bare", "m.onnx", Size(1, 1, 1), Size(1, 1, 1)))
    assert "no axis of this graph is frozen" in page


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (22_713_216, "22.7 M"), (5.4e9, "5.4 G")]
)
def test_counts_are_spelled_for_people(number, text):
    assert spell_count(number) == text


def test_errors_are_spelled_as_powers():
    assert (spell_error(0.0), spell_error(3.14e-7)) == ("0", "3.1e-7")
