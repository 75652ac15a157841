"""Searches: the front, targets that cannot be met, journals, and layer times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from secateur.calibration.search.journal import Journal
from secateur.calibration.search.layer_times import layer_times
from secateur.calibration.search.pareto import Effort, Point, Space, front, search, under, within
from secateur.errors import BadInputError

SPACE = Space((2, 8, 8, 8))


def evaluate(genes: tuple[int, ...]) -> tuple[float, float]:
    """Cheap where levels are high; the second gene loses most, the last one nothing."""
    weights = (0.0, 3.0, 1.0, 0.0)
    return 30.0 - sum(genes), sum(w * g for w, g in zip(weights, genes, strict=False)) / 10


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point((i,), *pair) for i, pair in enumerate(pairs)]


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    found = front(points((1, 9), (2, 5), (3, 6), (4, 1), (4, 2), (5, 1)))
    assert [(p.cost, p.loss) for p in found] == [(1, 9), (2, 5), (4, 1)]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_finds_what_is_free(seed: int) -> None:
    found = search(SPACE, evaluate, Journal(None, {}), Effort(200, seed))
    best = within(found, loss=0.0)
    assert best.genes[1:] == (0, 0, 7)


def test_a_search_with_an_aim_finds_cheaper_candidates_there() -> None:
    weights = np.array([0.05, 0.04, 0.03, 0.02, 0.015])

    def schedule(genes: tuple[int, ...]) -> tuple[float, float]:
        """Tokens that five layers see, and a loss that grows faster than what they drop."""
        levels = np.array(genes)
        seen = float(np.cumprod(1 - levels / 10).sum()) + 0.02 * int((levels > 0).sum())
        return seen, float((weights * levels**1.5).sum())

    def cheapest(off: Callable[[Point], float] | None, seed: int) -> float:
        effort = Effort(150, seed, off)
        found = search(Space((8,) * 5), schedule, Journal(None, {}), effort)
        return within(found, loss=0.6).cost

    seeds = range(10)
    aimed = [cheapest(lambda point: abs(point.loss - 0.6), seed) for seed in seeds]
    assert np.mean(aimed) < np.mean([cheapest(None, seed) for seed in seeds])


def test_a_search_looks_at_no_candidate_twice_and_ends_with_the_space() -> None:
    asked = []

    def once(genes: tuple[int, ...]) -> tuple[float, float]:
        asked.append(genes)
        return evaluate(genes)

    found = search(Space((2, 3)), once, Journal(None, {}), Effort(100, 0))
    assert len(found) == len(set(asked)) == len(asked) == 6


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = search(SPACE, evaluate, Journal(None, {}), Effort(60, 3))
    path, asked = tmp_path / "search.jsonl", []

    def dies(genes: tuple[int, ...]) -> tuple[float, float]:
        if len(asked) == 25:
            raise KeyboardInterrupt
        asked.append(genes)
        return evaluate(genes)

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, dies, Journal(path, {"a": 1}), Effort(60, 3))
    with path.open("a") as file:
        file.write('{"genes": [0, 1,')  # killed while it wrote

    def rest(genes: tuple[int, ...]) -> tuple[float, float]:
        assert genes not in asked
        return evaluate(genes)

    again = search(SPACE, rest, Journal(path, {"a": 1}), Effort(60, 3))
    assert again == whole
    assert len(Journal(path, {"a": 1})) == 60


def test_a_journal_keeps_what_was_measured_when_the_search_began(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    assert Journal(path, {}).once("times", lambda: [1, 2]) == [1, 2]
    assert Journal(path, {}).once("times", lambda: [3, 4]) == [1, 2]


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "search.jsonl", {"model": "a"})
    with pytest.raises(BadInputError, match="of another search"):
        Journal(tmp_path / "search.jsonl", {"model": "b"})


@pytest.mark.parametrize("text", ["", "no json\n", '{"search": 1}\n{"genes": \n{}\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "search.jsonl").write_text(text)
    with pytest.raises(BadInputError, match="journal"):
        Journal(tmp_path / "search.jsonl", {})


def test_targets_pick_the_cheapest_and_the_closest() -> None:
    found = points((1, 9), (2, 5), (4, 1))
    assert within(found, loss=6).cost == 2
    assert under(found, cost=3).loss == 5


def test_a_target_out_of_reach_names_the_range() -> None:
    found = points((1, 9), (4, 1))
    with pytest.raises(BadInputError, match="1 to 4 ms"):
        under(found, cost=0.5)
    with pytest.raises(BadInputError, match="losses from 1"):
        within(found, loss=0.5)


def test_a_space_without_choice_is_refused() -> None:
    with pytest.raises(BadInputError, match="nothing to search"):
        search(Space((1, 1)), evaluate, Journal(None, {}), Effort(5, 0))


def test_layer_times_add_up_to_the_whole() -> None:
    whole = {100: 7.0, 200: 12.0, 400: 22.0}
    times = layer_times(whole, [{n: t + 0.5 for n, t in whole.items()}], n_layers=5)
    assert times.rest_ms == pytest.approx(2.0)
    assert times.site_ms[0] == pytest.approx([0.5] * len(whole))
    for n, ms in whole.items():
        assert times.schedule([(n, n)] * 5) == pytest.approx(ms)
    assert times.layer(800) == pytest.approx(2 * times.layer(400))


def test_a_layer_of_fewer_tokens_and_a_site_are_both_counted() -> None:
    times = layer_times({10: 11.0, 20: 21.0}, [{10: 11.3, 20: 21.3}], n_layers=1)
    assert times.schedule([(20, 10)], [20]) == pytest.approx(1.0 + 20 / 3 + 10 * 2 / 3 + 0.3)
