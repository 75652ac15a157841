"""Selectors without published vectors by hand; options, budgets and refusals of the others."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.errors import BadInputError
from secateur.models.selectors import SELECTORS, resolve_selector
from secateur.models.selectors.core import best
from secateur.models.selectors.zero_tprune import importance


def alive(batch, tokens):
    return torch.ones(batch, tokens, dtype=torch.bool)


def directions(*degrees):
    """One sample of tokens in the plane."""
    angles = torch.tensor([math.radians(degree) for degree in degrees])
    return torch.stack([angles.cos(), angles.sin()], dim=1)[None]


def kept(name, signals, n_kept, protected=0, **options):
    """Positions per sample that stay, in their order."""
    chosen = resolve_selector(name, options)
    batch, tokens = next(iter(signals.values())).shape[0], signals["valid"].shape[1]
    made = chosen.decide(signals, torch.full((batch,), n_kept), protected)
    count = torch.full((batch,), n_kept) if made.count is None else made.count
    score = made.score.clone()
    score[:, :protected] = torch.inf
    stays = best(score.masked_fill(~signals["valid"], -torch.inf), count)
    return [torch.arange(tokens)[row].tolist() for row in stays]


# --- ToDRE -----------------------------------------------------------------------------------


def test_todre_by_nearest_pick_goes_in_the_order_worked_out_by_hand():
    # From 3, which is the pivot, 0 is opposite. The larger cosine to these two is 0 for token 1,
    # 0.34 for 2 and 0.98 for 4; token 1 does not come nearer to either of the last two.
    signals = {
        "hidden": directions(180, 90, 250, 0, 10),
        "class_row": torch.tensor([[0.1, 0.2, 0.1, 0.5, 0.1]]),
        "valid": alive(1, 5),
    }
    picks = [3, 0, 1, 2, 4]
    for n_kept in range(1, 6):
        assert kept("todre", signals, n_kept, diversity="nearest") == [sorted(picks[:n_kept])]


def test_todre_sums_cosines_to_all_picks():
    # pivot 0 at 0 degrees. Cosines to it: 1: -0.5, 2: -0.34, 3: 0.5. Second pick: 1 (120).
    # Then the sums are 2: cos 110 + cos 10 = 0.64, 3: cos 60 + cos 60 = 1.0 -> 2 before 3,
    # whereas the nearest pick of 2 is at 10 degrees and that of 3 at 60 -> 3 before 2.
    signals = {
        "hidden": directions(0, 120, 110, 60),
        "class_row": torch.tensor([[0.7, 0.1, 0.1, 0.1]]),
        "valid": alive(1, 4),
    }
    assert kept("todre", signals, 3) == [[0, 1, 2]]
    assert kept("todre", signals, 3, diversity="nearest") == [[0, 1, 3]]


def test_todre_drops_the_image_where_neither_side_looks():
    # two tokens of text, then two of the image; rows of attention
    text, image = [[0.5, 0.45, 0.05, 0.0], [0.5, 0.5, 0.0, 0.0]], [0.05, 0.0, 0.5, 0.45]
    apart = torch.tensor([*text, image, image])
    mixed = apart.clone()
    mixed[0] = torch.tensor([0.3, 0.3, 0.4, 0.0])  # text gives (0.4 + 0) / 2 to the image
    signals = {
        "full": torch.stack([apart, mixed])[:, None],
        "image": torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2),
        "valid": alive(2, 4),
    }
    assert kept("todre_relevance", signals, 4) == [[0, 1], [0, 1, 2, 3]]
    assert kept("todre_relevance", signals, 4, threshold=0.3) == [[0, 1], [0, 1]]


# --- Zero-TPrune -----------------------------------------------------------------------------


def test_page_rank_of_a_chain_worked_out_by_hand():
    # token 0 looks at 1, 1 at 2, 2 at itself and 0 half and half
    attention = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]]]])
    one = importance(attention, alive(1, 3), 1, (0.0, 100.0))
    assert one.tolist() == [[0.5, 1.0, 1.5]]
    two = importance(attention, alive(1, 3), 2, (0.0, 100.0))
    assert two.tolist() == [[0.75, 0.5, 1.75]]
    many = importance(attention, alive(1, 3), 200, (0.0, 100.0))
    torch.testing.assert_close(many, torch.tensor([[0.75, 0.75, 1.5]]))


def test_heads_outside_the_bounds_of_variance_do_not_count():
    # their scores (1, 1, 1), (1.5, 1.5, 0) and (3, 0, 0) have variances 0, 0.5 and 2
    even = torch.full((3, 3), 1 / 3)
    mild = torch.tensor([0.5, 0.5, 0.0]).expand(3, 3)
    steep = torch.tensor([1.0, 0.0, 0.0]).expand(3, 3)
    attention = torch.stack([even, mild, steep])[None]
    score = importance(attention, alive(1, 3), 1, (0.01, 0.7))
    torch.testing.assert_close(score, torch.tensor([[1.5, 1.5, 0.0]]))
    both = importance(attention, alive(1, 3), 1, (0.01, 2.1))
    wanted = torch.tensor([[(1.5**2 + 9) / 2, 1.5**2 / 2, 0.0]]).sqrt()
    torch.testing.assert_close(both, wanted)
    nobody = importance(attention[:, :1], alive(1, 3), 1, (0.01, 0.7))
    torch.testing.assert_close(nobody, torch.ones(1, 3))


def test_zero_tprune_drops_the_likest_of_the_less_important_first():
    # all look at 0, 1, 2, 3 with falling weight: the less important half is 2 and 3
    attention = torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(4, 4)[None, None]
    keys = directions(0, 90, 5, 45)[:, None]  # 2 is like 0, 3 is not so like 0 or 1
    signals = {"full": attention, "keys": keys, "valid": alive(1, 4)}
    assert kept("zero_tprune", signals, 3, similar=1.0) == [[0, 1, 3]]
    assert kept("zero_tprune", signals, 3, similar=0.0) == [[0, 1, 2]]
    assert kept("zero_tprune", signals, 2, similar=0.5) == [[0, 1]]


# --- the others --------------------------------------------------------------------------------


def test_divprune_never_picks_twice_unless_faithful():
    hidden = torch.eye(3)[[0, 0, 1, 1, 2, 2]][None]
    signals = {"hidden": hidden, "valid": alive(1, 6)}
    assert kept("divprune", signals, 5) == [[0, 1, 2, 3, 4]]
    assert kept("divprune", signals, 5, faithful=True) == [[0, 2, 4]]


def test_padding_and_protected_tokens_are_not_picked_from():
    hidden = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    alone = {"hidden": hidden[:, 1:6], "valid": alive(1, 5)}
    valid = torch.arange(9)[None] < 6
    padded = {"hidden": hidden, "valid": valid}
    want = [position + 1 for position in kept("divprune", alone, 3)[0]]
    assert kept("divprune", padded, 4, protected=1) == [[0, *want]]


@pytest.mark.parametrize(("n_kept", "want"), [(3, [6, 7, 8]), (5, [6, 7, 8]), (2, [6, 7])])
def test_rows_of_fopru_stay_whole_where_one_fits(n_kept, want):
    full = torch.full((1, 1, 9, 9), 0.01)
    full[..., 6:] = 0.2
    full[..., 0] = 0.3
    signals = {"full": full, "valid": alive(1, 9)}
    assert kept("fopru", signals, n_kept, strategy="row") == [want]


def test_hiprune_keeps_anchors_before_their_neighbours():
    middle, deep = torch.full((9,), 0.1), torch.linspace(0, 0.2, 9)
    middle[4] = 1.0
    signals = {"column_means": torch.stack([middle, deep])[None], "valid": alive(1, 9)}
    assert kept("hiprune", signals, 5, alpha=1.0) == [[1, 3, 4, 5, 7]]
    assert kept("hiprune", signals, 3, alpha=1.0) == [[4, 5, 7]]
    assert kept("hiprune", signals, 6, alpha=0.8) == [[1, 3, 4, 5, 7, 8]]


def test_holov_loses_or_fills_what_a_crop_cannot_use():
    class_row = torch.tensor([[0.4, 0.4, 0.01, 0.01, 0.02, 0.01]])
    hidden = torch.ones(1, 6, 2)
    signals = {"class_row": class_row, "hidden": hidden, "valid": alive(1, 6)}
    assert kept("holov", signals, 4, crops=3) == [[0, 1]]
    assert kept("holov", signals, 4, crops=3, fill=True) == [[0, 1, 2, 4]]


def test_lexrank_ranks_separate_parts_apart():
    hidden = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]]])
    signals = {"hidden": hidden, "valid": alive(1, 6)}
    score = SELECTORS["lexrank"].score(**signals, weights="threshold")
    torch.testing.assert_close(score, torch.tensor([[1.0, 1, 1, 6 / 7, 9 / 7, 6 / 7]]))


def test_lexrank_gives_padding_nothing():
    hidden = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True, True, False, False]])
    score = SELECTORS["lexrank"].score
    padded = score(hidden, valid)
    torch.testing.assert_close(padded[:, :3], score(hidden[:, :3], valid[:, :3]))
    assert not padded[:, 3:].any()


SQUARE = {"full": torch.rand(1, 1, 8, 8), "column_means": torch.rand(1, 2, 8), "valid": alive(1, 8)}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fopru", {"strategy": "row"}, "no square grid"),
        ("hiprune", {}, "no square grid"),
        ("hiprune", {"grid_width": 3}, "no grid of that width"),
        ("fopru", {"strategy": "column"}, "unknown strategy"),
        ("todre", {"diversity": "far"}, "unknown diversity"),
        ("holov", {"crops": 0}, "at least one crop"),
        ("lexrank", {"weights": "binary"}, "unknown weights"),
    ],
)
def test_bad_grids_and_options_are_refused_by_name(name, options, message):
    signals = {**SQUARE, "hidden": torch.rand(1, 8, 2), "class_row": torch.rand(1, 8)}
    with pytest.raises(BadInputError, match=message):
        kept(name, signals, 4, **options)


def test_hiprune_needs_two_layers():
    signals = {"column_means": torch.rand(1, 1, 9), "valid": alive(1, 9)}
    with pytest.raises(BadInputError, match="two layers"):
        kept("hiprune", signals, 4, layers="8")
