"""Quantised graphs build as TensorRT-RTX engines, in a child process and without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.parity import tiny

from secateur.calibration.quantisation.graph import quantise
from secateur.calibration.quantisation.scheme import Scheme
from secateur.errors import BadInputError
from secateur.export.onnx_file import save
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.backends.tensorrt import TensorRt
from secateur.workflow.selecting import Select, select_tokens

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

_TOKENS = ShapeRange((1, 4), (2, 12), (4, 24))
_PROFILES = {"input_ids": _TOKENS, "attention_mask": _TOKENS}
DATA = [
    {
        "input_ids": np.random.default_rng(i).integers(0, 40, (4, 12)),
        "attention_mask": np.ones((4, 12), np.int64),
    }
    for i in range(2)
]


def built(model: ir.Model, path: Path, capability: str, **shape_values: ShapeRange) -> bytes:
    save(model, path)
    values = {name.replace("__", "."): ranges for name, ranges in shape_values.items()}
    spec = EngineSpec(profiles=_PROFILES, shape_values=values, compute_capabilities=(capability,))
    return TensorRt("rtx").build(path, spec)


@pytest.mark.parametrize(
    ("kind", "capability"), [("int8", "sm86"), ("fp8", "sm89"), ("int4", "sm86")]
)
def test_a_quantised_transformer_builds(tmp_path: Path, kind: str, capability: str) -> None:
    model = quantise(tiny.exported(1), Scheme(kind, block=16), DATA)
    assert len(built(model, tmp_path / "model.onnx", capability)) > 10_000


def test_a_quantised_graph_that_drops_tokens_builds(tmp_path: Path) -> None:
    selecting = select_tokens(tiny.exported(2), [Select("layers.0", keep=0.6)])
    budget = {"layers.0.permille": np.array([600], np.int64)}
    model = quantise(selecting, Scheme("int8"), [batch | budget for batch in DATA])
    permille = ShapeRange((1,), (600,), (1000,))
    engine = built(model, tmp_path / "model.onnx", "sm86", layers__0__permille=permille)
    assert len(engine) > 10_000


def test_fp8_for_a_gpu_without_it_is_refused_with_the_type(tmp_path: Path) -> None:
    model = quantise(tiny.exported(1), Scheme("fp8"), DATA)
    with pytest.raises(BadInputError, match="sm86 has no float8_e4m3fn"):
        built(model, tmp_path / "model.onnx", "sm86")
