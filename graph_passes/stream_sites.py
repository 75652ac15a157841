"""Sites without attention: behind a module of a state-space model, wherever tokens can leave."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.attention import Site, attention_sites, find_sites, site_named
from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import AxisMap, size
from secateur.graph_passes.selection.cut_points import value_at


def site_at(model: ir.Model, axes: AxisMap, name: str) -> Site:
    """Return the attention block of that name, else the stream behind the module of that path.

    Raises:
        BadInputError: neither is there.
        PreconditionError: neither is there, and attention makes no scores of tokens.
    """
    sites = attention_sites(model, axes)
    if any(site.name == name or site.name.endswith(f".{name}") for site in sites):
        return site_named(sites, name)
    try:
        value = value_at(model, name)
    except BadInputError:
        return site_named(find_sites(model, axes), name)
    return stream_site(axes, value, name)


def stream_site(axes: AxisMap, value: ir.Value, name: str) -> Site:
    """Return the site at a value (B, N, D) that no attention belongs to."""
    exprs = axes_of(axes, value) or ()
    width = size(exprs[-1]) if exprs else 0
    width = width if isinstance(width, int) else 0
    node = value.producer()
    if node is None:
        raise BadInputError(
            f"tokens cannot leave at {name!r}, an input of the graph",
            next_step="leave them out of the input, or name a module behind it",
        )
    return replace(
        Site(
            name=name,
            node=node,
            query=value,
            key=value,
            value=value,
            product=None,
            steps=(),
            replays=True,
            weights=None,
            mixing=(),
            mask=None,
            output=value,
            heads=1,
            key_heads=1,
            head_dim=width,
            scale=1.0,
            layout="bnd",
            key_layout="bnd",
            value_layout="bnd",
            block=value,
            after_attention=value,
        ),
        width=width,
        attends=False,
    )


__all__ = ["site_at", "stream_site"]
