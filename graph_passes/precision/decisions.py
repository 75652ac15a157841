"""Decide, node by node, what computes in half precision and why the rest does not."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes import constant
from secateur.graph_passes.names import module_path, node_name
from secateur.graph_passes.precision.rules import (
    COMPUTES,
    FOLLOWS,
    HOLDS,
    MOVES,
    ROUNDS,
    SINES,
    SOFTMAXES,
    TENSORS,
    is_float,
    lowered_slots,
    permitted,
)
from secateur.graph_passes.token_selection import SITES_KEY

HEADROOM = 4.0
"""Values seen on the user's data must stay this factor below the largest finite number."""

FLOAT32_KEY = "secateur.float32"
"""Metadata entry of a model that knows what must stay: JSON list of patterns, as ``keep``."""

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})

State = Literal["half", "float32", "free"]
"""Type of a value where it is made; ``free``: constants and inputs, exact in either or cheap."""

SELECTION = "token selection"
FEEDS_SOFTMAX = "feeds a softmax"
FEEDS_SINE = "is an angle"
DECIDES = "only decides"
READS_FLOAT32 = "reads float32 values"
NOT_DESCRIBED = "operator stays in float32"
NO_SUCH_TYPE = "the opset has no such type for the operator"
ASKED = "asked for"
CONSTANT = "a constant does not fit"
OVERFLOW = "values would overflow"
NOT_READ_IN_HALF = "no reader computes in half precision"


@dataclass(frozen=True, slots=True)
class Precision:
    """What half precision, and what is to stay out of it.

    ``keep`` are patterns of module paths or node names (``encoder.layer.3*``); ``ranges``
    gives the largest magnitude that was seen of a value, by its name.
    """

    dtype: ir.DataType = ir.DataType.FLOAT16
    keep: tuple[str, ...] = ()
    ranges: Mapping[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """The largest magnitude on the user's data that is lowered."""
        return HOLDS[self.dtype].largest / HEADROOM


@dataclass(slots=True)
class Decisions:
    """The reason why a node stays in float32, "" for one that computes in half precision."""

    reasons: dict[ir.Node, str] = field(default_factory=dict)
    large: set[ir.Value] = field(default_factory=set)
    """Values that come from constants beyond what the type holds: masks."""

    def is_half(self, node: ir.Node | None) -> bool:
        """Tell whether a node computes in half precision."""
        return node is not None and self.reasons.get(node) == ""


def decide(model: ir.Model, precision: Precision) -> Decisions:
    """Decide over every node that reads or makes float32 values.

    Sums of products are lowered; what computes in the type of its operands follows them;
    softmax, norms, reductions and every operator without a rule stay in float32, as do token
    selection and what only decides (scores, thresholds), what would overflow and what was
    asked for.
    """
    return _Decider(model, precision).run()


class _Decider:
    def __init__(self, model: ir.Model, precision: Precision) -> None:
        self.model = model
        self.precision = precision
        self.holds = HOLDS[precision.dtype]
        self.found = Decisions()
        self.states: dict[ir.Value, State] = {}
        self.keep = (*precision.keep, *json.loads(model.metadata_props.get(FLOAT32_KEY, "[]")))
        self.inside = _selection_prefixes(model)
        self.deciding = _deciding(model.graph)
        self.undecided: set[ir.Node] = set()
        self.feeding: dict[ir.Node, str] = {}

    def run(self) -> Decisions:
        for value in (*self.model.graph.inputs, *self.model.graph.initializers.values()):
            self.states[value] = "free"
        for node in self.model.graph:
            if any(map(is_float, (*node.inputs, *node.outputs))):
                self._visit(node)
        order = [node for node in self.model.graph if node in self.found.reasons]
        for node in reversed(order):
            self._look_back(node)
        return self.found

    def _visit(self, node: ir.Node) -> None:
        """Forward: what must stay, what is lowered, and what follows its operands."""
        reason = self._stays(node)
        if not reason and node.op_type in FOLLOWS:
            reason = self._follow(node)
        self.found.reasons[node] = reason
        state: State = "half" if not reason or self._is_rounded(node) else "float32"
        if node in self.undecided:
            state = "free"
        for value in node.outputs:
            self.states[value] = state
            if self._is_large(node):
                self.found.large.add(value)

    def _stays(self, node: ir.Node) -> str:
        """The reason that a node cannot be lowered whatever its operands are."""
        checks: tuple[tuple[str, Callable[[ir.Node], bool]], ...] = (
            (NOT_DESCRIBED, _is_unknown),
            (ASKED, self._is_asked),
            (SELECTION, self._selects),
            (DECIDES, lambda n: n in self.deciding),
            (NO_SUCH_TYPE, lambda n: not permitted(self.model, n, self.precision.dtype)),
            (CONSTANT, self._has_unfit_constant),
            (OVERFLOW, self._overflows),
        )
        return next((reason for reason, holds in checks if holds(node)), "")

    def _follow(self, node: ir.Node) -> str:
        if node.op_type == "Cast" and not is_float(node.inputs[0]):
            is_exact = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BOOL
            if not is_exact:
                return NOT_DESCRIBED
        if _is_lookup(node):
            return ""
        states = {
            self.states.get(value, "float32")
            for i in lowered_slots(node)
            if (value := node.inputs[i]) is not None and not value.is_initializer()
        }
        if "float32" in states:
            return READS_FLOAT32
        if "half" not in states:
            self.undecided.add(node)
        return ""

    def _look_back(self, node: ir.Node) -> None:
        """Backward: towards a softmax or a sine in float32; what is free goes with its readers."""
        uses = [user for value in node.outputs for user, _ in value.uses()]
        is_output = any(value.is_graph_output() for value in node.outputs)
        feeds = "" if is_output or not uses else self._feeds(node, uses)
        if feeds:
            self.feeding[node] = feeds
        if self.found.reasons[node]:
            return
        if node in self.undecided and (is_output or not all(map(self.found.is_half, uses))):
            feeds = feeds or NOT_READ_IN_HALF
        self.found.reasons[node] = feeds

    def _feeds(self, node: ir.Node, uses: list[ir.Node]) -> str:
        """What all of a node's readers lead to.

        A product is summed up in float32 in any case and may be rounded on its way to a
        softmax; an angle must not be, and an integer is none at all beyond 2048.
        """
        if all(u.op_type in SINES or self.feeding.get(u) == FEEDS_SINE for u in uses):
            return FEEDS_SINE
        kinds = {FEEDS_SOFTMAX, FEEDS_SINE}
        if node.op_type in FOLLOWS and all(
            user.op_type in SOFTMAXES or self.feeding.get(user) in kinds for user in uses
        ):
            return FEEDS_SOFTMAX
        return ""

    def _is_asked(self, node: ir.Node) -> bool:
        names = (module_path(node), node_name(node))
        return any(fnmatch.fnmatchcase(n, p) for n in names if n for p in self.keep)

    def _selects(self, node: ir.Node) -> bool:
        """Tokens move in whatever type they have; everything else of a selection is exact."""
        return node.op_type not in MOVES and (node.name or "").startswith(self.inside)

    def _has_unfit_constant(self, node: ir.Node) -> bool:
        """Beyond the largest number, or a factor (or epsilon) of which few digits are left."""
        return any(
            size > self.holds.largest or (is_factor and 0 < size < self.holds.smallest_normal)
            for size, is_factor in _constants(node)
        )

    def _overflows(self, node: ir.Node) -> bool:
        # The mask of an attention is cut to what the type holds, see casts.
        most = TENSORS.get(node.op_type, len(node.inputs))
        reads = [node.inputs[i] for i in lowered_slots(node) if i < most]
        if any(value in self.found.large for value in reads):
            return True
        return any(
            not self.precision.ranges.get(value.name or "", 0.0) <= self.precision.limit
            for value in (*reads, *node.outputs)
            if value is not None and not value.is_initializer()
        )

    def _is_rounded(self, node: ir.Node) -> bool:
        """Whether readers may take the result of a float32 node in half precision."""
        return node.op_type in ROUNDS and not any(
            not self.precision.ranges.get(value.name or "", 0.0) <= self.precision.limit
            for value in node.outputs
        )

    def _is_large(self, node: ir.Node) -> bool:
        """A mask stays one however it is reshaped and added to."""
        if node.op_type not in FOLLOWS:
            return False
        return any(v in self.found.large for v in node.inputs) or any(
            size > self.holds.largest for size, _ in _constants(node)
        )


def _is_unknown(node: ir.Node) -> bool:
    """No rule, another domain, a body of its own, or a type that inference did not find."""
    has_body = any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
    known = node.op_type in COMPUTES or node.op_type in FOLLOWS
    return has_body or not known or node.domain not in _DOMAINS or _reads_unknown(node)


def _reads_unknown(node: ir.Node) -> bool:
    values = (*(value for value in node.inputs if value is not None), *node.outputs)
    return any(value.dtype is None for value in values if value.uses() or value.is_graph_output())


def _is_lookup(node: ir.Node) -> bool:
    """A row of a table of weights: the table is stored in half precision."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.is_initializer() and len(table.shape or ()) >= 2


def _constants(node: ir.Node) -> Iterator[tuple[float, bool]]:
    """Yield the largest magnitude of each constant of a node, and whether it is a factor.

    A small summand is lost beside any other number in float32 too; a lone number may be the
    epsilon that keeps a division finite.
    """
    multiplies = node.op_type in COMPUTES or node.op_type in {"Mul", "Div"}
    for i in lowered_slots(node):
        value = node.inputs[i]
        if value is not None and value.is_initializer() and not value.is_graph_input():
            array = constant(value)
            is_lone = array is not None and array.size == 1
            yield _magnitude(array), is_lone or (multiplies and i < 2)
    fill = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and fill is not None:
        yield _magnitude(fill.as_tensor().numpy()), True


def _magnitude(array: np.ndarray | None) -> float:
    if array is None or not array.size:
        return 0.0
    return float(np.abs(array).max())


def _selection_prefixes(model: ir.Model) -> tuple[str, ...]:
    """How the names of nodes begin that selections and their forced twins brought."""
    records = json.loads(model.metadata_props.get(SITES_KEY, "[]"))
    sites = [str(record["site"]) for record in records]
    return tuple(f"{site}/{kind}/" for site in sites for kind in ("selection", "forced"))


def _deciding(graph: ir.Graph) -> set[ir.Node]:
    """Nodes whose numbers reach no float output: they end in an index, a count or a comparison."""
    carries: set[ir.Node] = set()
    makes_floats: list[ir.Node] = []
    for node in reversed(graph):
        floats = [value for value in node.outputs if is_float(value)]
        if floats:
            makes_floats.append(node)
        if any(v.is_graph_output() or _is_carried(v, graph, carries) for v in floats):
            carries.add(node)
    return set(makes_floats) - carries if carries else set()


def _is_carried(value: ir.Value, graph: ir.Graph, carries: set[ir.Node]) -> bool:
    return any(user in carries or user.graph is not graph for user, _ in value.uses())


__all__ = [
    "ASKED",
    "CONSTANT",
    "DECIDES",
    "FEEDS_SINE",
    "FEEDS_SOFTMAX",
    "HEADROOM",
    "NOT_DESCRIBED",
    "NOT_READ_IN_HALF",
    "NO_SUCH_TYPE",
    "OVERFLOW",
    "READS_FLOAT32",
    "SELECTION",
    "Decisions",
    "Precision",
    "decide",
]
