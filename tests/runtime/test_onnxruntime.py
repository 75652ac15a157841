"""The ONNX Runtime backend: what it computes and how it answers bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from secateur.errors import BadInputError, MissingDependencyError
from secateur.runtime.__main__ import main
from secateur.runtime.backend import BACKENDS, EngineSpec
from secateur.runtime.backends.onnxruntime import CPU, OnnxRuntime, run_bound
from secateur.runtime.session import open_session
from secateur.runtime.targets import parse_target


def test_outputs_are_those_of_the_model(dense_path: Path, tokens: np.ndarray) -> None:
    import onnx

    weights = {
        i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(dense_path).graph.initializer
    }
    backend = BACKENDS["onnxruntime"]()
    with backend.session(backend.build(dense_path, EngineSpec())) as run:
        got = run({"x": tokens})
    want = np.maximum(tokens @ weights["w1"], 0) @ weights["w2"]
    assert list(got) == ["y"]
    np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)


def test_a_path_opens_with_its_external_data(external_path: Path, tokens: np.ndarray) -> None:
    with OnnxRuntime().session(external_path) as run:
        assert run({"x": tokens})["y"].shape == (2, 6, 8)


@pytest.mark.parametrize("optimisation", ["disabled", "basic", "extended", "all"])
def test_every_optimisation_level_runs(
    optimisation: str, selecting_path: Path, tokens: np.ndarray
) -> None:
    with OnnxRuntime(optimisation=optimisation, threads=1).session(selecting_path) as run:
        out = run({"x": tokens, "encoder.layer.0.k": np.array([3])})
    assert out["y"].shape == (2, 3, 8)


def test_an_initialiser_behind_an_input_makes_it_optional(
    selecting_path: Path, tokens: np.ndarray
) -> None:
    bias = np.zeros((2, 6), np.float32)
    bias[:, [1, 5]] = 1e9
    with OnnxRuntime().session(selecting_path) as run:
        k = np.array([2])
        free = run({"x": tokens, "encoder.layer.0.k": k})["y"]
        forced = run({"x": tokens, "encoder.layer.0.k": k, "encoder.layer.0.score_bias": bias})
        other = run({"x": tokens[:, [1, 5]], "encoder.layer.0.k": k})["y"]
    np.testing.assert_allclose(forced["y"], other, rtol=1e-5, atol=1e-6)
    assert not np.allclose(free, other)


def test_arrays_need_not_be_contiguous(dense_path: Path, tokens: np.ndarray) -> None:
    with OnnxRuntime().session(dense_path) as run:
        straight = run({"x": tokens})["y"]
        strided = run({"x": np.asfortranarray(tokens)})["y"]
    np.testing.assert_array_equal(straight, strided)


BAD_INPUTS = {
    "unknown name": ({"X": (2, 6, 8)}, "no input 'X'"),
    "missing input": ({}, "'x' is missing"),
    "too few axes": ({"x": (6, 8)}, "wrong shape"),
    "wrong static size": ({"x": (2, 6, 9)}, "axis 2 has size 9, the engine takes 8"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_names_the_input(case: str, dense_path: Path) -> None:
    shapes, message = BAD_INPUTS[case]
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with OnnxRuntime().session(dense_path) as run, pytest.raises(BadInputError, match=message):
        run(arrays)


def test_a_wrong_dtype_is_refused_not_cast(dense_path: Path, tokens: np.ndarray) -> None:
    with OnnxRuntime().session(dense_path) as run, pytest.raises(BadInputError) as caught:
        run({"x": tokens.astype(np.float64)})
    assert (caught.value.got, caught.value.wanted) == ("float64", "float32")
    assert "'x'" in caught.value.what
    assert "astype" in caught.value.next_step


def test_a_list_is_refused(dense_path: Path) -> None:
    with OnnxRuntime().session(dense_path) as run, pytest.raises(BadInputError, match="NumPy"):
        run({"x": [[0.0]]})  # type: ignore[dict-item]


def test_axes_of_one_name_must_agree(masked_path: Path) -> None:
    arrays = {"x": np.zeros((2, 6), np.float32), "mask": np.zeros((2, 5), np.float32)}
    with OnnxRuntime().session(masked_path) as run, pytest.raises(BadInputError) as caught:
        run(arrays)
    assert "(tokens) has size 5, in input 'x' it has 6" in caught.value.where


def test_values_the_model_cannot_take_are_the_callers_error(
    selecting_path: Path, tokens: np.ndarray
) -> None:
    with OnnxRuntime().session(selecting_path) as run, pytest.raises(BadInputError) as caught:
        run({"x": tokens, "encoder.layer.0.k": np.array([99])})
    assert "x [2, 6, 8]" in caught.value.got


def test_an_unknown_optimisation_level_is_refused(dense_path: Path) -> None:
    session = OnnxRuntime(optimisation="extreme").session(dense_path)
    with pytest.raises(BadInputError, match="extreme"), session:
        pass


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        OnnxRuntime().build(tmp_path / "none.onnx", EngineSpec())
    with (
        pytest.raises(BadInputError, match="does not exist"),
        OnnxRuntime().session(tmp_path / "none.onnx"),
    ):
        pass


def test_bytes_that_are_not_onnx_are_refused() -> None:
    with pytest.raises(BadInputError, match="cannot open"), OnnxRuntime().session(b"hello"):
        pass


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(BadInputError, match="did you mean 'onnxruntime'"):
        BACKENDS["onnxruntme"]


def test_bound_memory_gives_the_same_numbers(selecting_path: Path, tokens: np.ndarray) -> None:
    feed = {"x": tokens, "encoder.layer.0.k": np.array([3])}
    session = onnxruntime.InferenceSession(str(selecting_path), providers=[CPU])
    (wanted,) = session.run(["y"], feed)
    (found,) = run_bound(session, ["y"], feed)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
def test_a_provider_that_is_not_there_is_said_to_be_missing_and_not_replaced_by_the_cpu(
    provider: str, bundle_path: Path
) -> None:
    with (
        pytest.raises(MissingDependencyError, match="not to be had") as caught,
        open_session(bundle_path, f"onnxruntime:{provider}"),
    ):
        pass
    assert "pip install onnxruntime" in caught.value.next_step


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("onnxruntime:cuba", "unknown execution provider"),
        ("onnxruntime:cuda,rtx", "one execution provider"),
    ],
)
def test_a_provider_that_is_none_is_refused(target: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        parse_target(target)


def test_a_provider_is_chosen_when_it_runs_and_not_when_it_is_built(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(bundle_path), "--target", "onnxruntime:cuda"]) == 2
    assert "chosen when it runs" in capsys.readouterr().err
