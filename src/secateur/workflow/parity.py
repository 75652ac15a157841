"""Is it the same model? Score error, flips, value error on equal tokens, task agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.registry import Registry
from secateur.runtime.backend import Array, Run
from secateur.runtime.compare import (
    TOLERANCES,
    Comparison,
    SelectionComparison,
    Tolerance,
    compare,
    compare_selection,
    on_kept_rows,
)
from secateur.workflow.golden import Golden

METRICS: Registry[Callable[[Array, Array], float]] = Registry("task metric")


@dataclass(frozen=True, slots=True)
class Task:
    """What the user does with an output, measured free-running over all data."""

    metric: str
    """Name in ``METRICS``."""
    output: str
    bound: float | None = None
    """Least agreement that passes; None only reports."""


@dataclass(frozen=True, slots=True)
class TaskAgreement:
    """Agreement of the model as shipped with the reference."""

    metric: str
    output: str
    value: float
    bound: float | None
    samples: int

    @property
    def passed(self) -> bool:
        """True without a bound; NaN fails a bound."""
        return self.bound is None or self.value >= self.bound


@dataclass(frozen=True, slots=True)
class Options:
    """What is compared, and how strictly; fixed before anything runs."""

    precision: str = "float32"
    """Key of ``runtime.compare.TOLERANCES``."""
    token_outputs: frozenset[str] = frozenset()
    """Outputs with a row per token of the input (restored ones): compared on kept rows."""
    tasks: tuple[Task, ...] = ()
    token_axes: Mapping[str, int] = field(default_factory=dict)
    """The same of outputs whose tokens are another axis than the one behind the batch."""

    @property
    def tolerance(self) -> Tolerance:
        """The bounds of this precision."""
        if self.precision not in TOLERANCES:
            raise BadInputError(
                f"no tolerance is stated for {self.precision!r}",
                wanted="one of " + ", ".join(TOLERANCES),
            )
        return TOLERANCES[self.precision]


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The four parts. Every site and output is its worst batch."""

    precision: str
    batches: int
    sites: tuple[SelectionComparison, ...]
    outputs: tuple[Comparison, ...]
    tasks: tuple[TaskAgreement, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing failed."""
        verdicts = [
            *(site.passed for site in self.sites),
            *(output.passed for output in self.outputs),
            *(task.passed for task in self.tasks),
        ]
        return self.batches > 0 and bool(self.outputs) and all(verdicts)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every number and the verdict of every part."""
        return {
            "precision": self.precision,
            "batches": self.batches,
            "passed": self.passed,
            "sites": [site.to_json() for site in self.sites],
            "outputs": [output.to_json() for output in self.outputs],
            "tasks": [asdict(task) | {"passed": task.passed} for task in self.tasks],
        }

    def rows(self) -> list[ParityRow]:
        """Lines of a table, in the order of the four parts."""
        scores = [
            ParityRow("score", s.site, s.score_error, s.score_bound, s.passed, s.reason)
            for s in self.sites
        ]
        flips = [
            ParityRow("flips", s.site, float(s.flips), None, s.passed, _margin_note(s))
            for s in self.sites
        ]
        values = [
            ParityRow("value", o.name, o.relative_error, o.bound, o.passed, _value_note(o))
            for o in self.outputs
        ]
        tasks = [
            ParityRow("task", f"{t.metric} of {t.output}", t.value, t.bound, t.passed, "")
            for t in self.tasks
        ]
        return [*scores, *flips, *values, *tasks]


@dataclass(frozen=True, slots=True)
class ParityRow:
    """One line of the parity table."""

    part: str
    subject: str
    value: float
    bound: float | None
    passed: bool
    note: str


def check(
    goldens: Iterable[Golden], forced: Run, *, free: Run | None, options: Options
) -> ParityReport:
    """Compare an engine with the reference's answers.

    Args:
        goldens: the reference, batch by batch; consumed once.
        forced: the forced twin of the engine (``graph_passes.force_selection``), or the
            engine itself where no tokens are selected.
        free: the engine as shipped, for the tasks; may be None without tasks.
        options: bounds and tasks.

    Raises:
        BadInputError: an output or a site that the engine does not return, unknown names
            in ``options``. A mismatch is not an error here: ask ``report.passed``.
    """
    if options.tasks and free is None:
        raise BadInputError("tasks are measured free-running", wanted="the engine as shipped")
    seen, samples = [], []
    for golden in goldens:
        seen.append(_check_batch(golden, forced(golden.forced_inputs()), options))
        if free is not None and options.tasks:
            samples.append((golden.outputs, free(golden.free_inputs())))
    return ParityReport(
        precision=options.precision,
        batches=len(seen),
        sites=_worst_sites([sites for sites, _ in seen]),
        outputs=_worst_outputs([outputs for _, outputs in seen]),
        tasks=tuple(_agreement(task, samples) for task in options.tasks),
    )


def agreement(task: Task, pairs: Sequence[tuple[Array, Array]]) -> TaskAgreement:
    """Measure a task over pairs of (got, wanted) outputs, (B, ...) each."""
    got, wanted = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return TaskAgreement(
        task.metric, task.output, METRICS[task.metric](got, wanted), task.bound, len(got)
    )


def _check_batch(
    golden: Golden, got: dict[str, Array], options: Options
) -> tuple[list[SelectionComparison], list[Comparison]]:
    sites = [
        compare_selection(
            name,
            _named(got, f"{name}.score"),
            _named(got, f"{name}.index"),
            reference=reference,
            bound=options.tolerance.score,
        )
        for name, reference in golden.selections()
    ]
    outputs = [
        compare(
            name,
            *on_kept_rows(
                _tokens_second(_named(got, name), name, options),
                _tokens_second(wanted, name, options),
                golden.kept(),
                is_restored=name in options.token_outputs or name in options.token_axes,
            ),
            tolerance=options.tolerance,
        )
        for name, wanted in golden.outputs.items()
    ]
    return sites, outputs


def _tokens_second(array: Array, name: str, options: Options) -> Array:
    """Bring the tokens of an output to the axis behind the batch."""
    return np.moveaxis(array, options.token_axes[name], 1) if name in options.token_axes else array


def _named(arrays: dict[str, Array], name: str) -> Array:
    if name not in arrays:
        raise BadInputError(
            f"the engine returns no {name!r}",
            got=", ".join(arrays),
            next_step="compare the forced twin, which returns scores and indices of every site",
        )
    return arrays[name]


def _worst_sites(batches: list[list[SelectionComparison]]) -> tuple[SelectionComparison, ...]:
    def merged(batch_rows: tuple[SelectionComparison, ...]) -> SelectionComparison:
        worst = max(
            batch_rows, key=lambda s: (not s.passed, s.score_error / (s.score_bound or 1.0))
        )
        return SelectionComparison(
            site=worst.site,
            score_error=worst.score_error,
            score_bound=worst.score_bound,
            flips=sum(row.flips for row in batch_rows),
            worst_margin=max(row.worst_margin for row in batch_rows),
            passed=all(row.passed for row in batch_rows),
            reason=worst.reason,
        )

    return tuple(merged(rows) for rows in zip(*batches, strict=True))


def _worst_outputs(batches: list[list[Comparison]]) -> tuple[Comparison, ...]:
    return tuple(
        max(rows, key=lambda c: (not c.passed, c.relative_error))
        for rows in zip(*batches, strict=True)
    )


def _agreement(
    task: Task, samples: Sequence[tuple[dict[str, Array], dict[str, Array]]]
) -> TaskAgreement:
    return agreement(
        task, [(_named(got, task.output), _named(wanted, task.output)) for wanted, got in samples]
    )


def _margin_note(site: SelectionComparison) -> str:
    return f"largest margin {site.worst_margin:.2g}" if site.flips else ""


def _value_note(output: Comparison) -> str:
    note = f"cosine {output.cosine:.7f}, p99 {output.p99:.2g}"
    return f"{note}; {output.reason}" if output.reason else note


@METRICS.register("top1")
def top1(got: Array, wanted: Array) -> float:
    """Share of samples whose largest entry of the last axis is the same."""
    return float((got.argmax(axis=-1) == wanted.argmax(axis=-1)).mean())


@METRICS.register("cosine")
def mean_cosine(got: Array, wanted: Array) -> float:
    """Mean cosine of each sample's output with the reference's."""
    return float((_unit(got) * _unit(wanted)).sum(axis=1).mean())


@METRICS.register("nearest_neighbour")
def nearest_neighbour(got: Array, wanted: Array) -> float:
    """Share of samples whose nearest other sample, by cosine, is the same."""
    return float((_nearest(got) == _nearest(wanted)).mean())


def _unit(x: Array) -> Array:
    rows = x.reshape(len(x), -1).astype(np.float64)
    result: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return result


def _nearest(x: Array) -> Array:
    similarity = _unit(x) @ _unit(x).T
    np.fill_diagonal(similarity, -np.inf)
    result: Array = similarity.argmax(axis=1)
    return result


__all__ = [
    "METRICS",
    "Options",
    "ParityReport",
    "ParityRow",
    "Task",
    "TaskAgreement",
    "agreement",
    "check",
]
