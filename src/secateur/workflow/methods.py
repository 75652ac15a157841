"""The methods that a recipe may name, read from their registries."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """A criterion, a selector or a target, as its own documentation describes it."""

    name: str
    summary: str
    source: str

    @property
    def row(self) -> tuple[str, str, str]:
        """A line of a table."""
        return self.name, self.summary, self.source

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types."""
        return asdict(self)


def list_methods() -> dict[str, list[Method]]:
    """Every method by kind: importance, selector, target."""
    return {
        "importance": _criteria(),
        "selector": _selectors(),
        "target": [Method(name, text, "") for name, text in _targets().items()],
    }


def check_criterion(name: str) -> None:
    """Raise BadInputError unless the name is a criterion's or ``pkg.module:function``."""
    from secateur.calibration.importance import resolve_criterion

    resolve_criterion(name)


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

    return [Method(name, _first_line(entry), _source(entry)) for name, entry in CRITERIA.items()]


def _selectors() -> list[Method]:
    from secateur.models.selectors import SELECTORS

    return [Method(s.name, _first_line(s.score), s.source) for s in SELECTORS.values()]


def _source(entry: object) -> str:
    """What the entry's module cites after ``Source:``, on one line."""
    text = inspect.getdoc(inspect.getmodule(entry)) or ""
    paragraph = text.partition("Source:")[2].split("\n\n")[0]
    return " ".join(paragraph.split())


def _first_line(entry: object) -> str:
    """What the entry's module says it is for, else its own first line."""
    text = inspect.getdoc(inspect.getmodule(entry)) or inspect.getdoc(entry) or ""
    return text.split("\n")[0]


__all__ = ["Method", "check_criterion", "check_selector", "list_methods"]
