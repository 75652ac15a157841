"""The PyTorch side of every parity check: the original module, pruned by masking only.

Shares no code with the graph passes. Tokens are not gathered, except where those that stay
become neighbours (``close_gaps``): the module runs at full length, dropped tokens are hidden
wherever tokens are combined, and what it returns is compared on the kept rows. Removed heads
and channels are zero at their consumer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.reference_closing import run_closing
from secateur.models.reference_parts import named_outputs, submodule
from secateur.models.reference_signals import left_heads
from secateur.models.reference_sites import Scorer, SiteRun, TokenSite
from secateur.models.reference_tokens import Tokens
from secateur.models.select_tokens import Keep
from secateur.models.selectors import Selector
from secateur.models.signals import build
from secateur.models.token_mode import TokenMode


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


def run(  # noqa: PLR0913 - what may be forced and put back, by name
    net: nn.Module,
    inputs: Mapping[str, Tensor],
    sites: Sequence[TokenSite] = (),
    *,
    forced: Mapping[str, Tensor] | None = None,
    valid: Tensor | None = None,
    restore: Sequence[str] = (),
) -> ReferenceRun:
    """Run ``net(**inputs)`` with tokens dropped by masking after each site.

    Where sites close gaps, tokens really leave; see ``reference_closing``.

    Args:
        net: the original module, in evaluation mode.
        inputs: keyword arguments of its forward.
        sites: in the order in which the module runs them; ``select_tokens`` in the module's
            own forward is a site already, and takes its budget from here if it is named.
        forced: (B, K) kept positions by site, -1 for none; such a site still computes
            its score but does not choose.
        valid: (B, N) bool, False on padding. Without it ``attention_mask`` says so where
            the inputs have a two-dimensional one, else the mask that attention is given.
        restore: paths of the modules behind which dropped tokens are put back as they left.

    Raises:
        BadInputError: a site that the module lacks, that holds no attention, or whose scores
            are NaN; sites of which only some close gaps.
    """
    if net.training:
        raise BadInputError(
            "the reference needs a module in evaluation mode", next_step="call net.eval()"
        )
    if any(site.close_gaps for site in sites):
        _check_nothing_comes_back(restore)
        return ReferenceRun(*run_closing(net, inputs, sites, forced or {}))
    batch = next(iter(inputs.values())).shape[0]
    sites = _with_outputs(net, inputs, sites, forced or {}, valid)
    by_name = {site.site: site for site in sites}

    def attempt(pointed: Mapping[int, Tensor]) -> tuple[object, Tokens]:
        mode, is_valid = TokenMode(batch), _valid(inputs, valid)
        tokens = Tokens(net, mode, is_valid, inputs, forced or {}, by_name, pointed)
        return _called(net, inputs, tokens, restore), tokens

    result, tokens = attempt({})
    if found := {n: rows for n, rows in tokens.mode.pointed.items() if rows}:
        # The end of a text is known to be read only once it has been: again, with it protected.
        result, tokens = attempt({n: torch.stack(rows, dim=1) for n, rows in found.items()})
    return ReferenceRun(outputs=named_outputs(result), sites=tokens.runs)


def _check_nothing_comes_back(restore: Sequence[str]) -> None:
    if restore:
        raise BadInputError(
            "tokens that closed up are not put back",
            got=", ".join(restore),
            next_step="leave restore out, or close_gaps",
        )


def _with_outputs(
    net: nn.Module,
    inputs: Mapping[str, Tensor],
    sites: Sequence[TokenSite],
    forced: Mapping[str, Tensor],
    valid: Tensor | None,
) -> tuple[TokenSite, ...]:
    """Fill in signals that are outputs of the module: a run up to the site says what they are."""
    modules = {path for path, _ in net.named_modules()}
    made: list[TokenSite] = []
    for site in sites:
        names = {
            signal: source
            for signal, source in site.given.items()
            if isinstance(source, str) and source not in inputs and source not in modules
        }
        if names:
            outputs = run(net, inputs, made, forced=forced, valid=valid).outputs
            if lacking := [source for source in names.values() if source not in outputs]:
                raise BadInputError(
                    "no input, module or output gives a signal of this site",
                    where=f"site {site.site!r}",
                    got=", ".join(lacking),
                    wanted="one of " + ", ".join([*inputs, *outputs]),
                )
            found = {signal: outputs[source] for signal, source in names.items()}
            site = replace(site, given={**site.given, **found})  # noqa: PLW2901
        made.append(site)
    return tuple(made)


def _called(
    net: nn.Module, inputs: Mapping[str, Tensor], tokens: Tokens, restore: Sequence[str]
) -> object:
    """Call the module with the run's hooks and mode."""
    handles = tokens.hooks(restore)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer shows no attention
    try:
        with torch.no_grad(), _own_selections(tokens), tokens.mode:
            return net(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


def neutralised(net: nn.Module, removed: Sequence[Removed]) -> nn.Module:
    """Copy ``net`` with the input features of removed units zero at their consumers."""
    net = copy.deepcopy(net)
    for cut in removed:
        path, _, attribute = cut.parameter.rpartition(".")
        weight = getattr(submodule(net, path), attribute)
        axis = 0 if type(submodule(net, path)).__name__ == "Conv1D" else 1
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


def _valid(inputs: Mapping[str, Tensor], valid: Tensor | None) -> Tensor | None:
    mask = inputs.get("attention_mask") if valid is None else valid
    return mask.bool() if mask is not None and mask.dim() == 2 else None


@contextmanager
def _own_selections(tokens: Tokens) -> Iterator[None]:
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


__all__ = [
    "ReferenceRun",
    "Removed",
    "Scorer",
    "SiteRun",
    "TokenSite",
    "named_outputs",
    "neutralised",
    "run",
]
