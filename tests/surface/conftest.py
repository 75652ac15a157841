"""Small models and bundles, made once for all tests of the surface."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.surface import small

import secateur as sc
from secateur import cli


@pytest.fixture(scope="session")
def encoder_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder as an ONNX file."""
    from secateur.export.onnx_file import save

    net, inputs, dynamic = small.encoder()
    return save(sc.from_torch(net, inputs, dynamic), tmp_path_factory.mktemp("m") / "encoder.onnx")[
        0
    ]


@pytest.fixture(scope="session")
def perceptron_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static model without attention as an ONNX file."""
    from secateur.export.onnx_file import save

    net, inputs, dynamic = small.perceptron()
    return save(sc.from_torch(net, inputs, dynamic), tmp_path_factory.mktemp("p") / "mlp.onnx")[0]


@pytest.fixture(scope="session")
def bundle_made_once(encoder_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small encoder for ONNX Runtime; copy it before changing it."""
    path = tmp_path_factory.mktemp("b") / "bundle"
    assert cli.run(["build", str(encoder_onnx), str(path), "--target", "onnxruntime"]) == 0
    return path
