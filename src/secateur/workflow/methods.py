"""The methods that a recipe may name, read from their registries."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
        "importance": [_method(name, entry) for name, entry in criteria().items()],
        "selector": [_method(name, entry) for name, entry in selectors().items()],
        "target": [Method(name, text, "") for name, text in _targets().items()],
    }


def criteria() -> Mapping[str, Any]:
    """The registry of importance criteria."""
    from secateur.calibration.importance import CRITERIA

    return CRITERIA


def selectors() -> Mapping[str, Any]:
    """The registry of token selectors."""
    from secateur.models.selectors import SELECTORS

    return SELECTORS


def _targets() -> dict[str, str]:
    from secateur.runtime.targets import CAPABILITIES

    return {
        name: f"for {', '.join(known)}" if known else "runs where it is opened"
        for name, known in CAPABILITIES.items()
    }


def _method(name: str, entry: object) -> Method:
    module = inspect.getmodule(entry if inspect.isroutine(entry) else type(entry))
    text = inspect.getdoc(entry) or ""
    documented = inspect.getdoc(module) or ""
    source = next(
        (line for line in documented.splitlines() if line.startswith("Source:")), "Source: "
    )
    return Method(name, text.split("\n")[0], source.removeprefix("Source:").strip())


__all__ = ["Method", "criteria", "list_methods", "selectors"]
