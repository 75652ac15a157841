"""Where the signals of one site are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secateur.graph_passes.selection.attention_rows import Rows
from secateur.graph_passes.selection.budget import Tokens
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.region import Cut, Regions
from secateur.graph_passes.selection.versions import Versions
from secateur.graph_passes.selection.window import Window
from secateur.graph_passes.sites import Attention, Site, attention_of


@dataclass(frozen=True, slots=True)
class Context:
    """Where signals are built.

    Attributes:
        emit: Where nodes go.
        regions: The chain of cuts.
        versions: What earlier cuts left.
        site: The place that signals are of.
        sites: All attention blocks of the graph, in its order.
        cut: Where tokens leave.
        tokens: The tokens that reach the cut.
        given: Signals that values of the graph give: signal name to value name.
        layers: Which attention blocks up to the site signals of several layers are of, as
            Python counts: ``"16:"``, ``"8,-1"``.
        window: Where the tokens to select from stand, if they are not all at the cut.
        class_token: Whether the user says that a class token leads the site's tokens.
    """

    emit: Emitter
    regions: Regions
    versions: Versions
    site: Site
    sites: tuple[Site, ...]
    cut: Cut
    tokens: Tokens
    given: Mapping[str, str] = field(default_factory=dict)
    layers: str = ":"
    window: Window | None = None
    class_token: bool = False

    @property
    def rows(self) -> Rows:
        """Attention probabilities of this graph."""
        return Rows(self.versions, self.regions)

    @property
    def attention(self) -> Attention:
        """What attends at the site."""
        return attention_of(self.site)


__all__ = ["Context"]
