"""A Triton model repository from a bundle, written whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from secateur.errors import BadInputError
from secateur.graph_passes.served_budgets import serve_budgets
from secateur.runtime.budgets import symbol_ranges
from secateur.runtime.bundle import GOLDENS_NAME, MODEL_NAME, Bundle
from secateur.runtime.files import partial_path, remove, remove_stale_partials, sync
from secateur.runtime.files import replace as replace_path
from secateur.runtime.goldens import read_goldens
from secateur.runtime.manifest import EngineEntry
from secateur.runtime.onnx_outline import ModelOutline, read_outline
from secateur.runtime.signature import TensorInfo
from secateur.runtime.targets import parse_target
from secateur.workflow.triton_config import MARK, ModelConfig, WarmUp

BudgetMode: TypeAlias = Literal["auto", "fixed", "optional", "per-request"]

_CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Triton's numbers for ONNX Runtime's optimisation levels; 0 stays unwritten and means all.
_LEVELS = {"all": 0, "basic": -1, "extended": 1, "disabled": 2}


@dataclass(frozen=True, slots=True)
class Serving:
    """What to serve and how.

    ``name`` "" means the bundle's own; ``max_batch`` 0 the profile's largest batch.
    """

    target: str = "onnxruntime"
    name: str = ""
    budgets: BudgetMode = "auto"
    max_batch: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """The folder of the model that was written, its configuration, and what to know of it."""

    folder: Path
    config: ModelConfig
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Batching:
    """The largest and usual batch that Triton may make, or why it may make none."""

    largest: int
    usual: int
    reason: str = ""


def write_repository(bundle: Bundle, repository: Path, serving: Serving) -> Served:
    """Write ``repository/<name>`` with ``config.pbtxt`` and version 1 of the model.

    Raises:
        BadInputError: nothing was built for the target, Triton cannot serve the target, the
            folder holds something else, or the budgets cannot be served in that way.
    """
    name = _checked_name(serving.name or bundle.path.resolve().name.removesuffix(".zip"))
    backend = parse_target(serving.target).backend
    entry = _entry(bundle, backend)
    folder = repository / name
    _check_free(folder)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(folder)
        partial = partial_path(folder)
        try:
            (partial / "1").mkdir(parents=True)
            write = _write_plan if backend == "tensorrt" else _write_onnx
            config, notes = write(bundle, entry, serving, folder=partial, name=name)
            (partial / _CONFIG).write_text(config.to_text(), encoding="utf-8")
            sync(partial)
            replace_path(partial, folder)
        finally:
            remove(partial)
    except OSError as error:
        raise BadInputError(
            "cannot write the model repository",
            where=str(repository),
            got=str(error),
            next_step="nothing was changed; free some space or choose another folder",
        ) from error
    return Served(folder, config, notes)


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name):
        return name
    raise BadInputError(
        "this is no name for a served model",
        got=repr(name),
        wanted="letters, digits, _ . and -",
        next_step="give one with --name",
    )


def _entry(bundle: Bundle, backend: str) -> EngineEntry:
    if backend == "rtx":
        raise BadInputError(
            "Triton cannot open an engine of TensorRT-RTX",
            where=str(bundle.path),
            wanted="target onnxruntime or tensorrt",
            next_step="--target onnxruntime serves the ONNX file of the same bundle",
        )
    if backend in bundle.manifest.engines:
        return bundle.manifest.engines[backend]
    raise BadInputError(
        f"the bundle was not built for {backend}",
        where=str(bundle.path),
        got=", ".join(bundle.manifest.engines) or "built for no target",
        next_step=f"python -m secateur.runtime build {bundle.path} --target {backend}",
    )


def _check_free(folder: Path) -> None:
    """Only what this command wrote is replaced."""
    config = folder / _CONFIG
    is_ours = config.is_file() and config.read_bytes().startswith(MARK.encode())
    if folder.exists() and not is_ours:
        raise BadInputError(
            "there is something else where the served model should go",
            where=str(folder),
            wanted=f"a new folder, or one whose {_CONFIG} secateur wrote",
            next_step="choose another --name or folder, or move what is there away",
        )


# --- ONNX Runtime --------------------------------------------------------------------------


def _write_onnx(
    bundle: Bundle, entry: EngineEntry, serving: Serving, *, folder: Path, name: str
) -> tuple[ModelConfig, tuple[str, ...]]:
    from secateur.export.onnx_file import from_onnx, save

    mode = "fixed" if serving.budgets == "auto" else serving.budgets
    outline = read_outline(bundle.model)
    fixed = _without_budgets(bundle, outline)
    batching = _batching(bundle, fixed, serving.max_batch)
    if mode == "optional":
        batching = _Batching(0, 0, "an optional input is for models that do not batch")
    elif mode == "per-request" and not batching.largest:
        raise BadInputError(
            "budgets per request need a model that Triton can batch",
            where=str(bundle.path),
            got=batching.reason,
            next_step="--budgets optional serves them without batching",
        )
    batch = str(fixed.inputs[0].shape[0]) if batching.largest else "batch"
    save(serve_budgets(from_onnx(bundle.model), mode, batch=batch), folder / "1" / MODEL_NAME)
    served = read_outline(folder / "1" / MODEL_NAME)
    options = str(entry.options.get("optimisation", "all"))
    config = ModelConfig(
        name=name,
        platform="onnxruntime_onnx",
        inputs=served.inputs,
        outputs=served.outputs,
        max_batch=batching.largest,
        preferred=_preferred(batching),
        graph_level=_LEVELS[options],
        warm_up=_warm_up(bundle, served.inputs, batching, folder=folder),
    )
    notes = (*_notes(batching, config), *_budget_notes(bundle, mode), *_level_notes(config))
    return config, notes


def _budget_notes(bundle: Bundle, mode: str) -> list[str]:
    sites = [site for site in bundle.manifest.sites if site.budget.input]
    if mode == "fixed":
        return [
            f"site {site.name} keeps {site.budget.default} {site.budget.kind} in every request; "
            "--budgets per-request or optional makes that an input"
            for site in sites
        ]
    if mode == "optional":
        return [f"{s.budget.input} is optional, default {s.budget.default}" for s in sites]
    return [
        f"{s.budget.input} is an input of every request, int64 [1]; 0 means {s.budget.default}"
        for s in sites
    ]


def _level_notes(config: ModelConfig) -> list[str]:
    if config.graph_level != _LEVELS["disabled"]:
        return []
    return ["graph level 2 (no optimisation) needs a Triton whose ONNX Runtime backend knows it"]


# --- TensorRT ------------------------------------------------------------------------------


def _write_plan(
    bundle: Bundle, entry: EngineEntry, serving: Serving, *, folder: Path, name: str
) -> tuple[ModelConfig, tuple[str, ...]]:
    budgets = [site.budget for site in bundle.manifest.sites if site.budget.input]
    if serving.budgets != "auto" and budgets:
        raise BadInputError(
            "the budget of a TensorRT engine is a shape input, and required",
            where=str(bundle.path),
            got=f"--budgets {serving.budgets}",
            next_step="leave --budgets out, or serve --target onnxruntime",
        )
    shutil.copyfile(bundle.file(entry.file), folder / "1" / "model.plan")
    outline = read_outline(bundle.model)
    inputs = tuple(info for info in outline.inputs if not info.optional)
    batching = _batching(bundle, outline, serving.max_batch)
    if budgets:
        batching = _Batching(0, 0, f"{budgets[0].input} holds one budget for a whole batch")
    config = ModelConfig(
        name=name,
        platform="tensorrt_plan",
        inputs=inputs,
        outputs=outline.outputs,
        max_batch=batching.largest,
        preferred=_preferred(batching),
        shape_inputs=frozenset(budget.input for budget in budgets),
        warm_up=_warm_up(bundle, inputs, batching, folder=folder),
        instances="KIND_GPU",
        n_profiles=len(bundle.manifest.spec.all_profiles),
    )
    version = f"Triton has to carry TensorRT {entry.requires}, on the GPU it was built on"
    return config, (*_notes(batching, config), version)


# --- batches and warm-up -------------------------------------------------------------------


def _without_budgets(bundle: Bundle, outline: ModelOutline) -> ModelOutline:
    budgets = {site.budget.input for site in bundle.manifest.sites}
    inputs = tuple(i for i in outline.inputs if i.name not in budgets and not i.optional)
    return ModelOutline(
        inputs, outline.outputs, (), {}, (), opset=outline.opset, metadata=outline.metadata
    )


def _batching(bundle: Bundle, outline: ModelOutline, asked: int) -> _Batching:
    """Triton may concatenate requests where every tensor's first axis is the batch."""
    inputs = tuple(info for info in outline.inputs if not info.optional)
    symbol = inputs[0].shape[0] if inputs and inputs[0].shape else ""
    for info in (*inputs, *outline.outputs):
        first = info.shape[0] if info.shape else ""
        if not isinstance(first, str) or not first or first != symbol:
            return _Batching(0, 0, f"the first axis of {info.name} is not a dynamic batch")
    ends = [
        symbol_ranges(outline, one.shapes).get(str(symbol), (1, 1, asked))
        for one in bundle.manifest.spec.all_profiles
    ]
    low, usual, high = min(e[0] for e in ends), ends[0][1], max(e[2] for e in ends)
    if not high:
        raise BadInputError(
            "the bundle has no profile that says how large a batch may be",
            where=str(bundle.path),
            next_step="--max-batch-size 8, or build the bundle with shapes",
        )
    if asked > high:
        raise BadInputError(
            "the largest batch is larger than the bundle's profile",
            got=str(asked),
            wanted=f"at most {high}",
            next_step="build the bundle with larger shapes",
        )
    if low > 1:
        return _Batching(0, 0, f"the profile takes no batch smaller than {low}")
    largest = asked or high
    return _Batching(largest, min(usual, largest))


def _preferred(batching: _Batching) -> tuple[int, ...]:
    return tuple(sorted({n for n in (batching.usual, batching.largest) if n > 1}))


def _notes(batching: _Batching, config: ModelConfig) -> list[str]:
    notes = [] if config.max_batch else [f"no dynamic batching: {batching.reason}"]
    if config.warm_up is None:
        notes.append("no warm-up: the bundle has no profile of every dynamic input")
    return notes


def _warm_up(
    bundle: Bundle, inputs: tuple[TensorInfo, ...], batching: _Batching, *, folder: Path
) -> WarmUp | None:
    """Requests of the profile's usual shapes: golden data where there is some, else zeros."""
    shapes = _usual_shapes(bundle, inputs)
    if shapes is None:
        return None
    if batching.largest:
        shapes = {name: shape[1:] for name, shape in shapes.items()}
    arrays = _data(bundle)
    files = {}
    for number, info in enumerate(inputs):
        if info.name in arrays:
            (folder / "warmup").mkdir(exist_ok=True)
            data = np.resize(arrays[info.name], shapes[info.name])
            files[info.name] = f"input_{number}"
            (folder / "warmup" / files[info.name]).write_bytes(data.tobytes())
    return WarmUp(max(1, batching.usual), shapes, files)


def _usual_shapes(
    bundle: Bundle, inputs: tuple[TensorInfo, ...]
) -> dict[str, tuple[int, ...]] | None:
    profiles = bundle.manifest.spec.profiles
    budgets = {site.budget.input for site in bundle.manifest.sites}
    found: dict[str, tuple[int, ...]] = {}
    for info in inputs:
        static = tuple(size for size in info.shape if isinstance(size, int))
        if info.name in profiles:
            found[info.name] = profiles[info.name].usual
        elif info.name in budgets:
            found[info.name] = (1,) * len(info.shape)
        elif len(static) == len(info.shape):
            found[info.name] = static
        else:
            return None
    return found


def _data(bundle: Bundle) -> Mapping[str, np.ndarray]:
    budgets = {
        site.budget.input: np.array([site.budget.default], np.int64)
        for site in bundle.manifest.sites
        if site.budget.input
    }
    if GOLDENS_NAME not in bundle:
        return budgets
    cases = read_goldens(bundle.file(GOLDENS_NAME))
    return {**(cases[0].inputs if cases else {}), **budgets}


__all__ = ["BudgetMode", "Served", "Serving", "write_repository"]
