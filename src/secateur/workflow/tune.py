"""Find a token keep schedule that is faster at no lower agreement, on the user's own data.

The search of VFlowOpt (arXiv:2508.05211) and FTP over keep ratios becomes this one: any selector,
measured times, and the front of time against agreement instead of one weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from secateur.calibration.search.journal import Genes, Journal
from secateur.calibration.search.layer_times import LayerTimes
from secateur.calibration.search.pareto import Effort, Point, front, search, under, within
from secateur.errors import BadInputError
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.groups import analyse
from secateur.recipe import Recipe
from secateur.workflow.data import Samples, load_samples
from secateur.workflow.deploy import Progress
from secateur.workflow.finalists import Agreed, Answered, Heat, Raced, agreement, fastest, run_off
from secateur.workflow.model_session import open_model
from secateur.workflow.pruning import prune_graph, read_plan
from secateur.workflow.schedules import Judge, Schedules, Variant, selects
from secateur.workflow.selecting import select_tokens
from secateur.workflow.sources import Source, load_model
from secateur.workflow.tuning_times import measure_layers

_FEWEST_SAMPLES = 8
_HEAT = 16
"""So many schedules run on the samples of the search: expected times are not times."""
_RACED = 5
_MARGIN = 0.97
"""A finalist loses this much of what it may on the samples of the search: others will differ."""
_LENGTHS = 4


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What is searched, on how much data, and what counts as found."""

    by: tuple[str, ...] = ("class_row", "column_mean")
    cut: tuple[str, ...] = ("attention", "block")
    sites: tuple[str, ...] = ()
    """Attention blocks that may drop tokens; empty: all but the last."""
    evaluations: int = 400
    seed: int = 0
    batch: int = 8
    held_out: float = 0.4
    """Share of the samples that the search does not see."""
    searched: int = 96
    """At most so many samples are run for every schedule."""
    rounds: int = 9
    """How often the finalists run over the held-out samples, in turns."""
    loss: float | None = None
    """Largest loss, one minus the mean cosine; None takes that of the recipe's own schedule."""
    latency_ms: float | None = None
    """Most milliseconds a batch: the schedule that agrees best below it is taken instead."""
    journal: Path | None = None
    """Where evaluations are kept, so that an interrupted search goes on."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found."""

    points: tuple[Point, ...]
    front: tuple[Point, ...]
    raced: tuple[Raced, ...]
    """``dense``, ``recipe`` where the recipe has a schedule, and the finalists."""
    best: Raced

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def tune(recipe: Recipe, options: TuneOptions, *, progress: Progress) -> Tuned:
    """Search schedules for a recipe's model, its removals applied, on its data.

    Raises:
        BadInputError: no data or too little, no attention, or nothing that meets the target.
    """
    with progress.step(f"load and export {recipe.model.source}"):
        source = load_model(
            recipe.model.source, opset=recipe.model.opset, dynamic=recipe.model.dynamic
        )
    if recipe.data is None:
        raise BadInputError(
            "a search needs data", where=recipe.name, wanted="data: texts, images, npz or loader"
        )
    samples = load_samples(recipe.data, source)
    model = _pruned(recipe, source, samples, progress)
    output = recipe.parity.output or source.outputs[0]
    known, unknown = split_samples(samples, source, output, options)
    schedules = _schedules(model, recipe, options)
    hand = selects(recipe.select)
    with TemporaryDirectory(prefix="secateur-") as folder:
        place = Path(folder)
        journal = Journal(options.journal, _subject(model, recipe, schedules))
        with progress.step("time the layers"):
            times = _layer_times(journal, model, schedules, samples, options)
        judge = Judge(model, schedules, known, place)
        with progress.step(f"search up to {options.evaluations} schedules"), judge:
            own = agreement(select_tokens(model, hand), known) if hand else None
            largest = None if options.latency_ms is not None else _loss(own, options)
            points = search(
                schedules.space,
                lambda genes: judge.judge(genes, times),
                journal,
                Effort(
                    options.evaluations, options.seed, lambda point: _off(point, largest, options)
                ),
            )
        with progress.step("run the finalists on held-out samples"):
            near = [schedules.selections(genes) for genes in _near(points, largest, options)]
            chosen = fastest(model, near, Heat(known, place, _RACED, own.nearest if own else 0.0))
            named = {"dense": ()} | ({"recipe": hand} if hand else {})
            named |= {f"found {i + 1}": selections for i, selections in enumerate(chosen)}
            raced = run_off(model, named, unknown, rounds=options.rounds, folder=place)
    return Tuned(points, front(points), raced, _best(raced))


def _pruned(recipe: Recipe, source: Source, samples: Samples, progress: Progress) -> ir.Model:
    if not recipe.remove and recipe.plan is None:
        return source.graph
    plan = read_plan(recipe.plan) if recipe.plan is not None else None
    batches = list(samples.batches(recipe.parity.batch, recipe.parity.samples))
    with progress.step("remove, and prove it"):
        return prune_graph(source.graph, recipe.remove, plan=plan, batches=batches).model


def split_samples(
    samples: Samples, source: Source, output: str, options: TuneOptions
) -> tuple[Answered, Answered]:
    """Samples to search on and held-out ones, the same for every seed."""
    n_held_out = round(len(samples) * options.held_out)
    if min(n_held_out, len(samples) - n_held_out) < _FEWEST_SAMPLES:
        raise BadInputError(
            "there are too few samples to search on some and judge on others",
            got=f"{len(samples)}, of which {n_held_out} are held out",
            wanted=f"at least {_FEWEST_SAMPLES} of each",
        )
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    parts = []
    with open_model(source.graph) as run:
        for chosen in (order[n_held_out:][: options.searched], order[:n_held_out]):
            starts = range(0, len(chosen), options.batch)
            batches = tuple(samples.batch(chosen[i : i + options.batch]) for i in starts)
            wanted = tuple(run(batch)[output] for batch in batches)
            parts.append(Answered(batches, wanted, output))
    return parts[0], parts[1]


def _schedules(model: ir.Model, recipe: Recipe, options: TuneOptions) -> Schedules:
    names = [site.name for site in find_sites(model)]
    sites = options.sites or tuple(names[:-1])
    if unknown := [name for name in sites if name not in names]:
        raise BadInputError(f"no site {unknown[0]!r}", wanted="some of: " + ", ".join(names))
    protected = recipe.select[0].protected if recipe.select else 1
    variants = tuple(Variant(by, cut) for by in options.by for cut in options.cut)
    return Schedules(variants, sites, protected)


def _layer_times(
    journal: Journal,
    model: ir.Model,
    schedules: Schedules,
    samples: Samples,
    options: TuneOptions,
) -> LayerTimes:
    """Measured once a search: an interrupted one goes on with the times that it began with."""
    at = schedules.sites[len(schedules.sites) // 2]
    one = replace(schedules, sites=(at,))
    longest = max(samples.longest, 2 * _LENGTHS)
    lengths = sorted({max(2, longest * (i + 1) // _LENGTHS) for i in range(_LENGTHS)} | {2})
    n_layers = len(find_sites(model))

    def measure() -> object:
        """Time whole models, without a site and with one of each kind."""
        sites = [select_tokens(model, one.everywhere(variant)) for variant in one.variants]
        times = measure_layers([model, *sites], lengths, options.batch, n_layers=n_layers)
        return asdict(times)

    found = journal.once("times of layers and sites", measure)
    return LayerTimes(
        tuple(found["tokens"]),
        tuple(found["layer_ms"]),
        found["rest_ms"],
        tuple([tuple(site) for site in found["site_ms"]]),
    )


def _subject(model: ir.Model, recipe: Recipe, schedules: Schedules) -> dict[str, object]:
    """What the results of a journal are about; another seed may use them too."""
    return {
        "model": recipe.model.source,
        "groups": [(group.name, group.size) for group in analyse(model).groups],
        "data": recipe.data.model_dump() if recipe.data else None,
        "removals": model.metadata_props.get("secateur.removals", ""),
        "variants": [asdict(variant) for variant in schedules.variants],
        "sites": schedules.sites,
    }


def _loss(own: Agreed | None, options: TuneOptions) -> float:
    """The largest loss that counts as found: given, or that of the recipe's ``own`` schedule."""
    if options.loss is not None:
        return options.loss
    if own is None:
        raise BadInputError(
            "there is nothing to be no worse than",
            wanted="a schedule in the recipe (select), a largest loss, or a latency",
        )
    return own.loss


def _off(point: Point, largest: float | None, options: TuneOptions) -> float:
    """How far a schedule is from the target."""
    if largest is None:
        assert options.latency_ms is not None
        return abs(point.cost - options.latency_ms)
    return abs(point.loss - largest * _MARGIN)


def _near(points: Sequence[Point], largest: float | None, options: TuneOptions) -> list[Genes]:
    """The schedules that meet the target on the samples of the search, cheapest first."""
    if largest is None:
        assert options.latency_ms is not None
        return [under(points, cost=options.latency_ms).genes]
    within(points, loss=largest)  # names what can be reached where nothing meets the target
    allowed = [point for point in points if point.loss <= largest * _MARGIN]
    allowed.sort(key=lambda point: (point.cost, point.loss))
    allowed = allowed or [within(points, loss=largest)]
    return [point.genes for point in allowed[:_HEAT]]


def _best(raced: Sequence[Raced]) -> Raced:
    """The fastest finalist that agrees no worse than the recipe's schedule on held-out samples.

    Where none does, or there is no schedule to compare with, the one that agrees best.
    """
    found = [one for one in raced if one.name.startswith("found")]
    recipe = next((one for one in raced if one.name == "recipe"), None)
    good = [
        one
        for one in found
        if recipe is not None and one.loss <= recipe.loss and one.nearest >= recipe.nearest
    ]
    if good:
        return min(good, key=lambda one: one.held_out_ms)
    return min(found, key=lambda one: one.loss)


__all__ = ["TuneOptions", "Tuned", "split_samples", "tune"]
