"""Dense against pruned, at the batches of a recipe: which variants, on which inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from secateur.export.onnx_file import from_onnx, save
from secateur.recipe import Bench
from secateur.runtime.bench import BenchCase, BenchModel, BenchOptions, BenchRow, interleaved
from secateur.runtime.bundle import DENSE_NAME, Bundle, open_bundle
from secateur.workflow.counting import full_inputs
from secateur.workflow.flops import count_flops

logger = logging.getLogger(__name__)


def time_variants(
    dense: ir.Model,
    variants: Mapping[str, ir.Model],
    settings: Bench,
    *,
    folder: Path,
    note: Callable[[str], None],
) -> tuple[BenchRow, ...]:
    """Time every variant at every batch; one row each.

    Args:
        dense: the model before anything was pruned.
        variants: pruned models by name.
        settings: batches, tokens, processes, pairs.
        folder: scratch space; the models are written there.
        note: told about each row as it comes.
    """
    options = BenchOptions(processes=settings.processes, pairs=settings.pairs)
    dense_file = save(dense, folder / "dense.onnx")[0]
    rows = []
    for name, model in variants.items():
        file = save(model, folder / f"{name}.onnx")[0]
        for batch in settings.batches:
            case = BenchCase(
                name,
                batch,
                settings.tokens,
                _bench_model(dense, dense_file, batch, settings.tokens),
                _bench_model(model, file, batch, settings.tokens),
            )
            row = interleaved(case, options)
            note(f"{name}, batch {batch}: {row.dense_ms:.1f} -> {row.pruned_ms:.1f} ms")
            rows.append(row)
    return tuple(rows)


def time_bundle(
    bundle: Bundle | str | Path, batches: tuple[int, ...], tokens: int
) -> tuple[BenchRow, ...]:
    """Time a bundle's model against the dense one that it holds."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    settings = Bench(variants=(), batches=batches, tokens=tokens)
    with TemporaryDirectory(prefix="secateur-bench-") as folder:
        return time_variants(
            from_onnx(opened.file(DENSE_NAME)),
            {"bundle": from_onnx(opened.model)},
            settings,
            folder=Path(folder),
            note=logger.info,
        )


def _bench_model(model: ir.Model, file: Path, batch: int, tokens: int) -> BenchModel:
    """Full-length inputs (no padding), so that both models do all the work of the shape."""
    inputs = full_inputs(model, batch=batch, tokens=tokens)
    return BenchModel(file, inputs, float(count_flops(model, inputs).total))


__all__ = ["time_bundle", "time_variants"]
