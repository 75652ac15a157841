"""Builds a bundle's engines from the model that it holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from secateur.errors import BadInputError
from secateur.runtime.backend import BACKENDS, EngineSpec, ShapeRange
from secateur.runtime.backends.onnxruntime import OPTIMISATION_LEVELS
from secateur.runtime.backends.tensorrt import TensorRt
from secateur.runtime.budgets import along, symbol_ranges
from secateur.runtime.build_job import QUIET, BuildJob
from secateur.runtime.bundle import FORCED_NAME, GOLDENS_NAME, MODEL_NAME
from secateur.runtime.bundle_writer import Draft
from secateur.runtime.checks import check_build
from secateur.runtime.compare import TOLERANCES
from secateur.runtime.datatypes import check_types
from secateur.runtime.deployed import highest_agreeing_level
from secateur.runtime.engine_cache import EngineCache, Fetched, ingredients
from secateur.runtime.goldens import read_goldens
from secateur.runtime.onnx_outline import ModelOutline, read_outline
from secateur.runtime.profiles import complete_spec
from secateur.runtime.sites import sites_from_metadata
from secateur.runtime.targets import Target, parse_target
from secateur.runtime.versions import same_series

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build what the manifest's specification describes.

    ``optimisation`` is ONNX Runtime's level as deployed. With ``forced`` the engine of the
    forced twin is built too, where the bundle carries one: parity on the target needs it.
    """

    optimisation: str
    forced: bool = True
    cache: EngineCache | None = None
    job: BuildJob = QUIET


def build_target(draft: Draft, target: str, options: BuildOptions) -> str:
    """Build one target's engine from the draft's model and enter it in the manifest.

    ``draft.manifest.spec`` gives the profiles; ranges of budgets default to what follows from
    them. Returns what there is to know: where the engine came from, and why.
    """
    parsed = parse_target(target)
    model = draft.folder / MODEL_NAME
    if not model.is_file():
        raise BadInputError("the bundle holds no model", where=str(draft.folder), wanted=MODEL_NAME)
    if parsed.backend == "onnxruntime":
        if parsed.capabilities:
            raise BadInputError(
                "a bundle is built for onnxruntime alone; its provider is chosen when it runs",
                got=target,
                next_step=f"build for onnxruntime, then run with --target {target}",
            )
        check_types(read_outline(model), parsed)
        _check_runs(model, options.optimisation)
        draft.add_onnxruntime(optimisation=options.optimisation)
        return f"runs the model itself, graph optimisation {options.optimisation!r}"
    made = _build(model, draft.manifest.spec, parsed, options)
    version = str(made.built.record["versions"]["tensorrt"])
    # An engine of TensorRT-RTX fits its whole series, one of TensorRT only its own version.
    requires = same_series(version) if parsed.backend == "rtx" else f"=={version}"
    draft.add_engine(str(parsed), made.built, requires=requires)
    twin = draft.folder / FORCED_NAME
    if options.forced and twin.is_file():
        spec = forced_spec(twin, draft.manifest.spec)
        draft.add_forced_engine(str(parsed), _build(twin, spec, parsed, options).built)
    return f"version {version}; {made.why}"


def safe_level(draft: Draft) -> str:
    """ONNX Runtime's highest optimisation level that changes nothing on the goldens' inputs.

    Without goldens there is nothing to check on, and nothing is optimised.
    """
    goldens = draft.folder / GOLDENS_NAME
    if not goldens.is_file():
        logger.warning("no goldens to check on: ONNX Runtime's graph optimisation stays off")
        return OPTIMISATION_LEVELS[0]
    return highest_agreeing_level(
        draft.folder / MODEL_NAME,
        [case.inputs for case in read_goldens(goldens)],
        tolerance=TOLERANCES[draft.manifest.dtype],
    )


def forced_spec(twin: Path, spec: EngineSpec) -> EngineSpec:
    """The specification of a forced twin, whose score biases are real inputs.

    The bias of a site is (B, N), N being the tokens that reach it: B as in the scores that the
    twin returns, N from the chain of sites.
    """
    outline = read_outline(twin)
    return spec.with_each([_forced(outline, one) for one in spec.each()])


def _forced(outline: ModelOutline, spec: EngineSpec) -> EngineSpec:
    sites = sites_from_metadata(outline.metadata)
    symbols = symbol_ranges(outline, spec.profiles)
    batches = {info.name: str(info.shape[0]) for info in outline.outputs if info.shape}
    biases = {}
    for stop in along(sites, symbols, spec.shape_values):
        batch = symbols.get(batches.get(f"{stop.site.name}.score", ""), (1, 1, 1))
        low, usual, high = zip(batch, stop.tokens, strict=True)
        biases[stop.site.bias] = ShapeRange(low, usual, high)
    return replace(spec, profiles={**spec.profiles, **biases})


def _build(model: Path, spec: EngineSpec, target: Target, options: BuildOptions) -> Fetched:
    outline = read_outline(model)
    complete = complete_spec(outline, spec, target)
    check_build(outline, sites_from_metadata(outline.metadata), complete, target)
    logger.info("building %s for %s", model.name, target)
    cache, job = options.cache, options.job
    if cache is None:
        built = TensorRt(target.backend).build_with_record(model, complete, job)
        return Fetched(built, False, "built, without a cache")
    if job.timing_cache is None:
        job = replace(job, timing_cache=cache.folder / "timings" / target.backend)
    build = partial(TensorRt(target.backend).build_with_record, model, complete, job)
    found = ingredients(target.backend, outline, model, spec=complete)
    return cache.fetch(found, build)


def _check_runs(model: Path, optimisation: str) -> None:
    """Open the model once: what ONNX Runtime cannot load must not become a target."""
    with BACKENDS["onnxruntime"](optimisation=optimisation).session(model):
        return


__all__ = ["BuildOptions", "build_target", "forced_spec", "safe_level"]
