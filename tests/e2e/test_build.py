"""Bundles made from a file alone, without a recipe and without goldens."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from secateur import cli
from secateur.runtime.bundle import open_bundle

QUICK = ("--batch", "1", "--tokens", "16", "--processes", "1", "--pairs", "2", "--json")


@pytest.fixture(scope="module")
def selecting(encoder_onnx, tmp_path_factory):
    """A bundle that drops tokens, made of a file."""
    folder = tmp_path_factory.mktemp("file")
    graph, bundle = folder / "selecting.onnx", folder / "bundle"
    assert cli.run(["select", str(encoder_onnx), str(graph), "--site", "layers.0"]) == 0
    assert cli.run(["build", str(graph), str(bundle), "--target", "onnxruntime"]) == 0
    return bundle


def test_bench_needs_no_goldens_and_counts_flops(selecting, encoder_onnx, capsys):
    assert cli.run(["bench", str(selecting), "--dense", str(encoder_onnx), *QUICK]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["flops_ratio"] > 1.1
    assert row["dense_ms"] > 0


def test_bench_without_a_dense_model_asks_for_one(selecting, capsys):
    assert cli.run(["bench", str(selecting), *QUICK]) == 2
    assert "--dense" in capsys.readouterr().out  # the JSON document


@pytest.mark.parametrize("option", ["--batch", "--pairs"])
def test_bench_refuses_what_is_no_positive_number(selecting, option, capsys):
    assert cli.run(["bench", str(selecting), option, "0"]) == 2
    assert option in capsys.readouterr().err


def _padded_pooling(path):
    """ONNX Runtime 1.31 folds the zero Pad into the MaxPool, which pads with -inf."""
    pads = onnx.numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    graph = helper.make_graph(
        [
            helper.make_node("Pad", ["x", "pads"], ["p"]),
            helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3]),
        ],
        "padded",
        [helper.make_tensor_value_info("x", 1, [8, 3, 4, 4])],
        [helper.make_tensor_value_info("y", 1, [8, 3, 4, 4])],
        [pads],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )


def test_build_takes_the_highest_optimisation_that_keeps_the_numbers(tmp_path):
    _padded_pooling(tmp_path / "padded.onnx")
    command = ["build", str(tmp_path / "padded.onnx"), str(tmp_path / "b"), "--target"]
    assert cli.run([*command, "onnxruntime"]) == 0
    with open_bundle(tmp_path / "b") as bundle:
        assert bundle.engine("onnxruntime").options["optimisation"] == "disabled"


def test_build_takes_the_optimisation_that_is_asked_for(tmp_path):
    _padded_pooling(tmp_path / "padded.onnx")
    command = ["build", str(tmp_path / "padded.onnx"), str(tmp_path / "b"), "--target"]
    assert cli.run([*command, "onnxruntime", "--optimisation", "extended"]) == 0
    with open_bundle(tmp_path / "b") as bundle:
        assert bundle.engine("onnxruntime").options["optimisation"] == "extended"
