"""Sites without attention: behind a module of a state-space model, wherever tokens can leave."""

from __future__ import annotations

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.attention import attention_sites, find_sites
from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import AxisMap, size
from secateur.graph_passes.selection.cut_points import value_at
from secateur.graph_passes.sites import Site, site_named


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
    """Return the site at a value (B, N, D) that no attention belongs to.

    Raises:
        BadInputError: the value is an input of the graph.
    """
    exprs = axes_of(axes, value) or ()
    width = size(exprs[-1]) if exprs else 0
    node = value.producer()
    if node is None:
        raise BadInputError(
            f"tokens cannot leave at {name!r}, an input of the graph",
            next_step="leave them out of the input, or name a module behind it",
        )
    return Site(name, node, value, value, width if isinstance(width, int) else 0)


__all__ = ["site_at", "stream_site"]
