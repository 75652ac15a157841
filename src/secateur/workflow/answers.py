"""What the reference answers, and what the shipped model answers on the user's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.export.onnx_file import from_onnx
from secateur.graph_passes.axes import leaves
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan
from secateur.runtime.backend import Array, Arrays, Run
from secateur.runtime.backends.onnxruntime import OnnxRuntime
from secateur.runtime.bundle import DENSE_NAME, FORCED_NAME, Bundle, open_bundle
from secateur.workflow.data import Samples
from secateur.workflow.golden import (
    Golden,
    budget_feeds,
    default_budgets,
    golden_from_torch,
    put_back_at,
    renamed,
    site_records,
    token_sites,
)
from secateur.workflow.model_session import open_model
from secateur.workflow.parity import Options, ParityReport, check
from secateur.workflow.pruning import recorded_plan
from secateur.workflow.removal_proof import removed_units
from secateur.workflow.results import Agreement, Sample
from secateur.workflow.sources import Source
from secateur.workflow.verification import agreements

if TYPE_CHECKING:
    from torch import nn

_BATCH = 16


def make_goldens(
    source: Source, plan: Plan | None, model: ir.Model, batches: Iterable[Arrays]
) -> list[Golden]:
    """The reference's answers: the original module, pruned by masking only.

    A model that came as ONNX is its own reference: the dense graph, masked in the same way.
    """
    sites, feeds = token_sites(model, {}), budget_feeds(model, {})
    if source.net is not None:
        from secateur.models.reference import neutralised

        net = source.net
        if plan is not None:
            net = neutralised(net, removed_units(source.graph, plan))
        back = put_back_at(model)
        made = (
            golden_from_torch(net, batch, sites, feeds=feeds, restore=back) for batch in batches
        )
        return list(renamed(made, source.outputs))
    from secateur.workflow.onnx_reference import check_masked, golden_from_onnx

    check_masked(sites, put_back_at(model))
    dense = source.graph if plan is None else mask(source.graph, plan)
    made = (golden_from_onnx(dense, batch, sites, feeds=feeds) for batch in batches)
    return list(renamed(made, source.outputs))


def check_bundle(
    reference: nn.Module | ir.Model,
    bundle: Bundle | str | Path,
    data: Iterable[Arrays],
    options: Options | None,
) -> ParityReport:
    """Compare a bundle on ONNX Runtime with what it was made of; see ``secateur.parity``."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    model = from_onnx(opened.model)
    if isinstance(reference, ir.Model):
        source = Source("", None, reference, None, None, {})
    else:
        dense = from_onnx(opened.file(DENSE_NAME)) if DENSE_NAME in opened else model
        source = Source("", reference, dense, None, None, {})
    plan = recorded_plan(model)
    if plan is not None and source.graph is model:
        raise BadInputError(
            "the bundle removed units and does not hold its dense model",
            where=str(opened.path),
            next_step="build it with dense=, the model before the removal",
        )
    goldens = make_goldens(source, plan, model, data)
    if options is None:
        analysis = analyse(source.graph)
        options = Options(token_outputs=token_outputs(analysis), token_axes=token_axes(analysis))
    forced = opened.file(FORCED_NAME) if FORCED_NAME in opened else opened.model
    backend = OnnxRuntime(**opened.engine("onnxruntime").options)
    with backend.session(forced) as forced_run, backend.session(opened.model) as run:
        return check(goldens, forced_run, free=run, options=options)


def token_outputs(analysis: Analysis) -> frozenset[str]:
    """Outputs with a row per token of the input, (B, N, ...)."""
    return frozenset(name for name, axis in _token_axes(analysis).items() if axis == 1)


def token_axes(analysis: Analysis) -> dict[str, int]:
    """Outputs whose tokens are another axis than the one behind the batch, and which."""
    return {name: axis for name, axis in _token_axes(analysis).items() if axis > 1}


def _token_axes(analysis: Analysis) -> dict[str, int]:
    tokens = {group.atom for group in analysis.by_role("tokens")}
    found: dict[str, int] = {}
    for value in analysis.model.graph.outputs:
        for axis, expr in enumerate(analysis.axes.of(value)):
            if any(atom in tokens for atom in leaves(expr)):
                found.setdefault(str(value.name), axis)
    return found


@dataclass(frozen=True, slots=True)
class OnData:
    """What the shipped model did with the user's samples."""

    agreements: tuple[Agreement, ...]
    samples: tuple[Sample, ...]


def on_data(
    source: Source, shipped: Path, model: ir.Model, samples: Samples, options: DataOptions
) -> OnData:
    """Run the shipped and the dense model over all samples.

    Args:
        source: the dense model.
        shipped: file of the model as shipped.
        model: the same, for its sites.
        samples: the user's.
        options: task, output, how many samples to show.
    """
    feeds = default_budgets(model)
    with OnnxRuntime(optimisation=options.level).session(shipped) as run:
        got = [run({**b, **feeds})[options.output] for b in samples.whole_batches(_BATCH)]
        shown = tuple(
            _shown(run, model, samples, number, feeds)
            for number in range(min(options.shown, len(samples)) if site_records(model) else 0)
        )
    with open_model(source.graph) as run:
        wanted = [run(batch)[options.output] for batch in samples.batches(_BATCH)]
    target = f"onnxruntime ({options.level})"
    return OnData(agreements(got, wanted, task=options.task, target=target), shown)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which output is compared by which task, at which level, and how much is shown."""

    task: str
    output: str
    level: str
    shown: int


def _shown(run: Run, model: ir.Model, samples: Samples, number: int, feeds: Arrays) -> Sample:
    """One sample alone, with the positions that are left after each site."""
    arrays = samples.arrays[number]
    outputs = run({**samples.whole(number), **feeds})
    kept = {
        record["site"]: tuple(int(i) for i in outputs[record["kept_output"]][0] if i >= 0)
        for record in site_records(model)
        if record["kept_output"]
    }
    pieces = samples.pieces[number] if samples.pieces else ()
    image = () if pieces else _image(list(arrays.values()))
    return Sample(samples.labels[number], pieces, kept, image, _grid(model) if image else (0, 0))


def _image(arrays: Sequence[Array]) -> tuple[tuple[float, ...], ...]:
    """Grey values in 0..1 of the first (1, C, height, width) input; empty without one."""
    pictures = [a for a in arrays if a.ndim == 4 and a.shape[1] in (1, 3) and a.dtype.kind == "f"]
    if not pictures:
        return ()
    grey = pictures[0][0].mean(axis=0)
    spread = float(np.ptp(grey)) or 1.0
    return tuple(tuple(float(x) for x in row) for row in (grey - grey.min()) / spread)


def _grid(model: ir.Model) -> tuple[int, int]:
    """Patches down and across: the first site's tokens but the class token, as a square."""
    tokens = str(site_records(model)[0]["tokens"])
    side = int(max(int(tokens) - 1, 0) ** 0.5) if tokens.isdigit() else 0
    return side, side


__all__ = [
    "DataOptions",
    "OnData",
    "check_bundle",
    "make_goldens",
    "on_data",
    "token_axes",
    "token_outputs",
]
