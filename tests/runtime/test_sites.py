"""Keep ratios and counts at run time."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.runtime.sites import Site, budget_inputs, sites_from_metadata


def _sites() -> tuple[Site, ...]:
    budgets = {
        "share": {"kind": "permille", "input": "share.permille", "default": 600},
        "count": {"kind": "count", "input": "count.k", "default": 32},
        "fixed": {"kind": "permille", "input": None, "default": 500},
    }
    records = [{"site": name, "budget": b, "protected": 2} for name, b in budgets.items()]
    return sites_from_metadata({"secateur.sites": json.dumps(records)})


def _inputs(keep: dict, arrays: dict | None = None, trained: dict | None = None) -> dict:
    return budget_inputs(arrays or {}, keep, sites=_sites(), trained=trained or {})


def test_sites_that_are_not_named_keep_their_default() -> None:
    found = _inputs({})
    assert {name: list(array) for name, array in found.items()} == {
        "share.permille": [600],
        "count.k": [32],
    }
    assert all(array.dtype == np.int64 for array in found.values())


@pytest.mark.parametrize(("ratio", "permille"), [(0.5, 500), (1.0, 1000), (1, 1000), (0.0001, 1)])
def test_a_share_becomes_permille(ratio: float, permille: int) -> None:
    assert list(_inputs({"share": ratio})["share.permille"]) == [permille]


def test_a_count_is_handed_on() -> None:
    assert list(_inputs({"count": 7})["count.k"]) == [7]
    assert list(_inputs({"count": np.int32(7)})["count.k"]) == [7]


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, 64, True, float("nan")])
def test_a_share_outside_its_range_is_refused(bad: float) -> None:
    with pytest.raises(BadInputError, match="keeps a share"):
        _inputs({"share": bad})


@pytest.mark.parametrize("bad", [0.5, 0, 1, -3, True])
def test_a_count_that_is_none_or_below_the_protected_is_refused(bad: float) -> None:
    with pytest.raises(BadInputError, match="keeps a number of tokens"):
        _inputs({"count": bad})


def test_an_unknown_site_gets_the_list_of_sites() -> None:
    with pytest.raises(BadInputError, match="no selection site 'shares'") as caught:
        _inputs({"shares": 0.5})
    assert "share, count, fixed" in caught.value.wanted


def test_a_fixed_budget_cannot_be_set() -> None:
    with pytest.raises(BadInputError, match="fixed number"):
        _inputs({"fixed": 0.5})


def test_a_budget_given_twice_is_refused() -> None:
    with pytest.raises(BadInputError, match="given twice"):
        _inputs({"count": 7}, {"count.k": np.array([7])})


def test_leaving_the_trained_share_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="secateur.runtime.sites"):
        _inputs({"share": 0.7}, trained={"share": 0.7})
        assert not caplog.records
        _inputs({"share": 0.5}, trained={"share": 0.7})
    assert "trained with 0.7" in caplog.text


@pytest.mark.parametrize("text", ["[{}]", '[{"site": "a"}]', '[{"site": "a", "budget": 3}]', "[1]"])
def test_a_site_that_is_not_recorded_properly_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="not recorded properly"):
        sites_from_metadata({"secateur.sites": text})


def test_a_record_that_is_not_json_is_refused() -> None:
    with pytest.raises(BadInputError, match="not JSON"):
        sites_from_metadata({"secateur.sites": "{"})
