"""Batches from every kind of source, and what bad data gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateur.calibration.data import batches
from secateur.errors import BadInputError

X = np.arange(10.0).reshape(5, 2)


def test_an_npz_is_cut_into_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X, y=np.arange(5))
    found = list(batches(tmp_path / "x.npz", size=2))
    assert [len(batch["x"]) for batch in found] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in found]), X)


def test_a_folder_gives_one_batch_a_file(tmp_path: Path) -> None:
    for i in (1, 0):
        np.savez(tmp_path / f"{i}.npz", x=X + i)
    assert [batch["x"][0, 0] for batch in batches(tmp_path)] == [0.0, 1.0]


def test_dictionaries_are_read_one_at_a_time() -> None:
    read = []

    def source():
        for i in range(3):
            read.append(i)
            yield {"x": [i]}

    stream = batches(source())
    assert next(stream)["x"].tolist() == [0]
    assert read == [0]


@pytest.mark.parametrize("suffix", ["", ":load_data"])
def test_a_loader_script_is_called(tmp_path: Path, suffix: str) -> None:
    script = tmp_path / "loader.py"
    script.write_text("def load_data():\n    yield {'x': [1.0]}\n    yield {'x': [2.0]}\n")
    assert [batch["x"].tolist() for batch in batches(f"{script}{suffix}")] == [[1.0], [2.0]]


def test_a_missing_function_of_a_script_is_named(tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text("x = 1\n")
    with pytest.raises(BadInputError, match="no function 'mine'"):
        list(batches(f"{script}:mine"))


def test_a_missing_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        list(batches(str(tmp_path / "no.py")))


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(BadInputError, match="cannot be read"):
        list(batches(tmp_path / "x.npz"))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    with pytest.raises(BadInputError, match="cannot be read"):
        list(batches(tmp_path / "x.npz"))


def test_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X, y=np.arange(4))
    with pytest.raises(BadInputError, match="different numbers"):
        list(batches(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("batch", "message"),
    [({"x": [np.nan]}, "NaN"), ({"x": [{}]}, "objects"), ([1], "dictionary"), ({}, "dictionary")],
)
def test_a_bad_batch_is_named(batch: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as error:
        list(batches([{"x": [1.0]}, batch]))  # type: ignore[list-item]
    assert "batch 1" in str(error.value)


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(BadInputError, match="no batch"):
        list(batches([]))
