"""Targets of a bundle: what an engine must accept, what is checked first, and the building."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.export.onnx_file import save
from secateur.graph_passes.force_selection import force
from secateur.recipe import Profile, Traffic
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.backend import Profile as EngineProfile
from secateur.runtime.build import BuildOptions, build_target
from secateur.runtime.bundle import DENSE_NAME, FORCED_NAME, MODEL_NAME
from secateur.runtime.bundle_writer import Draft
from secateur.runtime.checks import check_build
from secateur.runtime.datatypes import check_types
from secateur.runtime.goldens import GoldenCase
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.profile_choice import advice
from secateur.runtime.profiles import complete_spec
from secateur.runtime.sites import Site, amount_of, sites_from_metadata
from secateur.runtime.targets import Target, parse_target
from secateur.runtime.traffic import profiles_from_traffic, read_traffic
from secateur.runtime.versions import installed_version
from secateur.workflow.golden import Golden, site_records
from secateur.workflow.results import Artefact

logger = logging.getLogger(__name__)


def place_models(draft: Draft, model: ir.Model, dense: ir.Model | None) -> Path:
    """Write the model as shipped, its forced twin, and the dense one; the first's path."""
    file = save(model, draft.folder / MODEL_NAME)[0]
    if dense is not None:
        save(dense, draft.folder / DENSE_NAME)
    if site_records(model):
        save(force(model), draft.folder / FORCED_NAME)
    return file


def engine_spec(model: Path, source: Sequence[Profile] | Traffic) -> EngineSpec:
    """The ranges that a recipe's profiles, or recorded requests, give a model.

    Raises:
        BadInputError: a profile for an input or a site that the model does not have; traffic
            that cannot be read.
    """
    outline = read_outline(model)
    if isinstance(source, Traffic):
        profiles = profiles_from_traffic(read_traffic(source.file), source.profiles)
    else:
        sites = {site.name: site for site in sites_from_metadata(outline.metadata)}
        profiles = tuple(_profile(one, sites) for one in source)
    known = [info.name for info in outline.inputs]
    unknown = [name for one in profiles for name in {**one.shapes, **one.values}]
    if unknown := [name for name in unknown if name not in known]:
        raise BadInputError(
            f"the profile names an input that the model does not have: {unknown[0]!r}",
            wanted="one of " + ", ".join(known),
        )
    for text in advice(profiles):
        logger.warning("%s", text)
    return EngineSpec().with_each([EngineSpec(one.shapes, one.values) for one in profiles or _NONE])


_NONE = (EngineProfile({}),)


def _profile(profile: Profile, sites: Mapping[str, Site]) -> EngineProfile:
    shapes = {name: ShapeRange(*ends) for name, ends in profile.ranges.items()}
    values = {}
    for name, amounts in profile.keep.items():
        if name not in sites or not sites[name].budget.input:
            raise BadInputError(
                f"the profile limits what site {name!r} keeps, which is not set at run time",
                wanted="one of "
                + (", ".join(n for n, s in sites.items() if s.budget.input) or "none"),
            )
        ends = [(amount_of(sites[name], amount),) for amount in amounts]
        values[sites[name].budget.input] = ShapeRange(*ends)
    return EngineProfile(shapes, values)


def check_targets(model: Path, spec: EngineSpec, targets: Iterable[str]) -> None:
    """Raise before any build what a builder would stumble on later: profiles, K, operators.

    Raises:
        BadInputError: no profile where one is needed, K above N or 3840, operators or types
            that a target lacks.
        MissingDependencyError: a target's library is not installed.
    """
    outline = read_outline(model)
    sites = sites_from_metadata(outline.metadata)
    for target in map(parse_target, targets):
        if target.backend == "onnxruntime" and not spec.profiles:
            check_types(outline, target)  # it takes every shape
        else:
            check_build(outline, sites, complete_spec(outline, spec, target), target)
        installed_version(target.backend)


def ship(draft: Draft, targets: Iterable[str], options: BuildOptions) -> tuple[Artefact, ...]:
    """Build every target into a bundle.

    Raises:
        BuildError: a builder refuses the model or dies.
    """
    return tuple(_ship(draft, target, options) for target in targets)


def _ship(draft: Draft, text: str, options: BuildOptions) -> Artefact:
    start = time.perf_counter()
    note = build_target(draft, text, options)
    seconds = time.perf_counter() - start
    target = parse_target(text)
    file = draft.manifest.engines[str(target)].file
    if target.backend != "onnxruntime":
        note = f"{note}; not run on this machine"
    return Artefact(str(target), file, (draft.folder / file).stat().st_size, seconds, note)


def golden_case(golden: Golden, token_outputs: frozenset[str]) -> GoldenCase:
    """A golden as the runtime reads it."""
    free = golden.free_inputs()
    return GoldenCase(
        inputs=free,
        outputs=golden.outputs,
        forced={k: v for k, v in golden.forced_inputs().items() if k not in free},
        selections=dict(golden.selections()),
        kept=golden.kept(),
        token_outputs=token_outputs,
    )


def with_spec(draft: Draft, spec: EngineSpec, model: Path) -> None:
    """Record the profiles and the ranges of budgets that follow from them in the manifest."""
    if spec.profiles:
        spec = complete_spec(read_outline(model), spec, Target("onnxruntime"))
    draft.manifest = replace(draft.manifest, spec=spec)


__all__ = ["check_targets", "engine_spec", "golden_case", "place_models", "ship", "with_spec"]
