"""The reference where tokens become neighbours: they really leave, one sample at a time.

No mask says what a state-space model, or a convolution along the tokens, makes of tokens that
close up. So the module runs on fewer tokens here, each sample by itself. A token that it reads at
one position, such as a class token in the middle, is known from a run that drops nothing: it
always stays, and is read where it went. What merges into a token does so in every stream of hidden
states that its block returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import BadInputError
from secateur.models.reference_parts import named_outputs, replaced_states, state_of, submodule
from secateur.models.reference_selection import select
from secateur.models.reference_sites import SiteRun, TokenSite
from secateur.models.selectors import Selector

Outputs = dict[str, Tensor]


def run_closing(
    net: nn.Module,
    inputs: Mapping[str, Tensor],
    sites: Sequence[TokenSite],
    forced: Mapping[str, Tensor],
) -> tuple[Outputs, dict[str, SiteRun]]:
    """Run ``net(**inputs)`` with tokens that leave at every site and close up behind it.

    Args:
        net: the original module, in evaluation mode.
        inputs: keyword arguments of its forward, batch first.
        sites: in the order in which the module runs them; they read hidden states and ``given``.
        forced: (B, K) kept positions by site, -1 for none.

    Returns:
        Outputs by name, zero on rows of tokens that left, and one record per site.

    Raises:
        BadInputError: sites of which only some close gaps, a selector that reads attention,
            or a forced choice without a token that the module reads.
    """
    _check(sites)
    first = next(iter(inputs.values()))
    made = [
        _one(net, inputs, sites, {site: rows[b] for site, rows in forced.items()}, b)
        for b in range(first.shape[0])
    ]
    outputs = {name: torch.cat([answers[name] for answers, _ in made]) for name in made[0][0]}
    return outputs, {site.site: _together([runs[site.site] for _, runs in made]) for site in sites}


def _check(sites: Sequence[TokenSite]) -> None:
    for site in sites:
        if not site.close_gaps or site.among or site.leaves:
            raise BadInputError(
                "there is no reference for this site beside one that closes gaps",
                where=f"site {site.site!r}",
                got=site.among or site.leaves or "gaps that stay",
                wanted="close_gaps at every site, among and leaves at none",
            )


def _one(
    net: nn.Module,
    inputs: Mapping[str, Tensor],
    sites: Sequence[TokenSite],
    forced: Mapping[str, Tensor],
    number: int,
) -> tuple[Outputs, dict[str, SiteRun]]:
    """Run one sample: whole, to see what it reads, and with tokens that leave."""
    alone = {name: x[number : number + 1] for name, x in inputs.items()}
    whole = _Sample(net, alone, (), {}, None, number)
    whole.watch([site.cut or site.site for site in sites])
    dense = whole.call()
    sample = _Sample(net, alone, sites, forced, tuple(whole.reads), number)
    outputs = sample.call()
    return {name: sample.restored(x, dense[name]) for name, x in outputs.items()}, sample.runs


@dataclass
class _Sample:
    """One sample's run; without sites it notes which tokens are read at a position."""

    net: nn.Module
    inputs: Mapping[str, Tensor]
    sites: Sequence[TokenSite]
    forced: Mapping[str, Tensor]
    followed: tuple[int, ...] | None
    """Original positions, in the order in which they are read; None to note them."""
    number: int
    reads: list[int] = field(default_factory=list)
    stands: Tensor | None = None
    """(N,) original positions of the tokens that are there; None in front of the sites."""
    n_tokens: int = 0
    runs: dict[str, SiteRun] = field(default_factory=dict)
    watched: Sequence[str] = ()
    _state: Tensor | None = None
    _returned: dict[str, Tensor] = field(default_factory=dict)

    def watch(self, modules: Sequence[str]) -> None:
        """Note reads behind the first of these modules."""
        self.watched = modules

    def call(self) -> Outputs:
        """Run the module with hooks."""
        handles = [
            submodule(self.net, path).register_forward_hook(self._noted) for path in self.watched
        ]
        for site in self.sites:
            for source in site.given.values():
                if isinstance(source, str) and source not in self.inputs:
                    there = submodule(self.net, source)
                    handles.append(there.register_forward_hook(self._keeper(source)))
            there = submodule(self.net, site.cut or site.site)
            handles.append(there.register_forward_hook(self._cutter(site)))
        try:
            with torch.no_grad(), _Reads(self):
                return named_outputs(self.net(**self.inputs))
        finally:
            for handle in handles:
                handle.remove()

    def position(self, index: int, length: int) -> int:
        """Return where a token is that the module reads at a position of ``length`` tokens."""
        if self.stands is None or length != len(self.stands):
            return index
        if self.followed is None:
            self.reads.append(index % length)
            return index
        original = self.followed[len(self.reads) % len(self.followed)]
        self.reads.append(original)
        return int((self.stands == original).nonzero()[0, 0])

    def restored(self, made: Tensor, dense: Tensor) -> Tensor:
        """Put rows of tokens where they were, zero for those that left."""
        if made.shape == dense.shape or self.stands is None or made.dim() < 2:
            return made
        rows = torch.zeros_like(dense)
        rows[:, self.stands] = made
        return rows

    # --- hooks -------------------------------------------------------------------------------

    def _noted(self, _module: nn.Module, _inputs: object, output: object) -> None:
        self.stands = torch.arange(state_of("", output).shape[1])

    def _keeper(self, name: str) -> Callable[..., None]:
        def after(_module: nn.Module, _inputs: object, output: object) -> None:
            assert isinstance(output, Tensor)
            self._returned[name] = output

        return after

    def _cutter(self, site: TokenSite) -> Callable[..., object]:
        def after(_module: nn.Module, _inputs: object, output: object) -> object:
            hidden = state_of(site.site, output)
            if self.stands is None:
                self.stands, self.n_tokens = torch.arange(hidden.shape[1]), hidden.shape[1]
            run, order = self._chosen(site, hidden)
            self.runs[site.site] = self._in_place(run, self.stands, order)
            self._state = None if run.state is None else run.state[:, order]
            self.stands = self.stands[order]
            weights = self._weights(site, hidden, order)
            if weights is not None:
                return replaced_states(output, lambda x: weights.to(x.dtype) @ x)
            return replaced_states(output, lambda x: x[:, order])

        return after

    def _chosen(self, site: TokenSite, hidden: Tensor) -> tuple[SiteRun, Tensor]:
        """Return the record in positions of this site, and (K,) which stay, as they stand."""
        assert self.stands is not None
        eligible = torch.ones(hidden.shape[:2], dtype=torch.bool)
        forced = self.forced.get(site.site)
        followed = sorted(set(self.followed or ()))
        told = None
        if forced is not None:
            told = torch.isin(self.stands, forced).nonzero()[:, 0][None]
            _check_forced(site, forced, followed)
        pointed = [(self.stands == place).nonzero()[:, 0] for place in followed]
        run, _ = select(
            site,
            lambda name: self._signal(name, site, hidden),
            eligible,
            forced=told,
            pointed=torch.cat(pointed)[None] if pointed else None,
        )
        order = run.kept[0]
        if run.stands_by is not None:
            order = order[run.stands_by[0, order].argsort(descending=True, stable=True)]
        return run, order

    def _weights(self, site: TokenSite, hidden: Tensor, order: Tensor) -> Tensor | None:
        """(1, K, N) of what each token that stays is made; None where nothing is merged."""
        chosen = site.chosen
        if not isinstance(chosen, Selector) or chosen.combine is None:
            return None
        signals = {name: self._signal(name, site, hidden) for name in chosen.signals}
        index = order[None]
        made = chosen.merge(signals, index, torch.ones_like(index) > 0, site.protected)
        if made.weights.shape[1] != index.shape[1]:
            raise BadInputError(
                "tokens that the method adds have no place among neighbours",
                where=f"site {site.site!r}",
                got=f"{site.selector!r}, {made.weights.shape[1]} tokens for {index.shape[1]} kept",
            )
        return made.weights

    def _signal(self, name: str, site: TokenSite, hidden: Tensor) -> Tensor:
        if name in site.given:
            return self._given(site.given[name], hidden)
        match name:
            case "hidden":
                return hidden
            case "valid":
                return torch.ones(hidden.shape[:2], dtype=torch.bool)
            case "accumulated":
                nothing = torch.zeros(hidden.shape[:2])
                return nothing if self._state is None else self._state
        raise BadInputError(
            f"the selector reads the signal {name!r}, which tokens that close up do not have",
            where=f"site {site.site!r}",
            wanted="hidden, valid, accumulated or a signal that is given",
        )

    def _given(self, source: Tensor | str, hidden: Tensor) -> Tensor:
        if isinstance(source, Tensor):
            return source[self.number : self.number + 1]
        if source in self.inputs:
            return self.inputs[source]
        if source in self._returned:
            return self._returned[source]
        made: Tensor = submodule(self.net, source)(hidden)
        return made

    def _in_place(self, run: SiteRun, stood: Tensor, order: Tensor) -> SiteRun:
        """Count a record in positions of the input."""
        shape = (1, self.n_tokens)
        score, eligible = torch.full(shape, -torch.inf), torch.zeros(shape, dtype=torch.bool)
        score[:, stood], eligible[:, stood] = run.score, run.eligible
        state = None
        if run.state is not None:
            state = torch.zeros(shape)
            state[:, stood] = run.state
        return SiteRun(score, eligible, stood[order][None], run.count, run.margin, state)


class _Reads(TorchFunctionMode):
    """Tells a run of ``hidden[:, position]`` and ``hidden.select(1, position)``."""

    def __init__(self, sample: _Sample) -> None:
        super().__init__()
        self._sample = sample

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Read where the token is now."""
        if func is Tensor.__getitem__ and _reads_one(args):
            x, (every, index) = args
            return func(x, (every, self._sample.position(index, x.shape[1])))
        return func(*args, **(kwargs or {}))


def _check_forced(site: TokenSite, forced: Tensor, followed: Sequence[int]) -> None:
    if lacking := [place for place in followed if place not in forced]:
        raise BadInputError(
            "the forced choice lets a token go that the module reads later",
            where=f"site {site.site!r}",
            got=", ".join(map(str, lacking)),
            wanted="forced tokens with these among them",
        )


def _reads_one(args: tuple[Any, ...]) -> bool:
    x, index = args
    return (
        x.dim() == 3
        and isinstance(index, tuple)
        and len(index) == 2
        and index[0] == slice(None)
        and type(index[1]) is int
    )


def _together(runs: Sequence[SiteRun]) -> SiteRun:
    """Join the records of samples; -1 stands behind a sample's count."""
    longest = max(run.kept.shape[1] for run in runs)
    kept = [
        torch.nn.functional.pad(run.kept, (0, longest - run.kept.shape[1]), value=-1)
        for run in runs
    ]
    states = [run.state for run in runs if run.state is not None]
    return SiteRun(
        score=torch.cat([run.score for run in runs]),
        eligible=torch.cat([run.eligible for run in runs]),
        kept=torch.cat(kept),
        count=torch.cat([run.count for run in runs]),
        margin=torch.cat([run.margin for run in runs]),
        state=torch.cat(states) if states else None,
    )


__all__ = ["run_closing"]
