"""Dense against pruned, at the batches of a recipe: which variants, on which inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.export.onnx_file import from_onnx, save
from secateur.recipe import Bench
from secateur.runtime.bench import BenchCase, BenchModel, BenchOptions, BenchRow, interleaved
from secateur.runtime.bundle import DENSE_NAME, Bundle, open_bundle
from secateur.workflow.counting import full_inputs
from secateur.workflow.flops import count_flops
from secateur.workflow.memory import peak_bytes


def time_variants(
    dense: ir.Model,
    variants: Mapping[str, ir.Model],
    settings: Bench,
    *,
    folder: Path,
    note: Callable[[str], None],
) -> tuple[dict[str, Any], ...]:
    """Time every variant at every batch, and measure its memory; one record each.

    Args:
        dense: the model before anything was pruned.
        variants: pruned models by name.
        settings: batches, tokens, processes, pairs.
        folder: scratch space; the models are written there.
        note: told about each row as it comes.

    Returns:
        The fields of ``BenchRow``, and ``dense_peak_mib`` and ``pruned_peak_mib``.
    """
    options = BenchOptions(processes=settings.processes, pairs=settings.pairs)
    records = []
    for case in _cases(dense, variants, settings, folder):
        row = interleaved(case, options)
        note(f"{row.variant}, batch {row.batch}: {row.dense_ms:.1f} -> {row.pruned_ms:.1f} ms")
        memory = {
            f"{kind}_peak_mib": _peak_mib(model, row.optimisation_level)
            for kind, model in (("dense", case.dense), ("pruned", case.pruned))
        }
        records.append(row.to_json() | memory)
    return tuple(records)


def time_bundle(
    bundle: Bundle | str | Path,
    settings: Bench,
    *,
    dense: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[BenchRow, ...]:
    """Time a bundle's model against a dense one, without padding.

    Args:
        bundle: what ``build`` or ``deploy`` wrote.
        settings: batches, tokens, processes, pairs.
        dense: an .onnx file; None takes the dense model that the bundle holds.
        note: told about each row as it comes.

    Raises:
        BadInputError: no dense model, or one with other inputs.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if dense is None and DENSE_NAME not in opened:
        raise BadInputError(
            "the bundle does not hold its dense model",
            where=str(opened.path),
            next_step="name the .onnx file to compare with: --dense FILE",
        )
    models = {"bundle": from_onnx(opened.model)}
    whole = from_onnx(dense or opened.file(DENSE_NAME))
    options = BenchOptions(processes=settings.processes, pairs=settings.pairs)
    rows = []
    with TemporaryDirectory(prefix="secateur-bench-") as folder:
        for case in _cases(whole, models, settings, Path(folder)):
            rows.append(interleaved(case, options))
            note(f"batch {case.batch}: {rows[-1].dense_ms:.1f} -> {rows[-1].pruned_ms:.1f} ms")
    return tuple(rows)


def _cases(
    dense: ir.Model, variants: Mapping[str, ir.Model], settings: Bench, folder: Path
) -> Iterator[BenchCase]:
    dense_file = save(dense, folder / "dense.onnx")[0]
    for name, model in variants.items():
        file = save(model, folder / f"{name}.onnx")[0]
        for batch in settings.batches:
            yield BenchCase(
                name,
                batch,
                settings.tokens,
                _bench_model(dense, dense_file, batch, settings.tokens),
                _bench_model(model, file, batch, settings.tokens),
            )


def _peak_mib(model: BenchModel, level: str) -> float:
    return peak_bytes(model.path, model.inputs, level=level) / (1 << 20)


def _bench_model(model: ir.Model, file: Path, batch: int, tokens: int) -> BenchModel:
    """Full-length inputs (no padding), so that both models do all the work of the shape."""
    inputs = full_inputs(model, batch=batch, tokens=tokens)
    return BenchModel(file, inputs, float(count_flops(model, inputs).total))


__all__ = ["time_bundle", "time_variants"]
