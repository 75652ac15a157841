"""Where slots without a token must hold a neutral element, for every fold behind a cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from secateur.graph_passes.axes import FoldUse, Port
from secateur.graph_passes.selection.neighbours import blanks
from secateur.graph_passes.selection.neutral import Fill, Neutral, fill_of, transfers
from secateur.graph_passes.selection.region import Regions, refusal

Edge = tuple[ir.Node, int]

_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_FUSED_MASK_SLOT = {"Attention": 3, "MultiHeadAttention": 5}
_MEAN_HINT = "pool with the attention mask, or keep an equal count of tokens per sample"


@dataclass
class Requests:
    """What one region's folds need.

    Attributes:
        crossings: Neutral elements to write into values that cross the cut.
        direct: Neutral elements to write right at an input of a node.
        means: Means over tokens, to be made sums over counts.
        fused: Fused attention nodes without a mask, to be given one.
    """

    crossings: dict[Edge, Neutral] = field(default_factory=dict)
    direct: dict[Edge, Neutral] = field(default_factory=dict)
    means: list[FoldUse] = field(default_factory=list)
    fused: list[ir.Node] = field(default_factory=list)


def check_folds(regions: Regions) -> None:
    """Refuse folds over tokens that no subset of tokens can stand in for.

    Raises:
        PreconditionError: naming the node.
    """
    for fold in regions.axes.folds:
        if not regions.of.get(fold.node) or not _token_ports(fold, regions):
            continue
        op = fold.node.op_type
        if fold.neutral is None and op != "ReduceMean" and op not in _FUSED_MASK_SLOT:
            raise refusal(regions, fold.node, "it normalises over tokens")


def requests(regions: Regions, region: int) -> Requests:
    """Return what the folds of one region need so that empty slots do not count.

    Raises:
        PreconditionError: a fold for which there is no neutral element and no rewriting.
    """
    made = Requests(direct=blanks(regions, region))
    zeroed: set[ir.Node] = set()
    for fold in regions.axes.folds:
        if regions.of.get(fold.node) != region:
            continue
        ports = _token_ports(fold, regions)
        if ports:
            _request(fold, ports, regions, made, zeroed)
    return made


def _token_ports(fold: FoldUse, regions: Regions) -> list[Port]:
    found = []
    for port in fold.ports:
        exprs = regions.exprs(fold.node, port.slot) if port.slot >= 0 else None
        if exprs is not None and regions.bears(exprs[port.axis]):
            found.append(port)
    return found


def _request(
    fold: FoldUse, ports: list[Port], regions: Regions, made: Requests, zeroed: set[ir.Node]
) -> None:
    node, port = fold.node, ports[0]
    neutral = _from_right(node, port, regions)
    if node.op_type in _FUSED_MASK_SLOT:
        _request_mask(node, regions, made)
    elif node.op_type in _SOFTMAX:
        _ensure((node, port.slot), Neutral(Fill.LOWEST, neutral), regions, made)
        zeroed.add(node)
    elif node.op_type == "ReduceMean":
        made.means.append(fold)
    elif node.op_type in {"MatMul", "Einsum"}:
        _request_zero(node, ports, regions, made, zeroed)
    else:
        fill = None if fold.neutral is None else fill_of(fold.neutral)
        if fill is None or len(ports) != 1:
            raise refusal(regions, node, "it folds over tokens in a way that cannot be masked")
        _ensure((node, port.slot), Neutral(fill, neutral), regions, made)


def _from_right(node: ir.Node, port: Port, regions: Regions) -> int:
    exprs = regions.exprs(node, port.slot)
    assert exprs is not None
    if not regions.is_tokens(exprs[port.axis]):
        reason = "it folds over an axis that is a part of the tokens, or tokens and more"
        raise refusal(regions, node, reason, _MEAN_HINT)
    return port.axis - len(exprs)


def _request_mask(node: ir.Node, regions: Regions, made: Requests) -> None:
    slot = _FUSED_MASK_SLOT[node.op_type]
    inputs = regions.inputs(node)
    mask = inputs[slot] if slot < len(inputs) else None
    if mask is None:
        made.fused.append(node)
        return
    fill = Fill.FALSE if mask.dtype == ir.DataType.BOOL else Fill.LOWEST
    _ensure((node, slot), Neutral(fill, -1), regions, made)


def _request_zero(
    node: ir.Node, ports: list[Port], regions: Regions, made: Requests, zeroed: set[ir.Node]
) -> None:
    """A contraction over tokens: one operand is zero in empty slots, or is made so."""
    wanted = [
        ((node, port.slot), Neutral(Fill.ZERO, _from_right(node, port, regions))) for port in ports
    ]
    if any(_is_zero(edge, neutral, regions, zeroed) for edge, neutral in wanted):
        return
    for edge, neutral in wanted:
        found = _crossing_below(edge, neutral, regions, set())
        if found is not None:
            made.crossings[found[0]] = found[1]
            return
    made.direct[wanted[-1][0]] = wanted[-1][1]


def _is_zero(edge: Edge, neutral: Neutral, regions: Regions, zeroed: set[ir.Node]) -> bool:
    """Tell whether the operand comes from a masked softmax over the same axis."""
    value = regions.inputs(edge[0])[edge[1]]
    node = None if value is None else value.producer()
    if node is None:
        return False
    if node in zeroed:
        return neutral.axis == -1 and node.op_type == "Softmax"
    return any(
        _is_zero((node, slot), passed, regions, zeroed)
        for slot, passed in transfers(node, neutral, regions)
        if passed.fill is Fill.ZERO
    )


def _ensure(edge: Edge, neutral: Neutral, regions: Regions, made: Requests) -> None:
    """Ask for the neutral element where it costs least: in a crossing value, else at the fold."""
    found = _crossing_below(edge, neutral, regions, set())
    if found is None:
        made.direct[edge] = neutral
        return
    if made.crossings.get(found[0], found[1]) != found[1]:
        made.direct[edge] = neutral
        return
    made.crossings[found[0]] = found[1]


def _crossing_below(
    edge: Edge, neutral: Neutral, regions: Regions, seen: set[Edge]
) -> tuple[Edge, Neutral] | None:
    """Find a crossing value upstream that makes the operand neutral when it is."""
    node, slot = edge
    exprs = regions.exprs(node, slot)
    if edge in seen or exprs is None or -neutral.axis > len(exprs):
        return None
    seen.add(edge)
    value = regions.inputs(node)[slot]
    if value is None or not regions.bears(exprs[neutral.axis]):
        return None
    if regions.edge(node, slot) < regions.of.get(node, 0):
        return edge, neutral
    producer = value.producer()
    if producer is None or any(value is cut.value for cut in regions.cuts):
        return None
    for upper, passed in transfers(producer, neutral, regions):
        found = _crossing_below((producer, upper), passed, regions, seen)
        if found is not None:
            return found
    return None


__all__ = ["Edge", "Requests", "check_folds", "requests"]
