"""Token selection as one step: find the site, trace the selector, insert it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import analyse_axes
from secateur.graph_passes.lowering import Options, has_markers, lower_markers
from secateur.graph_passes.opset import SELECTION_OPSET, opset_of
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.selection.cut_points import cut_value
from secateur.graph_passes.sites import Site
from secateur.graph_passes.stream_sites import site_at
from secateur.graph_passes.token_selection import Selection, insert_selections
from secateur.workflow.golden import site_records
from secateur.workflow.results import SelectionRow
from secateur.workflow.select_checks import check_counts, check_signals

if TYPE_CHECKING:
    from secateur.export.selector_graph import Signature


@dataclass(frozen=True, slots=True)
class Select:
    """One place where the running model drops tokens.

    ``keep`` is a share in (0, 1) of each sample's valid tokens, or a whole number of tokens;
    with ``budget="input"`` it is only the default of an input of the graph. A sample with fewer
    tokens keeps all; a number that no sample can have is refused. A method that decides itself
    how many tokens stay does not read it.

    ``options`` are the method's, ``cut`` says where tokens leave (``block``, ``attention``, a
    value or a module of the graph), ``signals`` which values give signals that no site has.
    ``among`` names a value or a module whose tokens alone are selected from, such as the
    projector of a picture whose tokens stand between words. ``leaves`` names what a token that
    leaves here has where all are put back (``restore``), such as what an early head says of it.
    ``close_gaps`` says that tokens that stay are neighbours from there on, which a state-space
    model or a convolution along the tokens needs to be told. ``class_token`` says that the first
    token is a class token, where the graph does not show one in front of the others.

    ``site`` is an attention block, or a module that returns hidden states: there a selector may
    read these, and values of the graph, but no attention.
    """

    site: str
    by: str = "class_row"
    keep: float = 0.6
    protected: int = 1
    budget: Literal["input", "constant"] = "input"
    options: Options = field(default_factory=dict)
    cut: str = "block"
    signals: Mapping[str, str] = field(default_factory=dict)
    among: str = ""
    leaves: str = ""
    close_gaps: bool = False
    class_token: bool = False

    def __post_init__(self) -> None:
        whole = isinstance(self.keep, int) and not isinstance(self.keep, bool) and self.keep >= 1
        if not whole and not (isinstance(self.keep, float) and 0 < self.keep < 1):
            raise BadInputError(
                "keep is neither a share nor a count",
                where=f"site {self.site!r}",
                got=repr(self.keep),
                wanted="a share in (0, 1), such as 0.6, or a whole number of tokens, such as 64",
            )

    @property
    def amount(self) -> Budget:
        """The budget as the pass takes it."""
        share = self.keep < 1
        return Budget(
            kind="permille" if share else "count",
            default=round(self.keep * 1000) if share else int(self.keep),
            is_input=self.budget == "input",
            protected=self.protected,
        )


def select_tokens(
    model: ir.Model, selections: Sequence[Select], *, restore: Sequence[str] = ()
) -> ir.Model:
    """Return a model that drops tokens at the given sites; the input stays as it is.

    A model that selects tokens in its own forward has sites of its own: give none. ``restore``
    names the values or modules at which all tokens are put back, dropped ones as they left.

    Raises:
        BadInputError: a site that the model lacks, an unknown selector, one whose signals the
            site lacks, more tokens to keep than there are, sites for a model that has its own.
        PreconditionError: a node behind a cut that tokens cannot be taken from.
    """
    if has_markers(model):
        if selections:
            raise BadInputError(
                "the model selects tokens in its own forward",
                got=", ".join(one.site for one in selections),
                wanted="no further sites",
                next_step="its shares are inputs of the finished graph: set them there",
            )
        return lower_markers(model, _trace, expose_kept=True)
    axes, order = analyse_axes(model), list(model.graph)
    found = [(site_at(model, axes, one.site), one) for one in selections]
    first = min((order.index(site.node) for site, _ in found), default=0)
    for site, one in found:
        check_signals(model, axes, site, one)
    made = [_selection(model, site, one, sees_all=site.node is order[first]) for site, one in found]
    selecting = insert_selections(model, tuple(made), restore=tuple(restore))
    check_counts(selecting)
    return selecting


def _selection(model: ir.Model, site: Site, wanted: Select, *, sees_all: bool) -> Selection:
    """What the pass inserts at a site.

    Only the first site may know its number of tokens: the others get what was left.
    """
    from secateur.export.selector_graph import trace

    shape = cut_value(model, site, wanted.among or wanted.cut).shape
    tokens = shape[1] if shape is not None and sees_all else None
    signature = replace(
        _signature(site, max(SELECTION_OPSET, opset_of(model))),
        tokens=tokens if isinstance(tokens, int) else None,
        protected=wanted.protected,
    )
    return Selection(
        site=site.name,
        graph=trace(wanted.by, signature, wanted.options),
        budget=wanted.amount,
        cut=wanted.cut,
        expose_kept=True,
        signals=wanted.signals,
        among=wanted.among,
        leaves=wanted.leaves,
        close_gaps=wanted.close_gaps,
        class_token=wanted.class_token,
    )


def _trace(by: str, site: Site, opset: int, options: Options) -> ir.Model:
    """Trace the selector for the sizes that the site has."""
    from secateur.export.selector_graph import trace

    return trace(by, _signature(site, opset), options)


def _signature(site: Site, opset: int) -> Signature:
    from secateur.export.selector_graph import Signature

    if not site.width:
        raise BadInputError("the model's width is not known", where=f"site {site.name!r}")
    made = Signature(
        heads=1,
        head_dim=site.width,
        width=site.width,
        dtype=site.block.dtype or ir.DataType.FLOAT,
        opset=opset,
    )
    if (there := site.attention) is None:
        return made
    return replace(made, heads=there.key_heads, head_dim=there.head_dim, query_heads=there.heads)


def selection_rows(model: ir.Model) -> tuple[SelectionRow, ...]:
    """What the model records of its selections, for tables."""
    rows = []
    for record in site_records(model):
        budget = record["budget"]
        keep = f"{budget['default'] / 10:g} % of the valid tokens"
        if budget.get("unit", budget["kind"]) != "permille":
            is_known = str(record["tokens"]).isdigit()
            keep = f"{'' if is_known else 'up to '}{budget['default']} tokens"
        control = budget.get("input") or "constant"
        rows.append(
            SelectionRow(record["site"], record["selector"], keep, record["protected"], control)
        )
    return tuple(rows)


__all__ = ["Select", "select_tokens", "selection_rows"]
