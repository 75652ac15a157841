"""Places of a graph where tokens may leave, with the attention that scores them where there is one.

``secateur.graph_passes.attention`` finds the blocks that attend,
``secateur.graph_passes.stream_sites`` makes a site of any hidden states.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.attention_products import ScoreProduct
from secateur.graph_passes.attention_steps import Step

Cut = Literal["block", "attention"]
Layout = str
"""Order of axes: b, h, n, d one by one; g for batch and heads in one; ``bnd`` for heads and d."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What stands in one attention block.

    Attributes:
        node: The Softmax, or the fused attention node.
        query: (B, H, N, Dh), or as ``layout`` says; in the decomposed form an operand of
            q k^T, scaled or not.
        key: Keys as the projection (and rotary embedding) gave them, unscaled.
        value: Values.
        product: q k^T; None in a fused node.
        steps: Nodes between q k^T and the softmax, first to last.
        replays: Whether steps and mixing work on some rows of the scores as on all of them.
        weights: (B, H, N, N) that values are summed by: the softmax's result, with its heads
            mixed where the model mixes them; None in a fused node.
        mixing: Nodes between the softmax and the weights where they mix heads, else none.
        mask: The mask input of a fused node.
        output: What the attention returns, before its output projection.
        heads: H of the queries.
        key_heads: H of the keys: fewer than ``heads`` with grouped queries.
        head_dim: Dh of the keys.
        scale: Factor on q k^T in a fused node; 1 where the graph has nodes for it.
        layout: Order of the query's axes.
        key_layout: Order of the key's axes.
        value_layout: Order of the value's axes.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    product: ScoreProduct | None
    steps: tuple[Step, ...]
    replays: bool
    weights: ir.Value | None
    mixing: tuple[Step, ...]
    mask: ir.Value | None
    output: ir.Value
    heads: int
    key_heads: int
    head_dim: int
    scale: float
    layout: Layout
    key_layout: Layout
    value_layout: Layout

    @property
    def dtype(self) -> ir.DataType:
        """Floating type of the scores."""
        return self.query.dtype or ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Site:
    """One place where tokens may leave.

    Attributes:
        name: Module path, such as ``encoder.layer.1``.
        node: What the place is known by in the order of the graph: the Softmax or fused node of
            its attention, else what makes ``block``.
        block: Residual stream behind the whole block, (B, N, D).
        after_attention: Residual stream behind the attention sub-layer, (B, N, D); ``block``
            where nothing attends.
        width: D, 0 where it is not known.
        attention: What scores the tokens here; None in a state-space model.
    """

    name: str
    node: ir.Node
    block: ir.Value
    after_attention: ir.Value
    width: int = 0
    attention: Attention | None = None

    def cut(self, at: Cut) -> ir.Value:
        """Return the value that a selection at this site reduces."""
        return self.block if at == "block" else self.after_attention


def attention_of(site: Site) -> Attention:
    """Return the attention of a site that has to have one.

    Raises:
        BadInputError: naming the site.
    """
    if site.attention is None:
        raise BadInputError(
            "there is no attention at this site",
            where=f"site {site.name!r}",
            got="a module without attention",
            next_step="choose a selector that reads hidden states, or the site of an attention",
        )
    return site.attention


def site_named(sites: tuple[Site, ...], name: str) -> Site:
    """Return the site called ``name``, or the only one whose path ends in it, as ``name``.

    Raises:
        BadInputError: no site, or more than one, answers to the name.
    """
    exact = [site for site in sites if site.name == name]
    ending = [site for site in sites if site.name.endswith(f".{name}")]
    found = exact or ending
    if len(found) == 1:
        return replace(found[0], name=name)
    names = [site.name for site in sites]
    close = difflib.get_close_matches(name, names, n=1)
    raise BadInputError(
        f"unknown site {name!r}" if not found else f"more than one site ends in {name!r}",
        wanted="one of " + ", ".join(site.name for site in (found or sites)),
        next_step=f"did you mean {close[0]!r}?" if close else "name one of these sites",
    )


__all__ = ["Attention", "Cut", "Layout", "Site", "attention_of", "site_named"]
