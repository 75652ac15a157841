"""Selecting graphs against the masked torch module: the four parts, end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tests.parity import tiny

from secateur.export.selector_graph import Signature, trace
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import Selection, insert_selections
from secateur.models.reference import neutralised
from secateur.workflow.bisect import BisectOptions, bisect
from secateur.workflow.golden import Golden, budget_feeds, golden_from_torch, renamed, token_sites
from secateur.workflow.model_session import open_model
from secateur.workflow.onnx_reference import golden_from_onnx
from secateur.workflow.parity import Options, ParityReport, Task, check
from secateur.workflow.removal_proof import removed_units

OUTPUTS = ("pooled", "hidden")
OPTIONS = Options(token_outputs=frozenset({"hidden"}), tasks=(Task("cosine", "pooled", 0.9999),))


def selecting(
    model: ir.Model, by: str, kind: str = "permille", *, is_input: bool = True
) -> ir.Model:
    graph = trace(by, Signature(heads=tiny.H, head_dim=tiny.D // tiny.H, width=tiny.D))
    amounts = (700, 600) if kind == "permille" else (5, 3)
    sites = ("layers.0", "layers.1")
    return insert_selections(
        model,
        tuple(
            Selection(s, graph, Budget(kind, a, is_input))
            for s, a in zip(sites, amounts, strict=True)
        ),  # type: ignore[arg-type]
    )


def reference(model: ir.Model, amounts: dict[str, int] | None = None) -> Golden:
    found = golden_from_torch(
        tiny.bert(),
        tiny.BATCH,
        token_sites(model, amounts or {}),
        feeds=budget_feeds(model, amounts or {}),
    )
    return next(renamed([found], OUTPUTS))


def measured(model: ir.Model, goldens: list[Golden], options: Options = OPTIONS) -> ParityReport:
    with open_model(force(model)) as forced, open_model(model) as free:
        return check(goldens, forced, free=free, options=options)


@pytest.fixture(scope="module")
def by_class_row() -> ir.Model:
    return selecting(tiny.exported(), "class_row")


@pytest.mark.parametrize("kind", ["permille", "count"])
@pytest.mark.parametrize(
    "by", ["class_row", "column_mean", "key_norm", "value_norm", "hidden_norm"]
)
def test_every_selector_passes_parity_on_ragged_sentences(by: str, kind: str) -> None:
    model = selecting(tiny.exported(), by, kind)
    report = measured(model, [reference(model)])
    assert report.passed, report.rows()
    assert sum(site.flips for site in report.sites) == 0


def test_one_graph_serves_every_budget(by_class_row: ir.Model) -> None:
    goldens = [
        reference(by_class_row, {"layers.0": first, "layers.1": second})
        for first, second in ((1, 1), (400, 900), (1000, 1000))
    ]
    report = measured(by_class_row, goldens)
    assert report.passed, report.rows()


def test_a_budget_inside_the_graph_passes_parity() -> None:
    model = selecting(tiny.exported(), "value_norm", is_input=False)
    assert budget_feeds(model, {}) == {"layers.0": {}, "layers.1": {}}
    report = measured(model, [reference(model)])
    assert report.passed, report.rows()


def test_the_attention_operator_passes_parity() -> None:
    model = selecting(tiny.exported(opset=23), "class_row")
    report = measured(model, [reference(model)])
    assert report.passed, report.rows()


def test_heads_and_tokens_together_pass_parity() -> None:
    dense = tiny.exported()
    analysis = analyse(dense)
    keep: dict[str, tuple[int, ...]] = {g.name: (0, 1, 3) for g in analysis.by_role("heads")}
    keep |= {g.name: tuple(range(0, g.size, 2)) for g in analysis.by_role("ffn")}
    plan = make_plan(analysis, keep)
    model = selecting(remove(dense, plan), "value_norm")
    net = neutralised(tiny.bert(), removed_units(dense, plan))
    golden = golden_from_torch(
        net, tiny.BATCH, token_sites(model, {}), feeds=budget_feeds(model, {})
    )
    report = measured(model, list(renamed([golden], OUTPUTS)))
    assert report.passed, report.rows()


def test_a_wrong_index_in_the_reference_fails(by_class_row: ir.Model) -> None:
    golden = reference(by_class_row)
    site = golden.sites["layers.1"]
    kept: NDArray = site.kept.copy()
    eligible = np.flatnonzero(site.eligible[0])
    other = next(t for t in eligible if t not in kept[0])
    kept[0] = np.sort(np.append(kept[0, :-1], other))
    planted = replace(golden, sites={**golden.sites, "layers.1": replace(site, kept=kept)})
    report = measured(by_class_row, [planted])
    assert not report.passed
    assert "near-tie" in report.sites[1].reason


def test_a_selector_with_another_weighting_fails() -> None:
    """The graph selects by other scores than its record says."""
    model = selecting(tiny.exported(), "class_row")
    record = model.metadata_props["secateur.sites"]
    model.metadata_props["secateur.sites"] = record.replace('"class_row"', '"column_mean"')
    report = measured(model, [reference(model)], Options())
    assert not report.passed
    assert "score error" in report.sites[0].reason


def test_the_onnx_reference_gives_the_same_verdict(by_class_row: ir.Model) -> None:
    golden = golden_from_onnx(
        tiny.exported(),
        tiny.BATCH,
        token_sites(by_class_row, {}),
        feeds=budget_feeds(by_class_row, {}),
    )
    assert measured(by_class_row, [golden]).passed


def test_bisect_looks_at_kept_rows_of_a_selecting_graph(by_class_row: ir.Model) -> None:
    options = BisectOptions(
        sites=token_sites(by_class_row, {}), feeds=budget_feeds(by_class_row, {})
    )
    twin = force(by_class_row)
    assert bisect(tiny.bert(), twin, tiny.BATCH, options).first_bad is None
    name = "layers.2.up"
    bad = _spoilt(twin, f"{name}.weight")
    report = bisect(tiny.bert(), bad, tiny.BATCH, options)
    assert report.first_bad is not None
    assert report.first_bad.module == name


def _spoilt(model: ir.Model, parameter: str) -> ir.Model:
    from secateur.graph_passes.names import parameter_names

    copy = model.clone()
    name = next(n for n, p in parameter_names(copy).items() if p == parameter)
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.flat[0] += 7.0
    value.const_value = ir.tensor(array, name=name)
    return copy
