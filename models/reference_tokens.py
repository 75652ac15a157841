"""The reference run in progress: hooks that read attention, choose tokens and hide the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.reference_merging import merge
from secateur.models.reference_parts import replaced_state, state_of, submodule
from secateur.models.reference_selection import select
from secateur.models.reference_signals import Around, signals_at
from secateur.models.reference_sites import SiteRun, TokenSite
from secateur.models.selectors import Selector
from secateur.models.token_mode import Attention, TokenMode

Handles = list[Any]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a site's module read: attention up to it, and the stream in front of it."""

    blocks: tuple[Attention, ...]
    before: Tensor | None

    @property
    def visible(self) -> Tensor:
        """(B, N) keys of the site that some query may look at."""
        return self.blocks[-1].visible


@dataclass(frozen=True, slots=True)
class _Left:
    """Tokens that left at one site, (B, N) bool, and their state (B, N, D) or who says it."""

    gone: Tensor
    state: Tensor
    module: str


@dataclass(slots=True)
class Tokens:
    """The run in progress."""

    net: nn.Module
    mode: TokenMode
    valid: Tensor | None
    inputs: Mapping[str, Tensor]
    forced: Mapping[str, Tensor]
    sites: Mapping[str, TokenSite]
    pointed: Mapping[int, Tensor]
    """By N: (B, P) positions that the module reads behind its sites."""
    runs: dict[str, SiteRun] = field(default_factory=dict)
    left: list[_Left] = field(default_factory=list)
    """What each site let go."""
    _read: dict[str, _Read] = field(default_factory=dict)
    _incoming: Tensor | None = None
    _returned: dict[str, Tensor] = field(default_factory=dict)
    """What modules that sites name returned last."""

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

    def drop(
        self,
        site: TokenSite,
        signal: Callable[[str], Tensor],
        eligible: Tensor,
        around: tuple[int, int] = (0, 0),
    ) -> None:
        """Select, and hide the rest from what follows.

        A module that selects right behind the site's module speaks second, and wins.
        """
        self.runs[site.site], alive = select(
            site,
            signal,
            eligible,
            forced=self.forced.get(site.site),
            pointed=self.pointed.get(eligible.shape[1]),
        )
        self._hide(site, alive, around)

    def _hide(self, site: TokenSite, alive: Tensor, around: tuple[int, int]) -> None:
        """Let what follows see the tokens that are alive, and a text around them."""
        self.mode.alive = torch.nn.functional.pad(alive, around, value=True)
        self.mode.prefix = around[0] or site.protected

    def _around(self, site: TokenSite) -> tuple[int, int]:
        """Return how many tokens stand before and behind those that are selected from."""
        if not site.among:
            return site.around
        mine = self._returned.get(site.among)
        for part, before, behind in self.mode.parts:
            if mine is not None and part.shape == mine.shape and torch.equal(part, mine):
                return before, behind
        raise BadInputError(
            f"what {site.among!r} returns was not seen to be joined with other tokens",
            where=f"site {site.site!r}",
            wanted="a torch.cat along axis 1 of it and what stands around it",
        )

    # --- hooks -------------------------------------------------------------------------------

    def hooks(self, restore: Sequence[str]) -> Handles:
        """Install everything on the module; the caller removes the handles."""
        handles: Handles = []
        for site in self.sites.values():
            module = submodule(self.net, site.site)
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._reader(site)))
            cut = submodule(self.net, site.cut or site.site)
            handles.append(cut.register_forward_hook(self._cutter(site)))
        named = {name for site in self.sites.values() for name in (site.among, site.leaves) if name}
        for name in sorted(named):
            handles.append(submodule(self.net, name).register_forward_hook(self._noter(name)))
        for name in restore:
            module = submodule(self.net, name)
            handles.append(module.register_forward_hook(self._put_back))
        return handles

    def _noter(self, name: str) -> Callable[..., None]:
        def after(_module: nn.Module, _inputs: object, output: object) -> None:
            self._returned[name] = state_of(name, output)

        return after

    def _before(
        self, _module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        self.mode.seen = self.mode.product = None
        states = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() == 3]
        self._incoming = states[0] if states else None

    def _reader(self, site: TokenSite) -> Callable[..., None]:
        def after(_module: nn.Module, _inputs: object, _output: object) -> None:
            if self.mode.seen is None:
                raise BadInputError(
                    "no self-attention was seen in this module",
                    where=site.site,
                    wanted="a module that calls softmax or scaled_dot_product_attention over the"
                    " tokens",
                )
            blocks = (*self.mode.blocks[:-1], self.mode.seen)
            self._read[site.site] = _Read(blocks, self._incoming)

        return after

    def _cutter(self, site: TokenSite) -> Callable[..., object]:
        def after(_module: nn.Module, _inputs: object, output: object) -> object:
            if site.site in self.runs:
                return output  # the module selected by itself
            self.mode.paused = True
            try:
                return self._cut(site, output)
            finally:
                self.mode.paused = False

        return after

    def _cut(self, site: TokenSite, output: object) -> object:
        whole = state_of(site.cut or site.site, output)
        start, n_behind = self._around(site)
        hidden = whole[:, start : whole.shape[1] - n_behind]
        read = self._read[site.site]
        first = start if read.visible.shape[1] == whole.shape[1] else 0
        first = first or read.visible.shape[1] - hidden.shape[1]
        eligible = self._at_cut(site, read.visible, first, hidden.shape[1])
        chosen = site.chosen
        options = chosen.options if isinstance(chosen, Selector) else {}
        around = Around(
            blocks=read.blocks,
            hidden=hidden,
            valid=eligible,
            first=first,
            before=read.before,
            carried=self.carried(),
            given={name: self._given(one, hidden) for name, one in site.given.items()},
            layers=str(options.get("layers", ":")),
        )
        signal = signals_at(site, around)
        self.drop(site, signal, eligible, (start, n_behind))
        before = torch.nn.functional.pad(eligible, (start, n_behind), value=True)
        assert self.mode.alive is not None
        self.left.append(_Left(before & ~self.mode.alive, whole, site.leaves))
        if not isinstance(chosen, Selector) or chosen.combine is None:
            return output
        rows, alive = merge(site, signal, hidden, self.runs[site.site])
        self._hide(site, alive, (start, n_behind))
        made = torch.cat([whole[:, :start], rows, whole[:, whole.shape[1] - n_behind :]], dim=1)
        return replaced_state(output, made)

    def _at_cut(self, site: TokenSite, visible: Tensor, first: int, length: int) -> Tensor:
        """(B, N) bool of the rows at the cut; without a text that always stays."""
        found = self.eligible(site.site, visible)
        if found.shape[1] == length:
            return found
        return found.narrow(1, first, length)

    def _given(self, source: Tensor | str, hidden: Tensor) -> Tensor:
        """A tensor, an input by name, or what a module makes of the hidden states here."""
        if isinstance(source, Tensor):
            return source
        if source in self.inputs:
            return self.inputs[source]
        made: Tensor = submodule(self.net, source)(hidden)
        return made

    def _put_back(self, module: nn.Module, _inputs: object, output: object) -> object:
        """Let dropped tokens stand as they left."""
        if self.mode.alive is None or not self.left:
            raise BadInputError(
                "no token has left where they are put back", where=type(module).__name__
            )
        self.mode.alive = None
        rows = state_of("", output)
        for one in self.left:
            state = self._returned[one.module] if one.module else one.state
            rows = torch.where(one.gone[:, :, None], state, rows)
        self.left = []
        return replaced_state(output, rows)


__all__ = ["Tokens"]
