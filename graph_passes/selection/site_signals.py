"""Whether a site can give a signal at all: it may have no attention, or no class token.

What a graph tells of a class token: it is one position in front of the others, joined to them.
Patches are a grid, rows by columns, so that tokens which begin with one have no class token in
front; nor have the frames that a convolution makes of sound. The tokens of an input, such as words,
say nothing: their first is taken for the class token, as BERT has it.
"""

from __future__ import annotations

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.attention_steps import axes_of
from secateur.graph_passes.axes import AxisMap, Expr, Sum, leaves, size
from secateur.graph_passes.sites import Site, attention_of

WITHOUT_ATTENTION = frozenset({"hidden", "valid", "accumulated"})
"""Signals that are not about the site's attention."""

_OF_CLASS_TOKEN = frozenset({"class_row", "class_rows", "class_value"})


def check_attends(site: Site, signal: str) -> None:
    """Refuse a signal of attention at a site without any.

    Raises:
        BadInputError: naming the signal.
    """
    if site.attention is not None or signal in WITHOUT_ATTENTION:
        return
    raise BadInputError(
        f"the selector reads the signal {signal!r}, which this site cannot give",
        where=f"site {site.name!r}",
        got="a module without attention",
        wanted="hidden, accumulated, or a value of the graph",
        next_step=f"name one in the recipe: signals: {{{signal}: <value or module>}}",
    )


def check_class_token(graph: ir.Graph, axes: AxisMap, site: Site, signal: str) -> None:
    """Refuse a signal of the class token where none leads the tokens.

    Raises:
        BadInputError: naming the signal and what leads the tokens.
    """
    if signal not in _OF_CLASS_TOKEN:
        return
    attention = attention_of(site)
    first = _first(axes.of(attention.key)[attention.key_layout.index("n")])
    if size(first) == 1:
        return
    given = {
        atom
        for value in graph.inputs
        for expr in axes_of(axes, value) or ()
        for atom in leaves(expr)
    }
    if len(first) == 1 and given.issuperset(leaves(first)):
        return
    raise BadInputError(
        f"the selector reads the signal {signal!r}, which this site cannot give",
        where=f"site {site.name!r}",
        got=f"{size(first)} tokens that the model makes in front, no class token",
        wanted="one token in front of the others",
        next_step="choose a selector that reads keys, values, hidden states or column_mean; say "
        "class_token if the first one is a class token",
    )


def _first(tokens: Expr) -> Expr:
    """Return what stands in front of a concatenation, or all of it where it is none."""
    only = tokens[0] if len(tokens) == 1 else None
    return _first(only.terms[0]) if isinstance(only, Sum) else tokens


__all__ = ["WITHOUT_ATTENTION", "check_attends", "check_class_token"]
