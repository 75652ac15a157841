"""A graph in memory as a callable: ONNX Runtime without graph optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from secateur.export.marker_translation import without_markers
from secateur.export.onnx_file import save
from secateur.runtime.backend import Run
from secateur.runtime.backends.onnxruntime import OnnxRuntime


@contextmanager
def open_model(model: ir.Model) -> Iterator[Run]:
    """Yield ``run(arrays) -> outputs by name``; the graph runs as written, on the CPU.

    Markers of a model with its own selections pass all tokens on: this is the dense model.
    """
    with TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "model.onnx"
        save(without_markers(model), path)
        with OnnxRuntime().session(path) as run:
            yield run


__all__ = ["open_model"]
