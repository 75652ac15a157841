"""Measures a bundle against its dense model, on inputs grown from its goldens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays
from secateur.runtime.bench import BenchCase, BenchModel, BenchOptions, BenchRow, interleaved
from secateur.runtime.bundle import BENCH_NAME, DENSE_NAME, GOLDENS_NAME, Bundle
from secateur.runtime.goldens import read_goldens
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.signature import TensorInfo


def bench_bundle(
    bundle: Bundle, dense: Path | None, sizes: Mapping[str, int], *, options: BenchOptions
) -> BenchRow:
    """Time the bundle's model and a dense one at the given dimensions, ONNX Runtime on the CPU.

    ``dense`` None takes the bundle's own dense model. FLOPs come from the row with the same
    batch and tokens in the bundle's ``bench.json``, where there is one.
    """
    reference = bundle.file(DENSE_NAME) if dense is None else dense
    dense_inputs = read_outline(reference).inputs
    inputs = resized(
        read_goldens(bundle.file(GOLDENS_NAME))[0].inputs, bundle.manifest.inputs, sizes
    )
    names = {info.name for info in dense_inputs}
    batch, tokens = sizes.get("batch", 1), sizes.get("tokens", 0)
    case = BenchCase(
        variant="bundle",
        batch=batch,
        tokens=tokens,
        dense=BenchModel(
            reference,
            {name: array for name, array in inputs.items() if name in names},
            _known_ratio(bundle, batch, tokens),
        ),
        pruned=BenchModel(bundle.model, inputs, 1.0),
    )
    return interleaved(case, options)


def resized(
    arrays: Arrays, inputs: Iterable[TensorInfo], sizes: Mapping[str, int]
) -> dict[str, Array]:
    """The arrays with their named axes repeated or cut to the given sizes."""
    known = {info.name: info for info in inputs}
    result: dict[str, Array] = {}
    for name, array in arrays.items():
        if name not in known:
            raise BadInputError(
                f"the model has no input {name!r}", wanted=", ".join(known), where="goldens"
            )
        result[name] = _resize(array, known[name].shape, sizes)
    return result


def _resize(array: Array, shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> Array:
    for axis, size in enumerate(shape):
        if isinstance(size, str) and size in sizes:
            array = array.take(np.arange(sizes[size]) % array.shape[axis], axis)
    return array


def _known_ratio(bundle: Bundle, batch: int, tokens: int) -> float:
    """Dense over pruned FLOPs from an earlier bench of this bundle, or 0."""
    if BENCH_NAME not in bundle:
        return 0.0
    rows = json.loads(bundle.file(BENCH_NAME).read_text(encoding="utf-8"))
    ratios = [
        row.get("flops_ratio")
        for row in rows
        if row.get("batch") == batch and row.get("tokens") == tokens
    ]
    return float(next((ratio for ratio in reversed(ratios) if ratio), 0.0))


__all__ = ["bench_bundle", "resized"]
