"""Attention that public models write in forms of their own, against the module in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import pytest
import torch
import transformers
from tests.families.exports import dynamic_axes
from tests.families.rows import FFN, HEADS, LAYERS, LENGTHS, PAD, WIDTH, WORDS, texts
from torch import Tensor, nn

from secateur.export.torch_export import from_torch
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.groups import analyse
from secateur.runtime.compare import relative_error
from secateur.workflow.answers import token_outputs
from secateur.workflow.golden import budget_feeds, golden_from_torch, site_records, token_sites
from secateur.workflow.model_session import open_model
from secateur.workflow.parity import Options, check
from secateur.workflow.selecting import Select, select_tokens

EXACT, SEEN, PERMILLE = 1e-5, 1e-3, 500

_TEXT = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": FFN,
    "vocab_size": WORDS,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
}


@dataclass(frozen=True)
class Row:
    """A network, the blocks to select behind, and the selector that is tried."""

    build: Callable[[], nn.Module]
    path: str
    selector: str = "class_row"


def _bloom() -> nn.Module:
    """Batch and heads in one axis, q, k, v of a head side by side, and a bias of positions."""
    return transformers.BloomModel(
        transformers.BloomConfig(
            hidden_size=WIDTH, n_head=HEADS, n_layer=LAYERS, vocab_size=WORDS, use_cache=False
        )
    )


def _deberta() -> nn.Module:
    """Scores of tokens against relative positions, gathered by position, both ways."""
    return transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            **_TEXT,
            relative_attention=True,
            position_buckets=4,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
        )
    )


ROWS = {
    "bloom": Row(_bloom, "h", "column_mean"),
    "deberta_v2": Row(_deberta, "encoder.layer"),
}
every_row = pytest.mark.parametrize("name", ROWS)
every_selection = pytest.mark.parametrize(
    ("name", "n_sites"), [(name, n) for name in ROWS for n in (1, LAYERS)]
)
pytestmark = pytest.mark.sweep  # an export is ten seconds; test_forms.py has the same forms


@functools.cache
def exported(name: str) -> tuple[nn.Module, ir.Model]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ROWS[name].build().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    net.set_attn_implementation("eager")
    return net, from_torch(net, texts(), dynamic_axes(texts(), fixed=False))


@functools.cache
def selecting(name: str, n_sites: int) -> ir.Model:
    row = ROWS[name]
    sites = [f"{row.path}.{i}" for i in range(n_sites)]
    wanted = [Select(site, row.selector, PERMILLE / 1000, 1) for site in sites]
    return select_tokens(exported(name)[1], wanted)


def fed(model: ir.Model, inputs: dict[str, Tensor]) -> dict:
    budgets = {key: x for feeds in budget_feeds(model, {}).values() for key, x in feeds.items()}
    return {key: tensor.numpy() for key, tensor in inputs.items()} | budgets


@every_selection
def test_a_sample_in_a_batch_gives_what_it_gives_alone(name: str, n_sites: int) -> None:
    model = selecting(name, n_sites)
    singles = [
        {key: x[i : i + 1, : LENGTHS[i]] for key, x in texts().items()} for i in range(len(LENGTHS))
    ]
    with open_model(model) as call:
        whole, *apart = [call(fed(model, batch)) for batch in (texts(), *singles)]
    with torch.no_grad():
        dense = exported(name)[0](**texts())[0].numpy()
    for i, single in enumerate(apart):
        left = LENGTHS[i]
        for record in site_records(model):
            left = -(-left * PERMILLE // 1000)
            kept = whole[record["kept_output"]][i]
            assert kept[kept >= 0].tolist() == single[record["kept_output"]][0].tolist()
            assert (kept >= 0).sum() == left
        rows = whole["last_hidden_state"][i, : LENGTHS[i]]
        assert relative_error(rows, single["last_hidden_state"][0]) < EXACT
    assert relative_error(whole["last_hidden_state"], dense) > SEEN


@every_selection
def test_forced_twin_agrees_with_the_torch_reference(name: str, n_sites: int) -> None:
    net, dense = exported(name)
    model = selecting(name, n_sites)
    batch = {key: tensor.numpy() for key, tensor in texts().items()}
    golden = golden_from_torch(net, batch, token_sites(model, {}), feeds=budget_feeds(model, {}))
    options = Options(token_outputs=token_outputs(analyse(dense)))
    with open_model(force(model)) as twin:
        report = check([golden], twin, free=None, options=options)
    assert report.passed, [(row.subject, row.note) for row in report.rows() if not row.passed]
    assert len(report.sites) == n_sites
