"""A file that the converter of another framework wrote, with what that framework computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.export.onnx_file import from_onnx


@dataclass(frozen=True)
class Converted:
    """One converted network: the opened file, an input and the framework's own outputs."""

    model: ir.Model
    feeds: dict[str, NDArray]
    wanted: Sequence[NDArray]


def opened(
    proto: onnx.ModelProto, folder: Path, feed: NDArray, wanted: Sequence[NDArray]
) -> Converted:
    """Write what a converter made to a file and open that."""
    path = folder / "converted.onnx"
    onnx.save(proto, path)
    return Converted(from_onnx(path), {proto.graph.input[0].name: feed}, wanted)
