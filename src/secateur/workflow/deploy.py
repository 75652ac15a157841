"""From a recipe to a bundle: load, remove, select, verify, build, time, report."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from secateur.errors import ParityError
from secateur.export.marker_translation import without_markers
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.precision.lower import precision_record
from secateur.recipe import Recipe
from secateur.runtime import bundle as names
from secateur.runtime.backend import Arrays
from secateur.runtime.build import BuildOptions
from secateur.runtime.bundle_writer import Draft, new_bundle
from secateur.runtime.engine_cache import engine_cache
from secateur.runtime.goldens import goldens_to_bytes
from secateur.workflow import shipping, verification
from secateur.workflow.answers import DataOptions, make_goldens, on_data, token_axes, token_outputs
from secateur.workflow.arrays import save_text
from secateur.workflow.bisecting import PLAN_NAME
from secateur.workflow.calibration_choice import Chosen, choose_samples
from secateur.workflow.counting import size_of
from secateur.workflow.data import Samples, example_samples, load_samples, read_npz
from secateur.workflow.environment import environment
from secateur.workflow.fitted_reference import fitted_module
from secateur.workflow.golden import Golden
from secateur.workflow.handed_in import Shapes, handed_in, set_beside
from secateur.workflow.parity import Options
from secateur.workflow.precision import Lowering, explained, in_words, lower, runnable, suspects
from secateur.workflow.pruning import Fitting, Pruned, prune_and_fit, read_plan
from secateur.workflow.quantising import quantisation_record, quantised, what_was_rounded
from secateur.workflow.random_inputs import made_up_batches
from secateur.workflow.report import render_report
from secateur.workflow.results import Frozen, Results
from secateur.workflow.select_checks import check_counts, largest_sizes
from secateur.workflow.selecting import Select, select_tokens, selection_rows
from secateur.workflow.sources import Source, load_model
from secateur.workflow.timing import time_variants


class Progress(Protocol):
    """Told what is going on."""

    def step(self, title: str) -> AbstractContextManager[None]:
        """Around everything that may take longer than a second."""
        ...

    def note(self, text: str) -> None:
        """A line worth reading between two steps."""
        ...


class Silent:
    """Progress that nobody watches."""

    def step(self, title: str) -> AbstractContextManager[None]:
        """Nothing is shown."""
        del title
        return nullcontext()

    def note(self, text: str) -> None:
        """Nothing is shown."""


@dataclass(frozen=True, slots=True)
class Work:
    """A model, what was made of it, and the inputs that it is judged on."""

    source: Source
    reference: Source
    """What the shipped model has to equal: the source, with fitted weights where there are any."""
    samples: Samples
    chosen: Chosen
    """What of them importance, compensation and quantisation look at."""
    analysis: Analysis
    pruned: Pruned | None
    tokens_only: ir.Model
    """The dense model with the selections alone: a variant of the bench."""
    shipped: ir.Model
    """The smaller model with the selections."""

    @property
    def smaller(self) -> ir.Model:
        """The dense model without the removed units."""
        return without_markers(self.pruned.model) if self.pruned else self.source.graph


@dataclass(frozen=True, slots=True)
class Placed:
    """The models of a bundle in the recipe's precision, as files and in memory."""

    lowering: Lowering
    dense: ir.Model
    shipped: ir.Model
    file: Path
    """The shipped model."""
    forced: Path
    """Its forced twin, or itself where no tokens are selected."""


def deploy(recipe: Recipe, recipe_text: str, *, progress: Progress) -> Results:
    """Do what a recipe says and put the bundle in its place in one step at the end.

    Args:
        recipe: with its paths resolved, as ``load_recipe`` returns it.
        recipe_text: its file, which goes into the bundle.
        progress: told about every step.

    Raises:
        BadInputError: something in the recipe that the model or a target does not fit.
        ParityError: a proof or a comparison failed; no bundle is written.
        BuildError: a builder refused.
    """
    with new_bundle(bundle_path(recipe)) as draft:
        work = _make(recipe, progress)
        placed = _place_models(draft, recipe, work, progress)
        results = _describe(recipe, work)
        results, level = _verify(draft, recipe, work, placed, (results, progress))
        with progress.step(f"build for {', '.join(recipe.targets)}"):
            artefacts = shipping.ship(draft, recipe.targets, _build_options(recipe, level))
        rows = _time(recipe, work, placed, progress)
        results = replace(results, artefacts=artefacts, bench=rows)
        _write(draft, recipe, recipe_text, (work, placed, results))
    return results


def _build_options(recipe: Recipe, level: str) -> BuildOptions:
    return BuildOptions(level, cache=engine_cache(recipe.cache))


def bundle_path(recipe: Recipe) -> Path:
    """Where a recipe's bundle goes."""
    return recipe.output or Path("build") / recipe.name


def _make(recipe: Recipe, progress: Progress) -> Work:
    """Load, remove and prove, select.

    A model that selects tokens itself keeps its markers through the removal.
    """
    plan = read_plan(recipe.plan) if recipe.plan is not None else None
    with progress.step(f"load and export {recipe.model.source}"):
        source = load_model(
            recipe.model.source, opset=recipe.model.opset, dynamic=recipe.model.dynamic
        )
    selections = [Select(**selection.model_dump()) for selection in recipe.select]
    samples = _samples(recipe, source, handed_in(selections))
    chosen = choose_samples(samples, source.graph, recipe.calibrate)
    with progress.step("find what can be removed"):
        analysis = analyse(source.graph)
    whole = source.marked or source.graph
    pruned = None
    if recipe.remove or plan is not None:
        with progress.step("remove, and prove it"):
            batches = list(chosen.samples.batches(recipe.parity.batch))
            fitting = Fitting(read_npz(recipe.arrays) if recipe.arrays else {}, recipe.compensate)
            pruned = prune_and_fit(whole, recipe.remove, fitting, plan=plan, batches=batches)
        worst = max(proof.relative_error for proof in pruned.proofs)
        progress.note(f"smaller graph == masked dense graph, relative error {worst:.1e}")
    reference = _reference(source, pruned, progress)
    smaller = pruned.model if pruned else whole
    if not selections and source.marked is None:
        return Work(source, reference, samples, chosen, analysis, pruned, source.graph, smaller)
    with progress.step("insert the token selections"):
        shipped = select_tokens(smaller, selections, restore=recipe.restore)
        check_counts(shipped, largest_sizes(shipped, recipe.traffic or recipe.profile))
        tokens_only = select_tokens(whole, selections, restore=recipe.restore)
    return Work(source, reference, samples, chosen, analysis, pruned, tokens_only, shipped)


def _reference(source: Source, pruned: Pruned | None, progress: Progress) -> Source:
    if pruned is None or pruned.fitted is None:
        return source
    net = None
    if source.net is not None:
        net = fitted_module(source.net, source.marked or source.graph, pruned.fitted)
    if source.net is not None and net is None:
        progress.note("the module has no place for every fitted weight: its graph is the reference")
    return replace(source, graph=pruned.fitted, net=net)


def _samples(recipe: Recipe, source: Source, shapes: Shapes) -> Samples:
    """The user's inputs; without any the model's own example, or one made up."""
    if recipe.data is None:
        made = example_samples(source.examples or made_up_batches(source.graph)[-1])
        return set_beside(made, shapes, where="")
    data = recipe.data
    found = load_samples(data, source)
    where = str(data.texts or data.images or data.npz or data.loader)
    return set_beside(found, shapes, where=where)


def _batches(recipe: Recipe, samples: Samples) -> list[dict[str, Any]]:
    """The first samples in ragged batches, as the dense model takes them."""
    return list(samples.batches(recipe.parity.batch, recipe.parity.samples))


def _whole_batches(recipe: Recipe, samples: Samples) -> list[dict[str, Any]]:
    """The same as a selecting model takes them."""
    return list(samples.whole_batches(recipe.parity.batch, recipe.parity.samples))


def _place_models(draft: Draft, recipe: Recipe, work: Work, progress: Progress) -> Placed:
    """Write the shipped model, its forced twin and the dense one; check every target first."""
    lowering = Lowering.of(recipe.precision)
    shipped, dense = work.shipped, work.reference.graph
    if recipe.quantise is not None:
        with progress.step(f"quantise to {recipe.quantise.kind} by the data"):
            batches = list(work.chosen.samples.whole_batches(recipe.parity.batch))
            shipped = quantised(shipped, recipe.quantise, batches)
        progress.note(what_was_rounded(shipped))
    if lowering.is_half:
        with progress.step(f"lower to {recipe.precision.type} what is safe on the data"):
            shipped = lower(shipped, lowering, _whole_batches(recipe, work.samples))
            dense = lower(dense, lowering, _batches(recipe, work.samples))
        progress.note(in_words(shipped))
    model = shipping.place_models(draft, shipped, dense)
    spec = shipping.engine_spec(model, recipe.traffic or recipe.profile)
    shipping.check_targets(model, spec, recipe.targets)
    shipping.with_spec(draft, spec, model)
    twin = draft.folder / names.FORCED_NAME
    return Placed(lowering, dense, shipped, model, twin if twin.exists() else model)


def _describe(recipe: Recipe, work: Work) -> Results:
    """What is known before anything runs."""
    tokens = recipe.bench.tokens if recipe.bench else work.samples.longest
    return Results(
        name=recipe.name,
        source=recipe.model.source,
        dense=size_of(work.source.graph, tokens=tokens),
        pruned=size_of(work.shipped, tokens=tokens),
        removed=work.pruned.removed if work.pruned else (),
        proofs=work.pruned.proofs if work.pruned else (),
        selections=selection_rows(work.shipped),
        frozen=tuple(_frozen(work.analysis)),
        environment=environment(),
        commands=(
            f"secateur deploy {names.RECIPE_NAME}",
            f"secateur parity {bundle_path(recipe).name}",
            f"secateur bench {bundle_path(recipe).name}",
        ),
    )


def _frozen(analysis: Analysis) -> list[Frozen]:
    """Every group that cannot be cut, with its first reason; axes of run time aside."""
    return [
        Frozen(group.name, reason.text, reason.node)
        for group in analysis.groups
        if group.weights
        for reason in group.frozen[:1]
    ]


def _verify(
    draft: Draft, recipe: Recipe, work: Work, placed: Placed, told: tuple[Results, Progress]
) -> tuple[Results, str]:
    """Compare with the reference and on the user's data; the level that is shipped."""
    results, progress = told
    options = verification.parity_options(recipe, work.source.outputs, token_outputs(work.analysis))
    options = replace(options, token_axes=token_axes(work.analysis))
    plan = work.pruned.plan if work.pruned else None
    batches: list[Arrays] = [*_whole_batches(recipe, work.samples)]
    with progress.step("compare with the PyTorch reference"):
        goldens = make_goldens(work.reference, plan, work.shipped, batches)
        draft.write(names.GOLDENS_NAME, _golden_bytes(goldens, options))
        verified = _verified(work, placed, goldens, options, batches)
    if verified.lowered_from:
        progress.note(f"graph optimisation lowered to {verified.level!r}: above it numbers change")
    with progress.step("compare with the dense model on the data"):
        shown = DataOptions(
            recipe.parity.task,
            recipe.parity.output or work.source.outputs[0],
            verified.level,
            recipe.report.samples,
        )
        with runnable(placed.file) as model:
            found = on_data(work.source, model, work.shipped, work.samples, shown)
    draft.write_json(
        names.PARITY_NAME,
        {
            "removal": [asdict(proof) | {"passed": proof.passed} for proof in results.proofs],
            "onnxruntime": {"optimisation": verified.level, **verified.report.to_json()},
            "checks": [asdict(check) for check in verified.checks],
            "dense": [asdict(agreement) for agreement in found.agreements],
        },
    )
    warnings = () if recipe.data else ("No data in the recipe: inputs were made up.",)
    done = replace(
        results,
        checks=verified.checks,
        agreements=found.agreements,
        samples=found.samples,
        warnings=warnings,
    )
    _stop_unless_equal(done, bundle_path(recipe))
    return done, verified.level


def _verified(
    work: Work, placed: Placed, goldens: list[Golden], options: Options, batches: list[Arrays]
) -> verification.Verified:
    """Compare on ONNX Runtime; where half precision fails, say which layer, and what to keep."""
    try:
        return verification.verify(placed.file, placed.forced, goldens, options)
    except ParityError as error:
        if not placed.lowering.is_half:
            raise
        feeds = goldens[0].forced_inputs()
        found = suspects(work.shipped, placed.lowering, feeds, batches=batches)
        raise explained(error, found) from error


def _golden_bytes(goldens: list[Golden], options: Options) -> bytes:
    """What an engine is compared with: outputs whose tokens are another axis stay here."""
    kept = [
        replace(one, outputs={n: x for n, x in one.outputs.items() if n not in options.token_axes})
        for one in goldens
    ]
    return goldens_to_bytes(shipping.golden_case(one, options.token_outputs) for one in kept)


def _stop_unless_equal(results: Results, output: Path) -> None:
    """A bundle that failed a check is not written; its report is, beside where it would be."""
    if results.passed:
        return
    report = output.with_name(f"{output.name}-failed.html")
    save_text(report, render_report(results))
    failed = next(check for check in results.checks if not check.passed)
    raise ParityError(
        f"{failed.part} of {failed.subject} failed on {failed.target}",
        got=f"{failed.value:.3g}; {failed.note}",
        wanted=f"at most {failed.bound:.3g}" if failed.bound is not None else "",
        next_step=f"read {report}",
    )


def _time(
    recipe: Recipe, work: Work, placed: Placed, progress: Progress
) -> tuple[dict[str, Any], ...]:
    if recipe.bench is None:
        return ()
    models = {"tokens": work.tokens_only, "removal": work.smaller}
    batches = {
        "tokens": _whole_batches(recipe, work.samples),
        "removal": _batches(recipe, work.samples),
    }
    chosen: dict[str, ir.Model] = {
        name: lower(models[name], placed.lowering, batches[name])
        if name in models
        else placed.shipped
        for name in recipe.bench.variants
    }
    with progress.step("time dense and pruned, in turns"):
        scratch = placed.file.parent / "bench"
        rows = time_variants(placed.dense, chosen, recipe.bench, folder=scratch, note=progress.note)
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()
    return rows


def _write(
    draft: Draft, recipe: Recipe, recipe_text: str, made: tuple[Work, Placed, Results]
) -> None:
    """Everything in the bundle that is not a model or an engine."""
    work, placed, results = made
    draft.write(names.RECIPE_NAME, recipe_text)
    if work.pruned is not None:
        draft.write(PLAN_NAME, work.pruned.plan.to_json())
    draft.write_json(names.BENCH_NAME, list(results.bench))
    draft.write(names.REPORT_NAME, render_report(results))
    heads = {r.layer: r.kept for r in results.removed if r.what == "heads"}
    draft.manifest = replace(
        draft.manifest,
        dtype=recipe.tolerances,
        kept_heads=heads,
        created_with=results.environment,
        facts={
            "name": results.name,
            "source": results.source,
            "precision": precision_record(placed.shipped),
            "quantised": quantisation_record(placed.shipped),
            "dense": asdict(results.dense),
            "pruned": asdict(results.pruned),
            "data": {"samples": len(work.samples), "sha256": work.samples.sha256},
            "calibration": work.chosen.record(),
        },
    )


__all__ = ["Progress", "Silent", "Work", "bundle_path", "deploy"]
