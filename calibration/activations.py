"""Values inside a graph, seen while data runs through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.export.marker_translation import without_markers
from secateur.export.onnx_file import save
from secateur.runtime.backends.onnxruntime import OnnxRuntime

Batch: TypeAlias = Mapping[str, NDArray[Any]]

TOKEN_WEIGHTS = "secateur.token_weights"
"""Name of an array (B, N) beside a batch's inputs: how much each token counts in statistics; one
of weight 0 is left out as padding is."""


def inputs_of(batch: Batch) -> Batch:
    """Everything of a batch that the model reads."""
    return {name: array for name, array in batch.items() if name != TOKEN_WEIGHTS}


def observe(
    model: ir.Model, names: Sequence[str], data: Iterable[Batch]
) -> Iterator[tuple[Batch, dict[str, NDArray[Any]]]]:
    """Yield each batch with the named values that it causes; only what they need is run.

    Raises:
        BadInputError: a name that no node of the model writes, or a batch that does not fit.
    """
    with TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "observed.onnx"
        save(without_markers(with_outputs(model, names)), path)
        with OnnxRuntime().session(path) as run:
            for batch in data:
                yield batch, run(inputs_of(batch))


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Copy a model and make the named values its only outputs."""
    copy = model.clone()
    known = {value.name: value for value in copy.graph.inputs}
    known |= {value.name: value for node in copy.graph for value in node.outputs}
    missing = [name for name in names if name not in known]
    if missing:
        raise BadInputError(f"the model has no value {missing[0]!r}")
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(known[name] for name in names)
    return copy


__all__ = ["TOKEN_WEIGHTS", "Batch", "inputs_of", "observe", "with_outputs"]
