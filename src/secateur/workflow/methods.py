"""The methods that a recipe may name, read from their registries."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """A criterion, a selector or a target, as its own documentation describes it.

    ``kind``, ``signals``, ``cost`` and ``options`` are what a selector decides like, reads,
    costs and can be told; they are empty for other methods.
    """

    name: str
    summary: str
    source: str
    kind: str = ""
    signals: str = ""
    cost: str = ""
    options: str = ""

    def row(self, columns: Iterable[str]) -> tuple[str, ...]:
        """A line of a table with these fields."""
        fields = asdict(self)
        return tuple(fields[column] for column in columns)

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types; fields that say nothing are left out."""
        return {name: text for name, text in asdict(self).items() if text or name in BASIC}


BASIC = ("name", "summary", "source")
SELECTING = ("name", "kind", "signals", "cost", "options", "source")


def columns_of(kind: str) -> tuple[str, ...]:
    """Return the fields that a table of such methods shows."""
    return SELECTING if kind == "selector" else BASIC


def list_methods() -> dict[str, list[Method]]:
    """Every method by kind: importance, compensation, selector, target."""
    return {
        "importance": _criteria(),
        "compensation": _compensations(),
        "selector": _selectors(),
        "target": [Method(name, text, "") for name, text in _targets().items()],
    }


def check_criterion(name: str) -> None:
    """Raise BadInputError unless the name is a criterion's or ``pkg.module:function``."""
    from secateur.calibration.importance import resolve_criterion

    resolve_criterion(name)


def check_compensation(name: str) -> None:
    """Raise BadInputError unless the name is a compensation's, or ``none``."""
    from secateur.calibration.compensation import COMPENSATIONS

    if name != "none":
        COMPENSATIONS[name]


def check_selector(name: str) -> None:
    """Raise BadInputError unless the name is a selector's or ``pkg.module:function``."""
    from secateur.models.selectors import resolve_selector

    resolve_selector(name)


def _targets() -> dict[str, str]:
    from secateur.runtime.targets import CAPABILITIES

    return {
        name: f"for {', '.join(known)}" if known else "runs where it is opened"
        for name, known in CAPABILITIES.items()
    }


def _criteria() -> list[Method]:
    from secateur.calibration.importance import CRITERIA

    return [
        Method(name, (inspect.getdoc(entry) or "").split("\n")[0], _source(entry))
        for name, entry in CRITERIA.items()
    ]


def _compensations() -> list[Method]:
    from secateur.calibration.compensation import COMPENSATIONS

    return [
        Method(name, (entry.__doc__ or "").split("\n")[0], _source(entry.function))
        for name, entry in COMPENSATIONS.items()
    ]


def _selectors() -> list[Method]:
    from secateur.models.selectors import SELECTORS

    return [
        Method(
            one.name,
            _first_line(one.score),
            one.source,
            kind=one.kind,
            signals=", ".join(one.signals),
            cost=one.cost,
            options=", ".join(f"{name}={value!r}" for name, value in one.options.items()),
        )
        for one in SELECTORS.values()
    ]


def _source(entry: object) -> str:
    """What the entry's module cites after ``Source:``, on one line."""
    text = inspect.getdoc(inspect.getmodule(entry)) or ""
    paragraph = text.partition("Source:")[2].split("\n\n")[0]
    return " ".join(paragraph.split())


def _first_line(entry: object) -> str:
    """What the entry's module says it is for, else its own first line."""
    text = inspect.getdoc(inspect.getmodule(entry)) or inspect.getdoc(entry) or ""
    return text.split("\n")[0]


__all__ = [
    "Method",
    "check_compensation",
    "check_criterion",
    "check_selector",
    "columns_of",
    "list_methods",
]
