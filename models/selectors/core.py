"""What a token selector is, and how one is found by name or by import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.signal_table import SIGNALS
from secateur.registry import Registry

KINDS = ("top_k", "greedy", "sets", "threshold", "merge", "exit", "cascade")
"""How a method decides: by rank; one pick after the other; by joining sets; by a count of its
own per sample; with merged tokens; with tokens that leave for good; by scores carried on."""

Order = Literal["spatial", "score"]
Option = bool | int | float | str
Signals = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selector decided.

    Attributes:
        score: (B, N) float32 without NaN, larger is kept. The best ``count[b]`` are the chosen
            set, so that a method that builds sets gives its members the largest numbers.
        count: (B,) int64, how many tokens stay, for methods that decide it themselves;
            protected tokens are among them. None where the budget says it.
        order: Whether kept tokens stay in their order or stand by descending score.
        state: (B, N) float32 that goes on with the kept tokens: the next site's
            ``accumulated``.
    """

    score: Tensor
    count: Tensor | None = None
    order: Order = "spatial"
    state: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """New tokens as weighted sums of the old ones.

    Attributes:
        weights: (B, K', N) float32, K' >= K. The first K rows are the kept tokens in their
            order (one-hot where a token stays as it is) and stand where they stood, the
            others are appended and stand where the token of their largest weight stood.
        valid: (B, K') bool; None where appended tokens are all there.
    """

    weights: Tensor
    valid: Tensor | None = None


Score = Callable[..., "Tensor | Selection"]
Combine = Callable[..., "Tensor | Merge"]


@dataclass(frozen=True, slots=True)
class Selector:
    """A method: ``score(...)`` says which tokens stay, ``combine(...)`` what becomes of them.

    Padding, protected tokens, the number kept and the gather are the caller's.

    Attributes:
        name: As recipes spell it.
        signals: Names of the signals that either function reads.
        score: The function as written; ``decide`` calls it.
        kind: One of ``KINDS``.
        source: Publication or code.
        cost: What selecting costs, in words.
        options: The method's options with their values.
        given: Axes of signals that are no site's own: a recipe names a value of the graph.
        combine: Makes new tokens of old ones; None where tokens only stay or go.
    """

    name: str
    signals: tuple[str, ...]
    score: Score
    kind: str
    source: str
    cost: str = ""
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    given: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    combine: Combine | None = None
    on_grid: bool = False
    """Whether it asks where patches stand in the picture: an earlier selection would move them."""

    @property
    def reads_count(self) -> bool:
        """Whether the score depends on how many tokens the budget leaves."""
        return "count" in inspect.signature(self.score).parameters

    @property
    def reads_protected(self) -> bool:
        """Whether the number of protected tokens is a part of what the method computes."""
        functions = (self.score, self.combine) if self.combine else (self.score,)
        return any("protected" in inspect.signature(one).parameters for one in functions)

    def axes(self, signal: str) -> tuple[str, ...]:
        """Return the names of a signal's axes."""
        return self.given[signal] if signal in self.given else SIGNALS[signal]

    def with_options(self, options: Mapping[str, Option]) -> Selector:
        """Return the selector with some of its options changed.

        Raises:
            BadInputError: an option that the method does not have, or of another type.
        """
        for name, value in options.items():
            _check_option(self, name, value)
        return replace(self, options=MappingProxyType({**self.options, **options}))

    def decide(self, signals: Signals, count: Tensor, protected: int) -> Selection:
        """Run the score.

        Args:
            signals: At least those that it reads, by name.
            count: (B,) int64, how many tokens the budget leaves; protected ones among them.
            protected: Leading tokens that always stay. Where there are no others, nothing
                is computed.
        """
        if (shape := self._without_others(signals, protected)) is not None:
            nothing = torch.zeros(shape, device=count.device)
            return Selection(nothing, state=nothing)
        made = self.score(**self._arguments(self.score, {**signals, "count": count}, protected))
        return made if isinstance(made, Selection) else Selection(made)

    def merge(self, signals: Signals, index: Tensor, valid: Tensor, protected: int) -> Merge:
        """Run ``combine`` on the kept positions, (B, K), and their validity, (B, K)."""
        if self.combine is None:
            raise BadInputError(f"selector {self.name!r} merges no tokens")
        if (shape := self._without_others(signals, protected)) is not None:
            position = torch.arange(shape[1], device=index.device)
            return Merge((index[:, :, None] == position).float())
        given = {**signals, "index": index, "valid_kept": valid}
        made = self.combine(**self._arguments(self.combine, given, protected))
        return made if isinstance(made, Merge) else Merge(made)

    def _without_others(self, signals: Signals, protected: int) -> tuple[int, int] | None:
        """Return (B, N) of an image without patches; graphs are made for others."""
        if not self.reads_protected or torch.compiler.is_exporting():
            return None
        name = next((one for one in self.signals if "tokens" in self.axes(one)), None)
        if name is None:
            return None
        value = signals[name]
        n_tokens = value.shape[self.axes(name).index("tokens")]
        return (value.shape[0], n_tokens) if n_tokens <= protected else None

    def _arguments(
        self, function: Callable[..., object], given: Signals, protected: int
    ) -> dict[str, object]:
        known: dict[str, object] = {**given, "protected": protected, **self.options}
        return {name: known[name] for name in inspect.signature(function).parameters}


SELECTORS: Registry[Selector] = Registry("selector")

_COUNTED = ("count", "protected")
_MERGED = ("index", "valid_kept", "protected")


def selector(  # noqa: PLR0913 - what a method states of itself
    name: str,
    *,
    source: str,
    kind: str = "top_k",
    cost: str = "",
    given: Mapping[str, tuple[str, ...]] | None = None,
    combine: Combine | None = None,
    on_grid: bool = False,
) -> Callable[[Score], Score]:
    """Register a score under ``name``.

    Its parameters are what it reads: signals by name; ``count``, (B,) int64, the number of
    tokens that the budget leaves, protected ones among them; ``protected``, an int, the
    leading tokens that always stay. Keyword-only parameters with a default are options.

    Args:
        name: As recipes spell it.
        source: Publication, section, code.
        kind: One of ``KINDS``.
        cost: What selecting costs, where it is not what building the signals costs.
        given: Axes of signals that a recipe takes from a value of the graph, such as
            ``{"mask_logits": ("batch", "classes", "tokens")}``.
        combine: Makes new tokens: reads signals, ``index`` (B, K) int64, ``valid_kept``
            (B, K) bool, ``protected`` and options; returns weights (B, K', N) or a ``Merge``.
        on_grid: Asks where patches stand in the picture, so that it can only come first.
    """

    def enter(score: Score) -> Score:
        made = _from_function(name, score, source, given or {}, combine)
        if kind not in KINDS:
            raise ValueError(f"selector {name!r}: unknown kind {kind!r}")
        SELECTORS.register(name)(replace(made, kind=kind, cost=cost or made.cost, on_grid=on_grid))
        return score

    return enter


def resolve_selector(spec: str, options: Mapping[str, Option] | None = None) -> Selector:
    """Return a registered selector, or the one that ``package.module:function`` names.

    Args:
        spec: Name, or import path of a function that reads signals.
        options: Options to set, by name.

    Raises:
        BadInputError: the name is unknown, the import fails, the function reads something
            that is not a signal, or has no such option.
    """
    found = SELECTORS[spec] if ":" not in spec else _imported(spec)
    return found.with_options(options) if options else found


def _imported(spec: str) -> Selector:
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
    registered = [one for one in SELECTORS.values() if one.score is function]
    if registered:
        return replace(registered[0], name=spec)
    return _from_function(spec, function, f"user function {spec}")


def _from_function(
    name: str,
    score: Score,
    source: str,
    given: Mapping[str, tuple[str, ...]] | None = None,
    combine: Combine | None = None,
) -> Selector:
    axes, options = dict(given or {}), _options(score)
    signals = _signals(name, score, (*_COUNTED, *options), axes)
    if combine is not None:
        options |= _options(combine)
        more = _signals(name, combine, (*_MERGED, *options), axes)
        signals += tuple(signal for signal in more if signal not in signals)
    return Selector(
        name=name,
        signals=signals,
        score=score,
        kind="top_k",
        source=source,
        cost=_cost(signals),
        options=MappingProxyType(options),
        given=MappingProxyType(axes),
        combine=combine,
    )


def _options(function: Callable[..., object]) -> dict[str, Option]:
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def _signals(
    name: str,
    function: Callable[..., object],
    others: tuple[str, ...],
    given: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    read = [one for one in inspect.signature(function).parameters if one not in others]
    unknown = [one for one in read if one not in SIGNALS and one not in given]
    if unknown or not read:
        raise BadInputError(
            f"selector {name!r} reads what is not a signal",
            got=", ".join(unknown) or "no signal at all",
            wanted="parameters among " + ", ".join((*SIGNALS, *given)),
            next_step="an option is a keyword-only parameter with a default",
        )
    return tuple(read)


def _check_option(owner: Selector, name: str, value: Option) -> None:
    if name not in owner.options:
        raise BadInputError(
            f"selector {owner.name!r} has no option {name!r}",
            wanted="one of " + ", ".join(owner.options) if owner.options else "no option at all",
        )
    default = owner.options[name]
    is_number = isinstance(default, float) and type(value) is int
    if type(value) is not type(default) and not is_number:
        raise BadInputError(
            f"option {name!r} of selector {owner.name!r} has the wrong type",
            got=repr(value),
            wanted=f"{type(default).__name__}, such as {default!r}",
        )


_MAPS = frozenset({"full", "column_mean", "column_means"})


def _cost(signals: tuple[str, ...]) -> str:
    """Say what building the signals costs, where the method adds little to it."""
    if _MAPS.intersection(signals):
        return "the attention map of a layer"
    rows = {"class_row", "class_rows", "last_row"}.intersection(signals)
    return "one row of attention" if rows else "linear in the tokens"


# --- what methods share --------------------------------------------------------------------


def ranks(score: Tensor) -> Tensor:
    """(B, N) -> (B, N) int64: 0 for the largest; the earlier of two equal ones comes first."""
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    position = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.zeros_like(order).scatter(1, order, position)


def marked(index: Tensor, valid_kept: Tensor, valid: Tensor) -> Tensor:
    """Tell which tokens are kept, (B, N) bool.

    Args:
        index: (B, K) int64, positions; those of fillers of the rectangle may be any.
        valid_kept: (B, K) bool, False for fillers.
        valid: (B, N) bool, of which only the shape is read.
    """
    beside = torch.nn.functional.pad(torch.zeros_like(valid, dtype=torch.int64), (0, 1))
    slot = torch.where(valid_kept, index, valid.shape[1])  # fillers go beside all tokens
    return beside.scatter(1, slot, 1)[:, :-1] > 0


def best(score: Tensor, count: Tensor) -> Tensor:
    """(B, N), (B,) -> (B, N) bool: the ``count[b]`` largest of each row."""
    return ranks(score) < count[:, None]


def behind_protected(score: Tensor, protected: int) -> Tensor:
    """(B, N - protected) -> (B, N): scores of all tokens, 0 for the protected ones."""
    return torch.nn.functional.pad(score, (protected, 0))


__all__ = [
    "KINDS",
    "SELECTORS",
    "SIGNALS",
    "Merge",
    "Option",
    "Order",
    "Selection",
    "Selector",
    "behind_protected",
    "best",
    "marked",
    "ranks",
    "resolve_selector",
    "selector",
]
