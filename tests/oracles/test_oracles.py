"""Published methods, held to what their authors' code computed."""

from __future__ import annotations

import oracle_sets
import pytest


def test_case_agrees_with_the_published_code(oracle_path, carried):
    if reason := carried.left_out.get(oracle_path.stem):
        pytest.skip(reason)
    carried.check(oracle_sets.read(oracle_path))


def test_every_check_has_cases_in_the_subset_that_is_in_the_repository():
    data = oracle_sets.HERE / "data"
    assert set(oracle_sets.carried_sets()) <= set(oracle_sets.set_names(data))


def test_sets_without_a_check_are_counted_and_named(tmp_path):
    for name in ("spa_groups", "no_such_method"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "case0.npz").touch()
    line = oracle_sets.closing_line(tmp_path)
    assert line == "oracles: 1 sets carried (1 cases), 1 not carried: no_such_method"


def test_the_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_ORACLES", str(tmp_path))
    assert oracle_sets.folder() == tmp_path


def test_a_chosen_folder_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_ORACLES", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="SECATEUR_ORACLES"):
        oracle_sets.folder()
