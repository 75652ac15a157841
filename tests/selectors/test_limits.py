"""Every registered selector with ties, one token, none, all, and numbers that are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.graph_passes.selection.budget import Budget
from secateur.models.select_tokens import Keep, KeptTokens, choose, counts
from secateur.models.selectors import SELECTORS, Selection, Selector, resolve_selector

NAMES = tuple(SELECTORS)
SIDE = 6
SIZES = {
    "batch": 2,
    "heads": 2,
    "query_heads": 2,
    "head_dim": 4,
    "width": 8,
    "layers": 2,
    "channels": 6,
    "classes": 3,
    "presence": 2,
    "frames": 4,
    "text_width": 8,
}
_GRID = {"base": 3, "columns": 9, "cell": 2.5}
OPTIONS = {"holov": {"crops": 4}, "vflowopt": _GRID, "vflowopt_entropy": _GRID}
every_selector = pytest.mark.parametrize("name", NAMES)


def made(name: str) -> Selector:
    return resolve_selector(name, OPTIONS.get(name))


def protected_by(name: str) -> int:
    return 0 if name == "top_vim" else 1


def signals_of(chosen: Selector, n_tokens: int, *, equal: bool = False) -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(3), {}
    for signal in chosen.signals:
        dims = chosen.axes(signal)
        shape = [n_tokens if dim == "tokens" else SIZES[dim] for dim in dims]
        values = torch.ones(shape) if equal else torch.randn(shape, generator=generator)
        if dims[-1] == "tokens" and signal not in {"mask_logits", "ssm_out_backward"}:
            values = values.softmax(dim=-1)
        found[signal] = values
    if "valid" in found:
        found["valid"] = torch.ones(2, n_tokens, dtype=torch.bool)
    return found


def decided(
    name: str, signals: dict[str, Tensor], n_tokens: int, permille: int = 500
) -> tuple[Selection, KeptTokens]:
    chosen, keep = made(name), Keep(permille, protected_by(name))
    valid = signals.get("valid", torch.ones(2, n_tokens, dtype=torch.bool))
    selection = chosen.decide(signals, counts(valid, keep), keep.protected)
    return selection, choose(selection, valid, keep)


@every_selector
def test_equal_tokens_give_numbers_and_as_many_places_as_asked(name: str) -> None:
    signals = signals_of(made(name), SIDE**2 + 1, equal=True)
    selection, kept = decided(name, signals, SIDE**2 + 1)
    assert not bool(selection.score.isnan().any())
    again = decided(name, signals, SIDE**2 + 1)[1]
    assert kept.index.tolist() == again.index.tolist()
    for row, valid in zip(kept.index, kept.valid, strict=True):
        there = row[valid].tolist()
        assert len(set(there)) == len(there) >= 1


@every_selector
def test_equal_samples_are_decided_equally(name: str) -> None:
    signals = signals_of(made(name), SIDE**2 + 1)
    twins = {key: value[:1].expand_as(value).contiguous() for key, value in signals.items()}
    kept = decided(name, twins, SIDE**2 + 1)[1]
    assert kept.index[0].tolist() == kept.index[1].tolist()


@every_selector
def test_all_stay_where_all_are_asked_for(name: str) -> None:
    n_tokens = SIDE**2 + 1
    selection, kept = decided(name, signals_of(made(name), n_tokens), n_tokens, permille=1000)
    if selection.count is None:
        assert kept.valid.all()
        assert sorted(kept.index[0].tolist()) == list(range(n_tokens))
    else:
        assert int(kept.valid.sum(dim=1).max()) <= n_tokens


@every_selector
def test_an_image_without_patches_keeps_its_only_token(name: str) -> None:
    signals = signals_of(made(name), 1)
    if name in {"quota"}:
        signals["relevance"] = torch.ones(2, 1)
    kept = decided(name, signals, 1)[1]
    assert kept.index.tolist() == [[0], [0]]
    assert kept.valid.all()


@every_selector
def test_a_sample_of_padding_alone_keeps_nothing_and_harms_nobody(name: str) -> None:
    n_tokens = SIDE**2 + 1
    signals = signals_of(made(name), n_tokens)
    if "valid" not in signals:
        pytest.skip("the method never sees padding: its caller ranks it last")
    alone = decided(name, {key: value[:1] for key, value in signals.items()}, n_tokens)[1]
    signals["valid"][1] = False
    kept = decided(name, signals, n_tokens)[1]
    assert not kept.valid[1].any()
    assert kept.index[0][kept.valid[0]].tolist() == alone.index[0][alone.valid[0]].tolist()


@every_selector
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_a_signal_that_is_no_number_is_refused_or_does_no_harm(name: str, bad: float) -> None:
    n_tokens = SIDE**2 + 1
    signals = signals_of(made(name), n_tokens)
    for signal, values in signals.items():
        if values.is_floating_point():
            signals[signal] = values.clone()
            signals[signal][..., -1] = bad
    try:
        kept = decided(name, signals, n_tokens)[1]
    except BadInputError as refused:
        what = refused.what
        assert "NaN" in what
        return
    for row, valid in zip(kept.index, kept.valid, strict=True):
        there = row[valid].tolist()
        assert len(set(there)) == len(there) >= 1
        assert all(0 <= place < n_tokens for place in there)


@pytest.mark.parametrize(
    ("name", "options"),
    [("hiprune", {}), ("fopru", {"strategy": "row"}), ("hiprune", {"grid_width": 5})],
)
def test_patches_that_fill_no_grid_are_refused(name: str, options: dict[str, str | int]) -> None:
    n_tokens = 24  # 23 patches
    chosen = resolve_selector(name, options)
    signals = signals_of(chosen, n_tokens)
    with pytest.raises(BadInputError, match="fill no"):
        chosen.decide(signals, torch.tensor([9, 9]), 1)


def test_more_crops_than_patches_still_keep_as_many_as_asked() -> None:
    chosen = resolve_selector("holov", {"crops": 16, "fill": True})
    signals = signals_of(chosen, 10)
    keep = Keep(500, 1)
    valid = signals["valid"]
    selection = chosen.decide(signals, counts(valid, keep), 1)
    assert choose(selection, valid, keep).valid.sum(dim=1).tolist() == [5, 5]


@pytest.mark.parametrize(("base", "columns"), [(27, 28), (2, 3), (6, 1)])
def test_a_table_made_for_another_number_of_tokens_loses_nobody(base: int, columns: int) -> None:
    chosen = resolve_selector("vflowopt", {"base": base, "columns": columns})
    n_tokens = SIDE**2 + 1
    signals = signals_of(chosen, n_tokens)
    keep, valid = Keep(500, 1), signals["valid"]
    kept = choose(chosen.decide(signals, counts(valid, keep), 1), valid, keep)
    merged = chosen.merge(signals, kept.index, kept.valid, 1)
    weights = merged.weights * kept.valid[:, :, None]
    assert not bool(weights.isnan().any())
    torch.testing.assert_close(weights.sum(dim=2), kept.valid.float())


@pytest.mark.parametrize("permille", [0, -1, 1001])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(permille: int) -> None:
    with pytest.raises(BadInputError):
        Keep(permille)
    with pytest.raises(BadInputError):
        Budget("permille", permille)


def test_a_count_of_no_token_is_refused() -> None:
    with pytest.raises(BadInputError, match="keeps nothing"):
        Budget("count", 0)
