"""The PyTorch side of every parity check: the original module, pruned by masking only.

Shares no code with the graph passes. Tokens are never gathered: the module runs at full
length, dropped tokens are hidden wherever tokens are combined, and what it returns is
compared on the kept rows. Removed heads and channels are zero at their consumer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models._token_mode import Attention, TokenMode


class Selector(Protocol):
    """What the reference needs of a selector."""

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals it reads."""

    def score(self, **signals: Tensor) -> Tensor:
        """Return (B, N), larger is kept."""


@dataclass(frozen=True, slots=True)
class TokenSite:
    """Where tokens are dropped, by what, and how many stay."""

    site: str
    """Path of the module after which tokens are dropped."""
    selector: str | Selector
    """Name in ``secateur.models.selectors.SELECTORS``, or a selector itself."""
    kind: Literal["permille", "count"] = "permille"
    """A share of each sample's tokens still alive, or an absolute number of them."""
    amount: int | Tensor = 600
    """The budget, one for all samples or (B,) integers."""
    protected: int = 1
    """Leading tokens that are always kept."""


@dataclass(frozen=True, slots=True)
class SiteRun:
    """What happened at one site. Positions are those of the model's input."""

    score: Tensor
    """(B, N) the selector's score, -inf on tokens that were not eligible."""
    eligible: Tensor
    """(B, N) bool: alive before the site and no padding."""
    kept: Tensor
    """(B, K) int64 ascending positions, -1 behind a sample's count."""
    count: Tensor
    """(B,) int64"""
    margin: Tensor
    """(B,) lowest score kept on merit minus highest score dropped, +inf without either."""


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
    runs: dict[str, SiteRun] = field(default_factory=dict)


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
        sites: in the order in which the module runs them.
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
    tokens = _Tokens(TokenMode(batch), _valid(inputs, valid), forced or {})
    handles = [h for site in sites for h in _hook(net, site, tokens)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer shows no attention
    try:
        with torch.no_grad(), tokens.mode:
            result = net(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return ReferenceRun(outputs=named_outputs(result), sites=tokens.runs)


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
    def before(*_: object) -> None:
        tokens.mode.seen = tokens.mode.product = None

    def after(_module: nn.Module, _inputs: object, output: object) -> None:
        tokens.mode.paused = True
        _close(site, tokens, _hidden(site, output))
        tokens.mode.paused = False

    module = _module(net, site.site)
    return module.register_forward_pre_hook(before), module.register_forward_hook(after)


def _hidden(site: TokenSite, output: object) -> Tensor:
    """Return the (B, N, D) tensor among the outputs of the site's module."""
    found = [x for x in named_outputs(output).values() if x.dim() == 3]
    if not found:
        raise BadInputError("no (B, N, D) output to drop tokens from", where=site.site)
    return found[0]


def _close(site: TokenSite, tokens: _Tokens, hidden: Tensor) -> None:
    """Select after the site's module and hide the rest from what follows."""
    mode, seen = tokens.mode, tokens.mode.seen
    if seen is None:
        raise BadInputError(
            "no self-attention was seen in this module",
            where=site.site,
            wanted="a module that calls softmax or scaled_dot_product_attention over the tokens",
        )
    eligible = mode.alive
    if eligible is None:
        eligible = seen.visible if tokens.valid is None else tokens.valid
    score = _score(site, seen, hidden, eligible)
    count = _count(site, eligible)
    merit = _merit(score, eligible, site.protected)
    forced = tokens.forced.get(site.site)
    alive = _top(merit, count) if forced is None else _scatter(forced, eligible.shape[1])
    tokens.runs[site.site] = SiteRun(
        score=score.masked_fill(~eligible, -torch.inf),
        eligible=eligible,
        kept=_positions(alive),
        count=alive.sum(dim=1),
        margin=_margin(merit, alive, eligible),
    )
    mode.alive, mode.prefix = alive, site.protected


def _selector(site: TokenSite) -> Selector:
    if not isinstance(site.selector, str):
        return site.selector
    from secateur.models.selectors import SELECTORS

    entry = SELECTORS[site.selector]
    return cast(Selector, entry() if isinstance(entry, type) else entry)


def _score(site: TokenSite, seen: Attention, hidden: Tensor, valid: Tensor) -> Tensor:
    selector = _selector(site)
    signals = {name: _signal(name, seen, hidden, valid) for name in selector.signals}
    score = selector.score(**signals)
    if bool(score.isnan().logical_and(valid).any()):
        raise BadInputError(f"{site.selector!r} gave NaN scores", where=site.site)
    return score


def _signal(name: str, seen: Attention, hidden: Tensor, valid: Tensor) -> Tensor:
    if name not in _SIGNALS:
        raise BadInputError(
            f"the reference cannot build the signal {name!r}",
            wanted="one of " + ", ".join(_SIGNALS),
        )
    return _SIGNALS[name](seen, hidden, valid)


def _class_row(seen: Attention, _hidden: Tensor, _valid: Tensor) -> Tensor:
    return seen.probabilities[:, :, 0].mean(dim=1)


def _last_row(seen: Attention, _hidden: Tensor, valid: Tensor) -> Tensor:
    """The row of the last valid query, which is not the last row under right padding."""
    position = torch.arange(valid.shape[1]).masked_fill(~valid, -1).amax(dim=1)
    batch = torch.arange(valid.shape[0])
    return seen.probabilities[batch, :, position].mean(dim=1)


def _column_mean(seen: Attention, _hidden: Tensor, valid: Tensor) -> Tensor:
    per_query = seen.probabilities.mean(dim=1).masked_fill(~valid[:, :, None], 0.0)
    return per_query.sum(dim=1) / valid.sum(dim=1, keepdim=True)


def _values(seen: Attention, _hidden: Tensor, _valid: Tensor) -> Tensor:
    if seen.value is None:
        raise BadInputError(
            "the values of this attention were not seen", wanted="probabilities @ v"
        )
    return seen.value


_SIGNALS: dict[str, Callable[[Attention, Tensor, Tensor], Tensor]] = {
    "class_row": _class_row,
    "last_row": _last_row,
    "column_mean": _column_mean,
    "keys": lambda seen, _hidden, _valid: seen.key,
    "values": _values,
    "hidden": lambda _seen, hidden, _valid: hidden,
    "valid": lambda _seen, _hidden, valid: valid,
}


def _count(site: TokenSite, eligible: Tensor) -> Tensor:
    """Tokens that each sample keeps: its share or the number asked for, within what it has."""
    n_valid = eligible.sum(dim=1)
    amount = torch.as_tensor(site.amount)
    wanted = (n_valid * amount + 999) // 1000 if site.kind == "permille" else amount
    return torch.minimum(torch.clamp(wanted, min=site.protected), n_valid)


def _merit(score: Tensor, eligible: Tensor, protected: int) -> Tensor:
    """Scores with protected tokens at +inf and tokens that cannot be kept at -inf."""
    position = torch.arange(score.shape[1])
    return score.masked_fill(position < protected, torch.inf).masked_fill(~eligible, -torch.inf)


def _top(merit: Tensor, count: Tensor) -> Tensor:
    """(B, N) bool of each sample's best tokens; the earlier of two equal ones wins."""
    order = torch.sort(merit, dim=1, descending=True, stable=True).indices
    rank = torch.argsort(order, dim=1)
    return rank < count[:, None]


def _scatter(kept: Tensor, n_tokens: int) -> Tensor:
    """(B, K) positions, -1 for none -> (B, N) bool."""
    alive = torch.zeros(kept.shape[0], n_tokens + 1, dtype=torch.bool)
    alive.scatter_(1, torch.where(kept < 0, n_tokens, kept), True)
    return alive[:, :n_tokens]


def _positions(alive: Tensor) -> Tensor:
    """(B, N) bool -> (B, K) ascending positions, -1 behind a sample's count."""
    n_tokens = alive.shape[1]
    position = torch.arange(n_tokens).expand_as(alive).masked_fill(~alive, n_tokens)
    kept = torch.sort(position, dim=1).values[:, : int(alive.sum(dim=1).max())]
    return kept.masked_fill(kept == n_tokens, -1)


def _margin(merit: Tensor, alive: Tensor, eligible: Tensor) -> Tensor:
    lowest = merit.masked_fill(~alive, torch.inf).amin(dim=1)
    highest = merit.masked_fill(alive | ~eligible, -torch.inf).amax(dim=1)
    return (lowest - highest).nan_to_num(nan=torch.inf, posinf=torch.inf)


def with_amounts(sites: Sequence[TokenSite], amounts: Mapping[str, int]) -> tuple[TokenSite, ...]:
    """Return the sites with other budgets, by site name."""
    return tuple(replace(s, amount=amounts.get(s.site, s.amount)) for s in sites)


__all__ = [
    "ReferenceRun",
    "Removed",
    "SiteRun",
    "TokenSite",
    "named_outputs",
    "neutralised",
    "run",
    "with_amounts",
]
