"""Goldens: kept, read again, and held against an engine in all their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.runtime.bundle_writer import new_bundle, revised_bundle
from secateur.runtime.compare import SelectionReference
from secateur.runtime.goldens import GoldenCase, goldens_to_bytes, read_goldens
from secateur.runtime.parity import check_goldens

SITE = "encoder.layer.0"


def _regild(path: Path, change: Callable[[GoldenCase], GoldenCase]) -> None:
    """Change every golden case of a bundle."""
    cases = read_goldens(path / "goldens.npz")
    with revised_bundle(path) as draft:
        draft.write("goldens.npz", goldens_to_bytes(change(case) for case in cases))


def test_goldens_survive_the_file(tmp_path: Path, goldens: tuple[GoldenCase, ...]) -> None:
    path = tmp_path / "goldens.npz"
    marked = [replace(case, token_outputs=frozenset({"y"})) for case in goldens]
    path.write_bytes(goldens_to_bytes(marked))
    for case, read in zip(marked, read_goldens(path), strict=True):
        for kind in ("inputs", "outputs", "forced"):
            wanted, got = getattr(case, kind), getattr(read, kind)
            assert list(got) == list(wanted)
            for name in wanted:
                np.testing.assert_array_equal(got[name], wanted[name])
        np.testing.assert_array_equal(read.selections[SITE].index, case.selections[SITE].index)
        np.testing.assert_array_equal(read.kept, case.kept)
        assert read.token_outputs == {"y"}


def test_goldens_with_stray_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "goldens.npz"
    for stray in ({"x": np.zeros(1)}, {"0/score/a": np.zeros((1, 1))}, {"a/b/c": np.zeros(1)}):
        np.savez(path, **stray)
        with pytest.raises(BadInputError, match="belong to no case"):
            read_goldens(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken"])
def test_goldens_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "goldens.npz"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="goldens cannot be read"):
        read_goldens(path)


def test_a_pickle_among_the_goldens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "goldens.npz"
    np.savez(path, **{"0/input/x": np.array([object()])})
    with pytest.raises(BadInputError, match="cannot be read"):
        read_goldens(path)


def test_an_engine_that_is_right_passes_every_part(proven_path: Path) -> None:
    result = check_goldens(proven_path)
    assert result.passed, result.failures()
    assert (result.cases, len(result.sites), len(result.outputs), len(result.free)) == (2, 2, 2, 2)
    assert all(row.passed for row in result.free)


def test_a_planted_wrong_index_fails(proven_path: Path) -> None:
    def plant(case: GoldenCase) -> GoldenCase:
        reference = case.selections[SITE]
        index = reference.index.copy()
        index[0, 0] = next(i for i in range(6) if i not in index[0])
        planted = SelectionReference(reference.score, np.sort(index, axis=1), reference.valid)
        return replace(case, selections={SITE: planted})

    _regild(proven_path, plant)
    result = check_goldens(proven_path)
    assert not result.passed
    assert "not a near-tie" in " ".join(result.failures())


def test_wrong_scores_fail(proven_path: Path) -> None:
    def plant(case: GoldenCase) -> GoldenCase:
        reference = case.selections[SITE]
        return replace(
            case, selections={SITE: replace(reference, score=reference.score * np.float32(1.001))}
        )

    _regild(proven_path, plant)
    assert "score error" in " ".join(check_goldens(proven_path).failures())


def test_a_wrong_value_on_equal_tokens_fails(proven_path: Path) -> None:
    def plant(case: GoldenCase) -> GoldenCase:
        output = case.outputs["y"].copy()
        output[0, 0, 0] += 0.01
        return replace(case, outputs={"y": output})

    _regild(proven_path, plant)
    result = check_goldens(proven_path)
    assert not result.passed
    assert {failure.partition(":")[0] for failure in result.failures()} == {"output y"}


def test_values_are_compared_on_the_tokens_that_the_reference_kept(proven_path: Path) -> None:
    """The reference's tokens are fed in, so its values hold even if it chose others."""

    def choose_others(case: GoldenCase) -> GoldenCase:
        x, k = case.inputs["x"], case.kept.shape[1]
        index = np.broadcast_to(np.arange(k), case.kept.shape)
        bias = np.zeros(x.shape[:2], np.float32)
        np.put_along_axis(bias, index, 1e9, axis=1)
        return replace(case, forced={f"{SITE}.score_bias": bias}, kept=index)

    before = check_goldens(proven_path).outputs
    _regild(proven_path, choose_others)
    after = check_goldens(proven_path).outputs
    assert all(row.passed for row in before)
    assert not any(row.passed for row in after), "other tokens were forced, so values differ"


def test_outputs_with_a_row_per_token_are_compared_on_kept_rows(proven_path: Path) -> None:
    def spread(case: GoldenCase) -> GoldenCase:
        """The reference keeps the full length; rows of dropped tokens are rubbish."""
        full = np.full(case.inputs["x"].shape, 1e6, np.float32)
        np.put_along_axis(full, case.kept[:, :, None], case.outputs["y"], axis=1)
        return replace(case, outputs={"y": full})

    _regild(proven_path, spread)
    assert check_goldens(proven_path).passed


def test_a_model_without_selection_is_judged_as_shipped(tmp_path: Path, dense_path: Path) -> None:
    from secateur.runtime.backends.onnxruntime import OnnxRuntime

    x = np.random.default_rng(1).standard_normal((1, 5, 8)).astype(np.float32)
    with OnnxRuntime().session(dense_path) as run:
        y = run({"x": x})["y"]
    for wanted, passes in ((y, True), (y + np.float32(0.1), False)):
        with new_bundle(tmp_path / "bundle") as draft:
            draft.place_model("model.onnx", dense_path)
            draft.write("goldens.npz", goldens_to_bytes([GoldenCase({"x": x}, {"y": wanted})]))
            draft.add_onnxruntime(optimisation="all")
        result = check_goldens(tmp_path / "bundle")
        assert result.passed is passes
        assert bool(result.failures()) is not passes


def test_a_selecting_bundle_without_twin_is_refused(proven_path: Path) -> None:
    with revised_bundle(proven_path) as draft:
        entry = draft.manifest.engines["onnxruntime"]
        draft.manifest = draft.manifest.with_engine("onnxruntime", replace(entry, forced=""))
    with pytest.raises(BadInputError, match="no forced twin"):
        check_goldens(proven_path)


def test_a_bundle_without_goldens_is_refused(bundle_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no goldens"):
        check_goldens(bundle_path)


def test_goldens_of_another_model_are_refused(proven_path: Path) -> None:
    _regild(proven_path, lambda case: replace(case, outputs={"z": case.outputs["y"]}))
    with pytest.raises(BadInputError, match="returns no 'z'"):
        check_goldens(proven_path)


def test_a_dtype_without_tolerance_is_refused(proven_path: Path) -> None:
    with revised_bundle(proven_path) as draft:
        draft.manifest = replace(draft.manifest, dtype="float8")
    with pytest.raises(BadInputError, match="no tolerance is stated"):
        check_goldens(proven_path)
