"""The class row under left padding is that of the first real token, not that of slot 0.

The graph that the pass makes is held to the reference run's own arithmetic, which reads the
probabilities of the dense graph, and to each sample alone, which has no padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.passes.selection.models import Variant, build, write
from tests.passes.selection.reference import Arrays, dense, relative_error, run
from tests.passes.selection.support import TOLERANCE, amounts, feeds, insert, selections, site

from secateur.graph_passes.force_selection import force
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import insert_selections
from secateur.models import signals
from secateur.models.reference_selection import SiteRun, TokenSite, attention_signals, select
from secateur.models.token_mode import Attention

RAGGED = (9, 4, 7)
STARTS = tuple(max(RAGGED) - length for length in RAGGED)
LAYERS, PERMILLE = (0, 1), (700, 600)
SHARES = amounts(LAYERS, PERMILLE)

WRITINGS = {
    "bool": Variant(),
    "additive": Variant(mask="additive"),
    "arithmetic": Variant(mask="legacy", opset=17),
    "replaced": Variant(mask="where"),
    "pairs": Variant(mask="pairs"),
    "scaled twice, keys merged": Variant(scale="both", key="merged"),
    "fused": Variant(form="fused", opset=23),
    "fused, additive": Variant(form="fused", opset=23, mask="additive"),
    "fused, pairs": Variant(form="fused", opset=23, mask="pairs"),
    "com.microsoft": Variant(form="microsoft", sizes="copy"),
}
every_writing = pytest.mark.parametrize(
    "name",
    [
        name if name in {"bool", "fused"} else pytest.param(name, marks=pytest.mark.sweep)
        for name in WRITINGS
    ],
)


def padded_on_the_left(variant: Variant) -> Arrays:
    fed = feeds(variant, RAGGED, seed=5)
    return fed | {"mask": np.ascontiguousarray(fed["mask"][:, ::-1])}


def alone(fed: Arrays, sample: int) -> Arrays:
    """One sample without its padding."""
    return {name: array[sample : sample + 1, STARTS[sample] :] for name, array in fed.items()}


@dataclass(frozen=True)
class ClassRow:
    """The class row itself, as a selector."""

    signals: tuple[str, ...] = ("class_row",)

    @staticmethod
    def score(class_row: torch.Tensor) -> torch.Tensor:
        return class_row


def reference(variant: Variant, fed: Arrays) -> tuple[list[SiteRun], np.ndarray]:
    """Records of both sites, and hidden states of the dense graph with dropped keys masked."""
    model, names = write(replace(variant, form="decomposed"))
    last = names[f"hidden.{variant.layers - 1}"]
    twin = dense(model, list(LAYERS), watch=(last,))
    alive = torch.from_numpy(fed["mask"].astype(bool))
    gone, records = [np.zeros(alive.shape, bool)] * len(LAYERS), []
    for i, layer in enumerate(LAYERS):
        there = torch.from_numpy(twin.run(fed, gone)[twin.probabilities[layer]])
        nothing = torch.zeros(0)
        seen = Attention(nothing, there[:, :, :, :0], None, there, alive)
        asked = TokenSite(site(layer), ClassRow(), "permille", PERMILLE[i])
        record, alive = select(asked, attention_signals(asked, seen, nothing, alive), alive)
        records.append(record)
        gone[i:] = [~alive.numpy()] * (len(LAYERS) - i)
    return records, twin.run(fed, gone)[last]


@every_writing
def test_graph_keeps_and_returns_what_the_reference_does(name: str) -> None:
    variant = replace(WRITINGS[name], pool="tokens")
    fed = padded_on_the_left(variant)
    records, hidden = reference(variant, fed)
    model = insert(build(variant), selections(LAYERS))
    for optimised in (False, True):
        got = run(model, fed | SHARES, optimised=optimised)
        for layer, record in zip(LAYERS, records, strict=True):
            np.testing.assert_array_equal(got[f"{site(layer)}.kept"], record.kept.numpy())
        for b, row in enumerate(records[-1].kept.numpy()):
            there = row[row >= 0]
            assert relative_error(got["y"][b][there], hidden[b][there]) < TOLERANCE
            assert not np.delete(got["y"][b], there, axis=0).any()


@every_writing
def test_scores_of_the_graph_are_those_of_the_reference(name: str) -> None:
    variant = WRITINGS[name]
    fed = padded_on_the_left(variant)
    records, _ = reference(variant, fed)
    chosen = insert_selections(ir.from_proto(build(variant)), selections(LAYERS))
    bias = {f"{site(layer)}.score_bias": np.zeros((1, 1), np.float32) for layer in LAYERS}
    got = run(ir.to_proto(force(chosen)), fed | SHARES | bias)
    for b, start in enumerate(STARTS):
        row = got[f"{site(0)}.score"][b]
        assert np.isneginf(row[:start]).all()
        assert np.isposinf(row[start])  # protected: the first real token, where it stands
        want = records[0].score[b].numpy()[start + 1 :]
        assert relative_error(row[start + 1 :], want) < TOLERANCE
        there = records[0].kept[b].numpy()
        there = there[there >= 0]
        second = got[f"{site(1)}.score"][b][1 : len(there)]
        assert relative_error(second, records[1].score[b].numpy()[there[1:]]) < TOLERANCE


@every_writing
def test_a_sample_equals_the_sample_alone(name: str) -> None:
    variant = replace(WRITINGS[name], pool="mask")
    fed = padded_on_the_left(variant)
    model = insert(build(variant), selections(LAYERS))
    together = run(model, fed | SHARES)
    for b, start in enumerate(STARTS):
        single = run(model, alone(fed, b) | SHARES)
        assert relative_error(together["y"][b], single["y"][0]) < TOLERANCE
        for layer in LAYERS:
            kept = together[f"{site(layer)}.kept"][b]
            np.testing.assert_array_equal(kept[kept >= 0] - start, single[f"{site(layer)}.kept"][0])


def test_without_protection_the_row_is_still_that_of_the_first_real_token() -> None:
    variant, budget = Variant(pool="mask"), Budget(protected=0)
    fed = padded_on_the_left(variant)
    model = insert(build(variant), selections((0,), budget=budget))
    share = amounts((0,), (500,))
    together = run(model, fed | share)
    for b, start in enumerate(STARTS):
        kept = together[f"{site(0)}.kept"][b]
        single = run(model, alone(fed, b) | share)[f"{site(0)}.kept"][0]
        np.testing.assert_array_equal(kept[kept >= 0] - start, single)


def test_the_row_of_slot_0_would_keep_other_tokens() -> None:
    """Else none of the above could tell the two apart."""
    variant = Variant()
    fed = padded_on_the_left(variant)
    model, _ = write(variant)
    probabilities = dense(model, [0]).run(fed, [np.zeros(fed["mask"].shape, bool)])
    rows = next(x for x in probabilities.values() if x.ndim == 4).mean(axis=1)
    differing = [
        set(np.argsort(-rows[b, 0, start + 1 :])[:n])
        != set(np.argsort(-rows[b, start, start + 1 :])[:n])
        for b, start in enumerate(STARTS)
        for n in (1, 2)
    ]
    assert any(differing)


def test_the_marker_op_reads_the_first_real_token() -> None:
    seeded = torch.Generator().manual_seed(4)
    query, key = torch.randn(2, 3, 2, max(RAGGED), 8, generator=seeded)
    valid = torch.arange(max(RAGGED)) >= torch.tensor(STARTS)[:, None]
    got = signals.class_row(query, key, valid)
    for b, start in enumerate(STARTS):
        part = [x[b : b + 1, :, start:] for x in (query, key)]
        want = signals.class_row(*part, valid[b : b + 1, start:])
        torch.testing.assert_close(got[b, start:], want[0])
        assert not got[b, :start].any()
