"""Parity of what is shipped: goldens from the reference, then each engine against them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from secateur.errors import ParityError
from secateur.recipe import Recipe
from secateur.runtime.backend import Array, Arrays, Run
from secateur.runtime.backends.onnxruntime import OPTIMISATION_LEVELS, OnnxRuntime
from secateur.runtime.compare import relative_error
from secateur.workflow.golden import Golden
from secateur.workflow.parity import METRICS, Options, ParityReport, Task, check
from secateur.workflow.precision import dtype_of, rounded, runs_on_cpu
from secateur.workflow.results import Agreement, Check

TASKS: dict[str, tuple[str, ...]] = {
    "embedding": ("cosine", "nearest_neighbour"),
    "top1": ("top1",),
    "none": (),
}
_TITLES = {
    "cosine": "embedding cosine",
    "nearest_neighbour": "same nearest neighbour",
    "top1": "same top-1",
}


@dataclass(frozen=True, slots=True)
class Verified:
    """An optimisation level of ONNX Runtime that passed, and what was measured at it."""

    level: str
    report: ParityReport
    checks: tuple[Check, ...]
    lowered_from: str
    """The level that was asked for and failed; "" when it passed."""


def parity_options(
    recipe: Recipe, outputs: Sequence[str], token_outputs: frozenset[str]
) -> Options:
    """The bounds and tasks of a recipe; the outputs that have a row per token."""
    output = recipe.parity.output or outputs[0]
    tasks = tuple(Task(metric, output) for metric in TASKS[recipe.parity.task])
    return Options(recipe.tolerances, token_outputs, tasks)


def verify(model: Path, forced: Path, goldens: Sequence[Golden], options: Options) -> Verified:
    """Compare what is shipped, with every half-precision result rounded as on a GPU.

    A model in float16 is compared as ONNX Runtime runs it, too; none is in bfloat16.

    Raises:
        ParityError: either comparison fails.
    """
    dtype = dtype_of(model)
    if dtype == "float32":
        return verify_onnxruntime(model, forced, goldens, options)
    with rounded(model) as twin, rounded(forced) as forced_twin:
        levels = OPTIMISATION_LEVELS[:1]
        found = verify_onnxruntime(twin, forced_twin, goldens, options, levels=levels)
    name = f"{dtype}, every result rounded"
    checks = tuple(replace(row, target=name) for row in found.checks)
    if not runs_on_cpu(model):
        return replace(found, checks=checks)
    deployed = verify_onnxruntime(model, forced, goldens, options)
    return replace(deployed, checks=(*checks, *deployed.checks))


def verify_onnxruntime(
    model: Path,
    forced: Path,
    goldens: Sequence[Golden],
    options: Options,
    *,
    levels: Sequence[str] = OPTIMISATION_LEVELS,
) -> Verified:
    """Compare at the highest optimisation level, and at lower ones until one passes.

    ONNX Runtime's own rewrites can change numbers; the level that is shipped is the highest
    at which the model is still the reference.

    Raises:
        ParityError: it is not even the reference without any rewriting.
    """
    asked = levels[-1]
    for level in reversed(levels):
        backend = OnnxRuntime(optimisation=level)
        with backend.session(forced) as forced_run, backend.session(model) as run:
            report = check(goldens, forced_run, free=run, options=options)
            if report.passed:
                target = f"onnxruntime ({level})"
                law = _batch_law(run, goldens[0], options)
                checks = [replace(row, target=target) for row in (*_checks(report), law)]
                if goldens[0].sites:
                    checks.append(_planted_error(forced_run, goldens, options))
                lowered = "" if level == asked else asked
                return Verified(level, report, tuple(checks), lowered)
    failed = [row for row in report.rows() if not row.passed]
    raise ParityError(
        "the model that would be shipped is not the reference",
        where=f"{failed[0].part} of {failed[0].subject}" if failed else "",
        got=f"{failed[0].value:.3g}; {failed[0].note}" if failed else "nothing was compared",
        wanted=f"at most {failed[0].bound:.3g}" if failed and failed[0].bound else "",
        next_step="secateur parity --bisect names the first layer that differs",
    )


def planted_error_is_caught(forced: Run, goldens: Sequence[Golden], options: Options) -> bool:
    """Whether the check fails, as it must, when one kept index of the first site is wrong."""
    site = next(iter(goldens[0].sites))

    def spoiled(arrays: Arrays) -> dict[str, Array]:
        outputs = forced(arrays)
        return outputs | {f"{site}.index": _with_wrong_index(outputs, site)}

    without_tasks = replace(options, tasks=())
    return not check(goldens[:1], spoiled, free=None, options=without_tasks).passed


def _planted_error(forced: Run, goldens: Sequence[Golden], options: Options) -> Check:
    caught = planted_error_is_caught(forced, goldens, options)
    note = "a wrong index was planted, and the comparison " + ("failed" if caught else "missed it")
    site = next(iter(goldens[0].sites))
    return Check("the check itself", "planted error", site, float(not caught), 0.0, caught, note)


def _with_wrong_index(outputs: Arrays, site: str) -> Array:
    """Replace the best-scored kept position of the first sample that is not protected."""
    index, score = outputs[f"{site}.index"].copy(), outputs[f"{site}.score"][0]
    kept = index[0][index[0] >= 0]
    finite = np.where(np.isfinite(score), score, -np.inf)
    dropped = [i for i in np.argsort(finite) if i not in kept and np.isfinite(score[i])]
    merit = [i for i in kept if np.isfinite(score[i])]
    best = max(merit, key=lambda i: finite[i])
    row = [dropped[0] if i == best else i for i in index[0]]
    index[0] = [*sorted(i for i in row if i >= 0), *(i for i in row if i < 0)]
    return index


def _checks(report: ParityReport) -> Iterator[Check]:
    for row in report.rows():
        yield Check("", row.part, row.subject, row.value, row.bound, row.passed, row.note)


def _batch_law(run: Run, golden: Golden, options: Options) -> Check:
    """Each sample's outputs in a ragged batch against its outputs alone; the worst."""
    together = run(golden.free_inputs())
    errors = []
    for sample in range(len(next(iter(golden.inputs.values())))):
        alone = run(_alone(golden, sample))
        errors += [
            relative_error(_rows(together[name][sample], alone[name][0]), alone[name][0])
            for name in golden.outputs
        ]
    worst, bound = max(errors, default=0.0), options.tolerance.value
    note = "every sample of a ragged batch run alone, without its padding"
    return Check("", "batch law", "all outputs", worst, bound, worst <= bound, note)


def _rows(together: Array, alone: Array) -> Array:
    """The part of a padded sample's output that it has alone."""
    return together[tuple(slice(0, size) for size in alone.shape)]


def _alone(golden: Golden, sample: int) -> dict[str, Array]:
    """One sample without its padding: the columns that no mask of zeros covers."""
    one = {name: array[sample : sample + 1] for name, array in golden.inputs.items()}
    masks = [a for n, a in one.items() if n.endswith("mask") and a.ndim == 2]
    length = int(masks[0].sum()) if masks else 0
    handed = tuple(f"{site}." for site in golden.sites)  # to a selection: no column is a token
    cut = {
        n: a[:, :length] if length and a.ndim == 2 and not n.startswith(handed) else a
        for n, a in one.items()
    }
    feeds = {k: v for site in golden.sites.values() for k, v in site.feeds.items()}
    return {**feeds, **cut}


def agreements(
    shipped: Iterable[Array], dense: Iterable[Array], *, task: str, target: str
) -> tuple[Agreement, ...]:
    """The task's measures between the shipped and the dense model over all samples."""
    got, wanted = np.concatenate(list(shipped)), np.concatenate(list(dense))
    return tuple(
        Agreement(target, _TITLES[name], METRICS[name](got, wanted), f"{len(got)} samples")
        for name in TASKS[task]
    )


__all__ = [
    "TASKS",
    "Verified",
    "agreements",
    "parity_options",
    "planted_error_is_caught",
    "verify",
    "verify_onnxruntime",
]
