"""What a token selector is, and how one is found by name or by import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from secateur.errors import BadInputError
from secateur.registry import Registry

SIGNALS: dict[str, tuple[str, ...]] = {
    "class_row": ("batch", "tokens"),
    "column_mean": ("batch", "tokens"),
    "keys": ("batch", "heads", "tokens", "head_dim"),
    "values": ("batch", "heads", "tokens", "head_dim"),
    "hidden": ("batch", "tokens", "width"),
    "valid": ("batch", "tokens"),
}
"""Every signal a selector may read, with its axes.

``class_row``: attention of the first token, mean over heads, rows sum to 1.
``column_mean``: attention a token receives, mean over heads and valid queries.
``keys``, ``values``: of the site's attention, split into heads, before the scores.
``hidden``: the residual stream that is about to be cut.
``valid``: bool, False on padding. All others have the model's floating type.
"""

Score = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Selector:
    """A criterion: ``score(**signals)`` gives (B, N), and larger is kept.

    A score sees one layer's signals and returns float32 without NaN or infinities; padding,
    protected tokens, the number kept and the order are the caller's.
    """

    name: str
    signals: tuple[str, ...]
    score: Score
    kind: str
    source: str


SELECTORS: Registry[Selector] = Registry("selector")


def selector(name: str, *, source: str) -> Callable[[Score], Score]:
    """Register a score under ``name``; its parameters are the signals that it reads."""

    def enter(score: Score) -> Score:
        SELECTORS.register(name)(_from_function(name, score, source))
        return score

    return enter


def resolve_selector(spec: str) -> Selector:
    """Return a registered selector, or the one that ``package.module:function`` names.

    Raises:
        BadInputError: the name is unknown, the import fails, or the function reads
            something that is not a signal.
    """
    if ":" not in spec:
        return SELECTORS[spec]
    module_name, _, function_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadInputError(
            f"cannot import the selector {spec!r}",
            got=str(error),
            wanted="package.module:function",
            next_step="install the package, or run where it can be imported",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise BadInputError(
            f"module {module_name!r} has no function {function_name!r}",
            where=spec,
            wanted="a function of signals: " + ", ".join(SIGNALS),
        )
    return _from_function(spec, function, f"user function {spec}")


def _from_function(name: str, score: Score, source: str) -> Selector:
    signals = tuple(inspect.signature(score).parameters)
    unknown = [signal for signal in signals if signal not in SIGNALS]
    if unknown or not signals:
        raise BadInputError(
            f"selector {name!r} reads what is not a signal",
            got=", ".join(unknown) or "no parameter at all",
            wanted="parameters among " + ", ".join(SIGNALS),
        )
    return Selector(name, signals, score, "top_k", source)


__all__ = ["SELECTORS", "SIGNALS", "Selector", "resolve_selector", "selector"]
