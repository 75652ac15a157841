"""How far ONNX Runtime may optimise what is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from secateur.errors import BadInputError
from secateur.runtime.compare import TOLERANCES
from secateur.runtime.deployed import highest_agreeing_level

FP32 = TOLERANCES["float32"]


def test_a_model_that_survives_every_rewrite_gets_the_highest_level(
    dense_path: Path, tokens: np.ndarray
) -> None:
    assert highest_agreeing_level(dense_path, [{"x": tokens}], tolerance=FP32) == "all"


def test_a_level_that_changes_the_values_is_lowered(tmp_path: Path) -> None:
    """Version 1.31.1 folds the zero Pad into the MaxPool, which pads with -inf."""
    path = tmp_path / "model.onnx"
    pads = onnx.numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    graph = helper.make_graph(
        [
            helper.make_node("Pad", ["x", "pads"], ["p"]),
            helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [pads],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    negative = -1 - np.random.default_rng(0).random((1, 1, 4, 4), np.float32)
    assert highest_agreeing_level(path, [{"x": negative}], tolerance=FP32) == "disabled"
    assert highest_agreeing_level(path, [{"x": -negative}], tolerance=FP32) == "all"


def test_without_inputs_nothing_can_be_said(dense_path: Path) -> None:
    with pytest.raises(BadInputError, match="no inputs"):
        highest_agreeing_level(dense_path, [], tolerance=FP32)
