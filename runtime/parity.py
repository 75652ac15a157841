"""Compares a bundle's engine with its goldens, on the machine that it will run on.

The forced twin is held to bounds: scores, selections and values on equal tokens. The engine
as shipped runs free; where it selects tokens its values are reported, not judged, because
an allowed flip changes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays, Run
from secateur.runtime.bundle import GOLDENS_NAME, Bundle, open_bundle
from secateur.runtime.compare import (
    TOLERANCES,
    Comparison,
    SelectionComparison,
    Tolerance,
    compare,
    compare_selection,
    on_kept_rows,
)
from secateur.runtime.goldens import GoldenCase, read_goldens
from secateur.runtime.session import DEFAULT_TARGET, backend_for


@dataclass(frozen=True, slots=True)
class GoldenParity:
    """What was compared, case by case. ``free`` is judged only where no tokens are selected."""

    target: str
    dtype: str
    cases: int
    sites: tuple[SelectionComparison, ...]
    outputs: tuple[Comparison, ...]
    free: tuple[Comparison, ...]
    selects_tokens: bool

    @property
    def passed(self) -> bool:
        """Whether something was compared and everything that is judged held."""
        return self.cases > 0 and bool(self.outputs or self.free) and not self.failures()

    def failures(self) -> tuple[str, ...]:
        """Every judged row that failed, as ``subject: reason``."""
        judged = [*self.outputs, *(() if self.selects_tokens else self.free)]
        return (
            *(f"site {site.site}: {site.reason}" for site in self.sites if not site.passed),
            *(f"output {row.name}: {row.reason}" for row in judged if not row.passed),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every number and verdict."""
        return {
            "target": self.target,
            "dtype": self.dtype,
            "cases": self.cases,
            "passed": self.passed,
            "sites": [site.to_json() for site in self.sites],
            "outputs": [output.to_json() for output in self.outputs],
            "free": [output.to_json() for output in self.free],
        }


def check_goldens(bundle: Bundle | Path | str, target: str = DEFAULT_TARGET) -> GoldenParity:
    """Run a bundle's goldens on a target and compare.

    A mismatch is not an error here: ask ``passed``. Raises BadInputError for a bundle without
    goldens, or one that selects tokens without a forced twin for this target.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    try:
        cases = read_goldens(opened.file(GOLDENS_NAME))
        tolerance = _tolerance(opened.manifest.dtype)
        selects = any(case.selections for case in cases)
        sites: list[SelectionComparison] = []
        outputs: list[Comparison] = []
        if selects:
            with _twin(opened, target) as run:
                for case in cases:
                    got = run({**case.inputs, **case.forced})
                    sites += _selections(got, case, tolerance)
                    outputs += _values(got, case, tolerance)
        with _shipped(opened, target) as run:
            free = [row for case in cases for row in _values(run(case.inputs), case, tolerance)]
        return GoldenParity(
            target=target,
            dtype=opened.manifest.dtype,
            cases=len(cases),
            sites=tuple(sites),
            outputs=tuple(outputs),
            free=tuple(free),
            selects_tokens=selects,
        )
    finally:
        if opened is not bundle:
            opened.close()


@contextmanager
def _shipped(bundle: Bundle, target: str) -> Iterator[Run]:
    """The engine as deployed."""
    entry = bundle.engine(target)
    backend = backend_for(target, entry.options)
    with backend.session(bundle.file(entry.file)) as run:
        yield run


@contextmanager
def _twin(bundle: Bundle, target: str) -> Iterator[Run]:
    """The forced twin, with the same options as the engine as deployed."""
    entry = bundle.engine(target)
    if not entry.forced:
        raise BadInputError(
            f"the bundle has no forced twin for target {target!r}",
            where=str(bundle.path),
            wanted="the twin, whose tokens the goldens can fix",
            next_step=f"python -m secateur.runtime build {bundle.path} --target {target} --forced",
        )
    backend = backend_for(target, entry.options)
    with backend.session(bundle.file(entry.forced)) as run:
        yield run


def _tolerance(dtype: str) -> Tolerance:
    if dtype not in TOLERANCES:
        raise BadInputError(
            f"no tolerance is stated for {dtype!r}", wanted="one of " + ", ".join(TOLERANCES)
        )
    return TOLERANCES[dtype]


def _selections(
    got: Arrays, case: GoldenCase, tolerance: Tolerance
) -> Iterator[SelectionComparison]:
    for site, reference in case.selections.items():
        score, index = _named(got, f"{site}.score"), _named(got, f"{site}.index")
        yield compare_selection(site, score, index, reference=reference, bound=tolerance.score)


def _values(got: Arrays, case: GoldenCase, tolerance: Tolerance) -> Iterator[Comparison]:
    for name, wanted in case.outputs.items():
        restored = name in case.token_outputs
        rows = on_kept_rows(_named(got, name), wanted, case.kept, is_restored=restored)
        yield compare(name, *rows, tolerance=tolerance)


def _named(arrays: Arrays, name: str) -> Array:
    if name not in arrays:
        raise BadInputError(
            f"the engine returns no {name!r}",
            got=", ".join(arrays),
            next_step="build the bundle again: its goldens belong to another model",
        )
    return arrays[name]


__all__ = ["GoldenParity", "check_goldens"]
