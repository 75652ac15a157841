"""Every family in every form: what analysis finds, that removal is exact, that selection holds."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.families.exports import Arrays, Exported, exported
from tests.families.rows import CELLS, LENGTHS, REFUSED, SELECTIONS, TOWERS, Tower, marked

from secateur.errors import PreconditionError
from secateur.export.verify import flatten_outputs
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.axes import leaves, size
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove
from secateur.graph_passes.sites import Site, attention_of
from secateur.runtime.compare import relative_error
from secateur.workflow.answers import token_outputs
from secateur.workflow.golden import budget_feeds, golden_from_torch, site_records, token_sites
from secateur.workflow.model_session import open_model
from secateur.workflow.parity import Options, check
from secateur.workflow.selecting import Select, select_tokens

EXACT = 1e-5
"""Relative, float32: another order of summation."""
SEEN = 1e-3
"""A change that is smaller than this proves nothing."""
PERMILLE = 500

every_file = pytest.mark.parametrize(("family", "form"), marked(CELLS))
every_tower = pytest.mark.parametrize(("family", "form", "tower"), marked(TOWERS))
every_selection = pytest.mark.parametrize(
    ("family", "form", "tower", "n_sites"), marked(SELECTIONS)
)


@functools.cache
def analysis(family: str, form: str) -> Analysis:
    return analyse(exported(family, form).model)


@functools.cache
def selecting(family: str, form: str, tower: int, n_sites: int) -> ir.Model:
    """The model that keeps half of the valid tokens behind the tower's first sites."""
    cell = exported(family, form)
    row = cell.family.towers[tower]
    wanted = [
        Select(site, row.selector, PERMILLE / 1000, row.special) for site in row.sites[:n_sites]
    ]
    return select_tokens(cell.model, wanted)


def arrays(cell: Exported) -> Arrays:
    return {name: tensor.numpy() for name, tensor in cell.family.batch().items()}


def alone(cell: Exported, sample: int) -> Arrays:
    """One sample of the batch, without its padding where the file takes another length."""
    return {
        name: array[sample : sample + 1]
        if array.ndim == 4 or cell.tokens_are_fixed
        else array[sample : sample + 1, : LENGTHS[sample]]
        for name, array in arrays(cell).items()
    }


def run(model: ir.Model, *batches: Arrays) -> list[Arrays]:
    with open_model(model) as call:
        return [call(batch) for batch in batches]


def by_layer(found: Analysis, role: str) -> dict[str, int]:
    return {group.layer: group.size for group in found.by_role(role) if group.removable}


@every_file
def test_the_file_gives_the_numbers_of_torch(family: str, form: str) -> None:
    cell = exported(family, form)
    batches = [arrays(cell), alone(cell, 1)]
    for batch, got in zip(batches, run(cell.model, *batches), strict=True):
        inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
        with torch.no_grad():
            wanted = flatten_outputs(cell.net(**inputs))
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert relative_error(got[name], value.numpy()) < EXACT


@every_file
def test_heads_of_every_layer_are_found(family: str, form: str) -> None:
    row = exported(family, form).family
    wanted = {site: tower.heads for tower in row.towers for site in tower.sites}
    assert by_layer(analysis(family, form), "heads") == wanted | row.pooling.get("heads", {})


@every_file
def test_heads_are_as_wide_as_configured(family: str, form: str) -> None:
    cell = exported(family, form)
    wanted = {
        (site, tower.heads, tower.head_width)
        for tower in cell.family.towers
        for site in tower.sites
    }
    assert {_sizes(site) for site in find_sites(cell.model)} == wanted


def _sizes(site: Site) -> tuple[str, int, int]:
    there = attention_of(site)
    return site.name, there.heads, there.head_dim


@every_file
def test_ffn_of_every_layer_is_found_and_nothing_else_is_called_ffn(family: str, form: str) -> None:
    found = analysis(family, form)
    row = exported(family, form).family
    wanted = {site: tower.ffn for tower in row.towers for site in tower.sites}
    wanted |= row.pooling.get("ffn", {})
    assert by_layer(found, "ffn") == wanted
    assert len(found.by_role("ffn")) == len(wanted)


@every_file
def test_every_tower_has_one_residual_width(family: str, form: str) -> None:
    widths = [group.size for group in analysis(family, form).by_role("residual")]
    row = exported(family, form).family
    pooling = row.pooling.get("residual", {}).values()
    assert sorted(widths) == sorted([*(tower.width for tower in row.towers), *pooling])


@every_tower
def test_tokens_of_a_tower_are_found(family: str, form: str, tower: int) -> None:
    found, row = analysis(family, form), exported(family, form).family.towers[tower]
    names = {group.atom: group.role for group in found.groups}
    for site in find_sites(found.model, found.axes):
        if site.name in row.sites:
            tokens = found.axes.of(site.block)[1]
            assert str(size(tokens)) == exported(family, form).tokens(row)
            assert {names[atom] for atom in leaves(tokens)} == {"tokens"}


@every_file
def test_half_the_heads_and_ffn_removed_equals_the_masked_graph(family: str, form: str) -> None:
    cell, found = exported(family, form), analysis(family, form)
    plan = half(found)
    small = remove(cell.model, plan)
    assert elements(small) < 0.9 * elements(cell.model)
    batch = arrays(cell)
    (got,), (wanted,), (dense,) = (
        run(model, batch) for model in (small, mask(cell.model, plan), cell.model)
    )
    for name in cell.family.outputs:
        assert relative_error(got[name], wanted[name]) < EXACT
        assert relative_error(dense[name], wanted[name]) > SEEN


def half(found: Analysis) -> Plan:
    """Keep every second head, and another half of the FFN of each layer."""
    keep = {
        group.name: tuple(range(group.role == "heads", group.size, 2))
        for role in ("heads", "ffn")
        for group in found.by_role(role)
        if group.removable
    }
    return make_plan(found, keep)


def elements(model: ir.Model) -> int:
    return sum(
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )


@every_selection
def test_a_sample_in_a_batch_gives_what_it_gives_alone(
    family: str, form: str, tower: int, n_sites: int
) -> None:
    cell, model = exported(family, form), selecting(family, form, tower, n_sites)
    budgets = {name: x for feeds in budget_feeds(model, {}).values() for name, x in feeds.items()}
    singles = [alone(cell, sample) | budgets for sample in range(len(LENGTHS))]
    whole, *apart = run(model, arrays(cell) | budgets, *singles)
    (dense,) = run(cell.model, arrays(cell))
    row = cell.family.towers[tower]
    for sample, single in enumerate(apart):
        left = valid_tokens(row, cell, sample)
        for record in site_records(model):
            left = max(-(-left * PERMILLE // 1000), row.special + row.pointed_at)
            kept = whole[record["kept_output"]][sample]
            assert kept[kept >= 0].tolist() == single[record["kept_output"]][0].tolist()
            assert (kept >= 0).sum() == left
        for name in cell.family.outputs:
            rows = slice(None) if single[name].ndim == 2 else slice(single[name].shape[1])
            assert relative_error(whole[name][sample][rows], single[name][0]) < EXACT
    assert max(relative_error(whole[name], dense[name]) for name in cell.family.outputs) > SEEN


def valid_tokens(row: Tower, cell: Exported, sample: int) -> int:
    return LENGTHS[sample] if row.tokens == "tokens" else int(row.tokens)


@every_selection
def test_forced_twin_agrees_with_the_torch_reference(
    family: str, form: str, tower: int, n_sites: int
) -> None:
    cell, model = exported(family, form), selecting(family, form, tower, n_sites)
    assert_agrees_when_forced(cell, model, n_sites)


def assert_agrees_when_forced(cell: Exported, model: ir.Model, n_sites: int) -> None:
    golden = golden_from_torch(
        cell.net, arrays(cell), token_sites(model, {}), feeds=budget_feeds(model, {})
    )
    named = {name: golden.outputs[name] for name in cell.family.outputs}
    options = Options(token_outputs=token_outputs(analyse(cell.model)))
    with open_model(force(model)) as twin:
        report = check([replace(golden, outputs=named)], twin, free=None, options=options)
    assert report.passed, [(row.subject, row.note) for row in report.rows() if not row.passed]
    assert len(report.sites) == n_sites
    assert {row.name for row in report.outputs} == set(cell.family.outputs)


@pytest.mark.parametrize("n_sites", [1, 2])
@pytest.mark.parametrize(
    ("family", "selector"),
    [
        *itertools.product(
            ["clip-text", "clip-vision"], ["aim", "divprune", "lexrank", "random", "todre"]
        ),
        ("clip-vision", "holov"),  # reads a class token's row
    ],
)
def test_merging_and_picking_agree_at_sites_behind_one_another(
    family: str, selector: str, n_sites: int
) -> None:
    """Causal masks, the end of a text and hidden states that come out tell tokens apart.

    The last site is the last block, so that new tokens are an output themselves.
    """
    cell = exported(family, "from_torch-20-sdpa")
    (tower,) = cell.family.towers
    wanted = [
        Select(site, selector, PERMILLE / 1000, tower.special) for site in tower.sites[-n_sites:]
    ]
    assert_agrees_when_forced(cell, select_tokens(cell.model, wanted), n_sites)


def test_a_method_for_pictures_is_refused_behind_another_selection() -> None:
    cell = exported("clip-vision", "from_torch-20-sdpa")
    (tower,) = cell.family.towers
    wanted = [Select(site, "vflowopt", PERMILLE / 1000, tower.special) for site in tower.sites]
    with pytest.raises(PreconditionError, match="where patches stand in the picture"):
        select_tokens(cell.model, wanted)


@pytest.mark.parametrize(("cell", "reason"), REFUSED.items(), ids=str)
def test_what_cannot_be_selected_is_refused_with_its_reason(
    cell: tuple[str, str, int], reason: str
) -> None:
    with pytest.raises(PreconditionError, match=reason) as caught:
        selecting(*cell, 1)
    assert caught.value.where
    assert caught.value.next_step


def test_two_towers_in_one_selection_are_refused() -> None:
    cell = exported("clip", "legacy-17-sdpa")
    first = [
        Select(tower.sites[0], tower.selector, PERMILLE / 1000) for tower in cell.family.towers
    ]
    with pytest.raises(PreconditionError, match="do not follow one another") as caught:
        select_tokens(cell.model, first)
    assert "one branch at a time" in str(caught.value.next_step)


def test_the_reference_comparison_sees_a_wrong_token() -> None:
    """The comparison above has to be able to fail: another token is forced than was chosen."""
    cell, model = exported("bert", "legacy-17-sdpa"), selecting("bert", "legacy-17-sdpa", 0, 1)
    golden = golden_from_torch(
        cell.net, arrays(cell), token_sites(model, {}), feeds=budget_feeds(model, {})
    )
    ((name, site),) = golden.sites.items()
    kept = site.kept.copy()
    kept[0, -1] = next(i for i in range(1, LENGTHS[0]) if i not in kept[0])
    wrong = replace(golden, sites={name: replace(site, kept=np.sort(kept, axis=1))})
    with open_model(force(model)) as twin:
        assert not check([wrong], twin, free=None, options=Options()).passed
