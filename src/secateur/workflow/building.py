"""Engines from an ONNX file or for an existing bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from pydantic import ValidationError

from secateur.errors import BadInputError
from secateur.export.marker_translation import without_markers
from secateur.export.onnx_file import from_onnx
from secateur.graph_passes.lowering import MARKER, has_markers
from secateur.recipe import Profile, Traffic
from secateur.runtime.backends.onnxruntime import OPTIMISATION_LEVELS
from secateur.runtime.build import BuildOptions
from secateur.runtime.bundle import MODEL_NAME, is_bundle
from secateur.runtime.bundle_writer import Draft, new_bundle, revised_bundle
from secateur.runtime.compare import TOLERANCES
from secateur.runtime.deployed import highest_agreeing_level
from secateur.runtime.engine_cache import engine_cache
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.profiles import profiles_from_dimensions
from secateur.runtime.sites import sites_from_metadata
from secateur.runtime.targets import parse_target
from secateur.workflow import shipping
from secateur.workflow.golden import default_budgets
from secateur.workflow.precision import dtype_of
from secateur.workflow.pruning import recorded_plan
from secateur.workflow.random_inputs import made_up_batches
from secateur.workflow.results import Artefact
from secateur.workflow.selecting import select_tokens

AUTOMATIC = "auto"


def shapes_from(
    low: Sequence[str],
    usual: Sequence[str],
    high: Sequence[str],
    *,
    traffic: Path | None = None,
    count: int = 1,
) -> tuple[Profile, ...] | Traffic:
    """Profiles from three lists of strings of named shapes, ``input_ids:1x16,...``.

    Or ``count`` profiles from recorded requests, where there are no strings.

    Raises:
        BadInputError: not such strings, lists of different lengths, min <= opt <= max does
            not hold, or strings and requests are given.
    """
    if traffic is not None and not low:
        return Traffic(file=traffic, profiles=count)
    if traffic is not None:
        raise BadInputError("shapes and recorded traffic are both given", wanted="one of them")
    if not len(low) == len(usual) == len(high):
        raise BadInputError(
            "every profile has smallest, usual and largest shapes",
            got=f"{len(low)} --min-shapes, {len(usual)} --opt-shapes, {len(high)} --max-shapes",
            wanted="as many of each",
        )
    return tuple(_profile_from(*ends) for ends in zip(low, usual, high, strict=True))


def _profile_from(low: str, usual: str, high: str) -> Profile:
    try:
        return Profile.model_validate({"min": low, "opt": usual, "max": high})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise BadInputError(
            "the shapes of the profile do not fit together",
            where=f"--{name}-shapes" if name else "--min-shapes, --opt-shapes, --max-shapes",
            got=first["msg"].removeprefix("Value error, "),
            wanted="three lists such as input_ids:1x16,attention_mask:1x16",
        ) from None


def build_bundle(
    model: Path,
    output: Path | None,
    targets: Sequence[str],
    *,
    profiles: Sequence[Profile] | Traffic,
    options: BuildOptions,
) -> tuple[Artefact, ...]:
    """Build engines for a bundle, or a new bundle around an ONNX file.

    Args:
        model: a bundle or an .onnx file.
        output: of the new bundle; for a bundle None builds into it.
        targets: such as ``rtx:sm86``.
        profiles: shapes, or recorded requests; empty where a bundle has its own.
        options: the cache, and ONNX Runtime's level as deployed; ``auto`` takes the highest
            that changes no number of made-up inputs.

    Raises:
        BadInputError: what the model and the targets do not fit.
        BuildError: a builder refused or died; nothing was changed.
    """
    names = [str(parse_target(target)) for target in targets]
    if is_bundle(model):
        if output is not None:
            raise BadInputError(
                "engines are built into the bundle itself", got=str(output), wanted="no output"
            )
        with revised_bundle(model) as draft:
            return _build(draft, names, profiles, options)
    outline = read_outline(model)
    if output is None:
        raise BadInputError(
            "a new bundle needs a place",
            where=str(model),
            next_step=f"secateur build {model} OUTPUT --target {names[0]}",
        )
    with new_bundle(output) as draft:
        if MARKER[1] in outline.operators:
            _place(draft, from_onnx(model), dense=None)
        else:
            draft.place_model(MODEL_NAME, model)
        return _build(draft, names, profiles, options)


def bundle_model(
    model: ir.Model,
    path: Path,
    targets: Sequence[str],
    ranges: Mapping[str, tuple[int, int, int]],
    *,
    dense: ir.Model | None,
) -> tuple[Artefact, ...]:
    """Write a new bundle around a graph; see ``secateur.build``."""
    names = [str(parse_target(target)) for target in targets]
    with new_bundle(path) as draft:
        file = _place(draft, model, dense)
        outline = read_outline(file)
        budgets = {site.budget.input for site in sites_from_metadata(outline.metadata)}
        inputs = [info for info in outline.inputs if info.name not in budgets]
        spec = replace(draft.manifest.spec, profiles=profiles_from_dimensions(inputs, ranges))
        shipping.check_targets(file, spec, names)
        shipping.with_spec(draft, spec, file)
        level = _level(file, names, AUTOMATIC)
        return shipping.ship(draft, names, BuildOptions(level, cache=engine_cache("")))


def _place(draft: Draft, model: ir.Model, dense: ir.Model | None) -> Path:
    """Write a model; one that selects tokens in its own forward gets its selections now."""
    if not has_markers(model):
        return shipping.place_models(draft, model, dense)
    if dense is None and recorded_plan(model) is None:
        dense = model
    return shipping.place_models(
        draft, select_tokens(model, ()), None if dense is None else without_markers(dense)
    )


def _build(
    draft: Draft,
    targets: Sequence[str],
    profiles: Sequence[Profile] | Traffic,
    options: BuildOptions,
) -> tuple[Artefact, ...]:
    model = draft.folder / MODEL_NAME
    spec = draft.manifest.spec
    if profiles:
        spec = spec.with_each(shipping.engine_spec(model, profiles).each())
    shipping.check_targets(model, spec, targets)
    shipping.with_spec(draft, spec, model)
    if dtype_of(model) != "float32":
        draft.manifest = replace(draft.manifest, dtype=dtype_of(model))
    level = _level(model, targets, options.optimisation)
    return shipping.ship(draft, targets, replace(options, optimisation=level))


def _level(model: Path, targets: Sequence[str], asked: str) -> str:
    """The level that is asked for, or the highest that keeps the numbers of made-up inputs."""
    if asked != AUTOMATIC or not any(t.startswith("onnxruntime") for t in targets):
        return OPTIMISATION_LEVELS[-1] if asked == AUTOMATIC else asked
    graph = from_onnx(model)
    batches = [batch | default_budgets(graph) for batch in made_up_batches(graph)]
    return highest_agreeing_level(model, batches, tolerance=TOLERANCES[dtype_of(model)])


__all__ = ["build_bundle", "bundle_model", "shapes_from"]
