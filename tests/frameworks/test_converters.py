"""Files that other frameworks' converters write are analysed, cut and proven like our own.

scikit-learn's is made everywhere; TensorFlow and JAX are large, and `make frameworks`, which
CI runs too, gives them an environment of their own on top of the usual one.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.frameworks import jax_files, keras_files, sklearn_files
from tests.frameworks.converted import Converted
from tests.frameworks.halving import (
    BOUND,
    Halved,
    assert_equal_to_masked,
    assert_nothing_is_silent,
    halve,
    ops,
    outputs_of,
    weights,
)

CONVERTED: dict[str, tuple[str, Callable[[Path], Converted], dict[str, list[int]]]] = {
    "sklearn_classifier": ("skl2onnx", sklearn_files.classifier, {"channels": [24, 32]}),
    "sklearn_regressor": ("skl2onnx", sklearn_files.regressor, {"channels": [20]}),
    "keras_convnet": ("tf2onnx", keras_files.convnet, {"channels": [8, 12, 16]}),
    "keras_autoencoder": ("tf2onnx", keras_files.autoencoder, {"channels": [6, 7, 8, 10]}),
    "keras_transformer": (
        "tf2onnx", keras_files.transformer, {"ffn": [48], "head_width": [6, 6], "heads": [4]},
    ),
    "jax_perceptron": ("jax2onnx", jax_files.perceptron, {"channels": [16, 20]}),
    "jax_convnet": ("jax2onnx", jax_files.convnet, {"channels": [8, 12]}),
    "jax_transformer": ("jax2onnx", jax_files.transformer, {"channels": [6, 6, 48], "heads": [4]}),
}  # fmt: skip
"""Name: the converter's package, what makes the file, the groups that have to lose half."""

NHWC = ["keras_convnet", "keras_autoencoder", "jax_convnet"]


@functools.cache
def made(name: str) -> Converted:
    package, make, _ = CONVERTED[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not here: `make frameworks` runs this test with it")
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder))


@functools.cache
def half(name: str) -> Halved:
    return halve(made(name).model)


@pytest.fixture(params=CONVERTED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_opened_file_computes_what_the_framework_computes(name: str) -> None:
    file = made(name)
    for got, wanted in zip(outputs_of(file.model, file.feeds), file.wanted, strict=True):
        np.testing.assert_allclose(got, wanted.reshape(got.shape), rtol=1e-3, atol=1e-5)


def test_every_layer_that_has_units_to_lose_is_found(name: str) -> None:
    _, _, wanted = CONVERTED[name]
    made(name)
    assert half(name).sizes == wanted


def test_a_half_of_everything_goes_and_the_rest_equals_the_masked_model(name: str) -> None:
    assert_equal_to_masked(half(name), made(name).feeds, BOUND)


def test_nothing_stays_whole_without_a_reason(name: str) -> None:
    made(name)
    assert_nothing_is_silent(half(name))


@pytest.mark.parametrize("name", NHWC)
def test_the_file_has_its_channels_last(name: str) -> None:
    assert ops(made(name).model)["Transpose"] >= 1
    (feed,) = made(name).feeds.values()
    assert feed.shape[-1] in (2, 3), "images have their colours last"


@pytest.mark.parametrize("name", CONVERTED)
def test_at_least_a_fifth_of_the_numbers_goes(name: str) -> None:
    made(name)
    assert weights(half(name).small) < 0.8 * weights(made(name).model)
