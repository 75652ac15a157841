"""The PyTorch side of every parity check: the original module, pruned by masking only.

Shares no code with the graph passes. Tokens are never gathered: the module runs at full
length, dropped tokens are hidden wherever tokens are combined, and what it returns is
compared on the kept rows. Removed heads and channels are zero at their consumer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.reference_selection import (
    Scorer,
    SiteRun,
    TokenSite,
    attention_signals,
    left_heads,
    select,
)
from secateur.models.select_tokens import Keep
from secateur.models.selectors import Selector
from secateur.models.signals import build
from secateur.models.token_mode import Attention, TokenMode


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """Outputs of the masked module, by name, and one record per site."""

    outputs: dict[str, Tensor]
    sites: dict[str, SiteRun]


@dataclass(frozen=True, slots=True)
class Removed:
    """Units of a layer that are gone, named at the weight that consumes them."""

    parameter: str
    """Torch name of the consumer's weight, such as ``encoder.layer.0.output.dense.weight``."""
    kept: tuple[int, ...]
    units: int
    """Units before removal; each is an equal, contiguous share of the input features."""


@dataclass(slots=True)
class _Tokens:
    """The run in progress."""

    mode: TokenMode
    valid: Tensor | None
    forced: Mapping[str, Tensor]
    sites: Mapping[str, TokenSite]
    pointed: Mapping[int, Tensor]
    """By N: (B, P) positions that the module reads behind its sites."""
    runs: dict[str, SiteRun] = field(default_factory=dict)

    def eligible(self, site: str, visible: Tensor) -> Tensor:
        """Tokens that a site may keep: (B, N) bool."""
        if site in self.runs:
            return self.runs[site].eligible
        if self.mode.alive is not None:
            return self.mode.alive
        # The mask of a text says nothing about the patches of an image beside it.
        if self.valid is None or self.valid.shape != visible.shape:
            return visible
        return self.valid

    def carried(self) -> Tensor | None:
        """What the last site handed on, (B, N)."""
        return next(reversed(self.runs.values())).state if self.runs else None

    def drop(self, site: TokenSite, signal: Callable[[str], Tensor], eligible: Tensor) -> None:
        """Select, and hide the rest from what follows.

        A module that selects right behind the site's module speaks second, and wins.
        """
        self.runs[site.site], self.mode.alive = select(
            site,
            signal,
            eligible,
            forced=self.forced.get(site.site),
            pointed=self.pointed.get(eligible.shape[1]),
        )
        self.mode.prefix = site.protected


def run(
    net: nn.Module,
    inputs: Mapping[str, Tensor],
    sites: Sequence[TokenSite] = (),
    *,
    forced: Mapping[str, Tensor] | None = None,
    valid: Tensor | None = None,
) -> ReferenceRun:
    """Run ``net(**inputs)`` with tokens dropped by masking after each site.

    Args:
        net: the original module, in evaluation mode.
        inputs: keyword arguments of its forward.
        sites: in the order in which the module runs them; ``select_tokens`` in the module's
            own forward is a site already, and takes its budget from here if it is named.
        forced: (B, K) kept positions by site, -1 for none; such a site still computes
            its score but does not choose.
        valid: (B, N) bool, False on padding. Without it ``attention_mask`` says so where
            the inputs have a two-dimensional one, else the mask that attention is given.

    Raises:
        BadInputError: a site that the module lacks, that holds no attention, or whose
            scores are NaN.
    """
    if net.training:
        raise BadInputError(
            "the reference needs a module in evaluation mode", next_step="call net.eval()"
        )
    batch = next(iter(inputs.values())).shape[0]
    by_name = {site.site: site for site in sites}

    def attempt(pointed: Mapping[int, Tensor]) -> tuple[object, _Tokens]:
        mode, is_valid = TokenMode(batch), _valid(inputs, valid)
        tokens = _Tokens(mode, is_valid, forced or {}, by_name, pointed)
        return _called(net, inputs, tokens), tokens

    result, tokens = attempt({})
    if found := {n: rows for n, rows in tokens.mode.pointed.items() if rows}:
        # The end of a text is known to be read only once it has been: again, with it protected.
        result, tokens = attempt({n: torch.stack(rows, dim=1) for n, rows in found.items()})
    return ReferenceRun(outputs=named_outputs(result), sites=tokens.runs)


def _called(net: nn.Module, inputs: Mapping[str, Tensor], tokens: _Tokens) -> object:
    """Call the module with the run's hooks and mode."""
    handles = [h for site in tokens.sites.values() for h in _hook(net, site, tokens)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer shows no attention
    try:
        with torch.no_grad(), _own_selections(tokens), tokens.mode:
            return net(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


def named_outputs(result: object) -> dict[str, Tensor]:
    """Name the tensors that a module returned: its own names, else ``output``, ``output_1``."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): x for name, x in result.items() if isinstance(x, Tensor)}
    if isinstance(result, (tuple, list)):
        found = [x for x in result if isinstance(x, Tensor)]
        return {f"output_{i}" if i else "output": x for i, x in enumerate(found)}
    raise BadInputError(
        "the module returned something that holds no tensors", got=type(result).__name__
    )


def neutralised(net: nn.Module, removed: Sequence[Removed]) -> nn.Module:
    """Copy ``net`` with the input features of removed units zero at their consumers."""
    net = copy.deepcopy(net)
    for cut in removed:
        path, _, attribute = cut.parameter.rpartition(".")
        weight = getattr(_module(net, path), attribute)
        axis = 0 if type(_module(net, path)).__name__ == "Conv1D" else 1
        width = weight.shape[axis]
        if width % cut.units:
            raise BadInputError(
                f"{cut.parameter}: {width} input features are no multiple of {cut.units} units"
            )
        gone = torch.ones(cut.units, dtype=torch.bool)
        gone[list(cut.kept)] = False
        features = gone.repeat_interleave(width // cut.units).nonzero()[:, 0]
        with torch.no_grad():
            weight.index_fill_(axis, features, 0.0)
    return net


def _module(net: nn.Module, path: str) -> nn.Module:
    try:
        return net.get_submodule(path)
    except AttributeError as error:
        known = [name for name, module in net.named_modules() if list(module.children())]
        raise BadInputError(
            f"the module has no part named {path!r}", wanted="one of " + ", ".join(known[1:])
        ) from error


def _valid(inputs: Mapping[str, Tensor], valid: Tensor | None) -> Tensor | None:
    mask = inputs.get("attention_mask") if valid is None else valid
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def _hook(net: nn.Module, site: TokenSite, tokens: _Tokens) -> tuple[Any, Any]:
    mode = tokens.mode

    def before(*_: object) -> None:
        mode.seen = mode.product = None

    def after(_module: nn.Module, _inputs: object, output: object) -> None:
        if site.site in tokens.runs:
            return  # the module selected by itself
        mode.paused = True
        hidden, seen = _hidden(site, output), _seen(site, mode)
        eligible = tokens.eligible(site.site, seen.visible)
        signals = attention_signals(site, seen, hidden, eligible, carried=tokens.carried())
        tokens.drop(site, signals, eligible)
        mode.paused = False

    module = _module(net, site.site)
    return module.register_forward_pre_hook(before), module.register_forward_hook(after)


def _hidden(site: TokenSite, output: object) -> Tensor:
    """Return the (B, N, D) tensor among the outputs of the site's module."""
    found = [x for x in named_outputs(output).values() if x.dim() == 3]
    if not found:
        raise BadInputError("no (B, N, D) output to drop tokens from", where=site.site)
    return found[0]


def _seen(site: TokenSite, mode: TokenMode) -> Attention:
    if mode.seen is None:
        raise BadInputError(
            "no self-attention was seen in this module",
            where=site.site,
            wanted="a module that calls softmax or scaled_dot_product_attention over the tokens",
        )
    return mode.seen


@contextmanager
def _own_selections(tokens: _Tokens) -> Iterator[None]:
    """Turn the selections in a module's own forward into masking.

    ``select_tokens`` then returns the tokens as they came, as it does under export.
    """
    module = cast(Any, import_module("secateur.models.select_tokens"))
    original = module._select  # noqa: SLF001 (both public functions go through it)

    def masked(
        hidden: Tensor,
        signals: Mapping[str, Tensor],
        *,
        by: str | Selector,
        site: str,
        keep: float | Keep,
    ) -> tuple[Tensor, None]:
        share = keep if isinstance(keep, Keep) else Keep(round(keep * 1000))
        tokens.mode.paused = True
        eligible = tokens.eligible(
            site, signals.get("valid", hidden.new_ones(hidden.shape[:2]).bool())
        )
        own = TokenSite(site, by, "permille", share.permille, share.protected)
        asked = tokens.sites.get(site, own)
        available = {"hidden": hidden, **left_heads(asked, signals), "valid": eligible}
        tokens.drop(
            asked,
            lambda name: build(available, [name])[name],
            eligible,
        )
        tokens.mode.paused = False
        return hidden, None

    module._select = masked  # noqa: SLF001
    try:
        yield
    finally:
        module._select = original  # noqa: SLF001


def with_amounts(sites: Sequence[TokenSite], amounts: Mapping[str, int]) -> tuple[TokenSite, ...]:
    """Return the sites with other budgets, by site name."""
    return tuple(replace(s, amount=amounts.get(s.site, s.amount)) for s in sites)


__all__ = [
    "ReferenceRun",
    "Removed",
    "Scorer",
    "SiteRun",
    "TokenSite",
    "named_outputs",
    "neutralised",
    "run",
    "with_amounts",
]
