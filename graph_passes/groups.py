"""The coupled groups of a model, named as a person would name them.

Source: coupled channels of Structurally Prune Anything (arXiv 2403.18955, section 3.1);
here a group is a leaf atom of the axis algebra with every weight axis that contains it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.graph_passes.axes import (
    Atom,
    AxisMap,
    Expr,
    Reason,
    analyse_axes,
    indices,
    leaves,
    node_name,
    size,
)
from secateur.graph_passes.axes.allocation import without_collector
from secateur.graph_passes.axes.axis_map import ConstantUse
from secateur.graph_passes.axes.visits import Visit
from secateur.graph_passes.names import layer_of, module_path, parameter_names
from secateur.graph_passes.prepare import prepare_and_visit
from secateur.graph_passes.roles import Roles, find_roles

_WORDS = {
    "heads": "heads",
    "query_heads": "query heads per group",
    "head_width": "head width",
    "ffn": "FFN",
    "channels": "channels",
    "experts": "experts",
    "recurrent": "recurrent units",
    "residual": "residual width",
    "inputs": "inputs",
    "outputs": "outputs",
    "rows": "rows",
    "vocabulary": "vocabulary",
    "kernel": "kernel extent",
    "tokens": "tokens",
    "batch": "batch",
}

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})  # input 2 is R: (directions, gates * units, units)
_ADDED = frozenset({"Add", "Where"})  # what only they read (a mask over windows) makes no units

_COUNTING = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_FLOATING = frozenset(dtype for dtype in ir.DataType if dtype.is_floating_point())
_QUANTISED = frozenset(
    {"DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
)
"""Ops that read weights of whole numbers."""


class WeightUse:
    """One axis of one use of a weight that contains the group's atom."""

    __slots__ = ("axis", "expr", "initialiser", "node", "op", "parameter", "shape", "slot")

    def __init__(
        self, read: ConstantUse, initialiser: str, parameter: str, axis: int, expr: Expr
    ) -> None:
        self.initialiser = initialiser
        self.parameter = parameter
        """The user's name of it, or the initialiser's where export left no other."""
        self.axis = axis
        self.expr = expr
        self.node = read.visit.node
        self.op = read.visit.op
        self.slot = read.slot
        self.shape = read.dims
        """Of the whole weight, as it was when the graph was analysed."""


@dataclass(slots=True, init=False, eq=False)
class Group:
    """A set of units that come and go together, over every weight they touch.

    Not to be changed: frozen dataclasses take ten times as long to make, and a graph has many.
    """

    name: str
    role: str
    layer: str
    atom: Atom
    weights: tuple[WeightUse, ...]
    exact: bool
    """Removing units equals setting them to the neutral element wherever they are combined."""

    def __init__(  # noqa: PLR0913, PLR0917 - its fields
        self,
        name: str,
        role: str,
        layer: str,
        atom: Atom,
        weights: tuple[WeightUse, ...],
        exact: bool,
    ) -> None:
        self.name, self.role, self.layer = name, role, layer
        self.atom, self.weights, self.exact = atom, weights, exact

    @property
    def size(self) -> int:
        """Number of units; -1 where it is known only at run time."""
        return self.atom.size if isinstance(self.atom.size, int) else -1

    @property
    def frozen(self) -> tuple[Reason, ...]:
        """Why no unit may be removed; empty when units may."""
        return tuple(self.atom.reasons)

    @property
    def at_least(self) -> int:
        """Fewest units that may stay: one, or as many as a TopK over them picks."""
        return max(1, self.atom.at_least)

    @property
    def removable(self) -> bool:
        """Tell whether units can be removed exactly."""
        return self.exact and not self.frozen and bool(self.weights)

    @property
    def parameters(self) -> int:
        """Numbers in all weights that go if every unit goes; each number counts once."""
        left: dict[str, dict[int, int]] = {}
        whole: dict[str, tuple[int, ...]] = {}
        for use in self.weights:
            none = {self.atom: np.zeros(0, np.int64)}
            left.setdefault(use.initialiser, {})[use.axis] = len(indices(use.expr, none))
            whole[use.initialiser] = use.shape
        return sum(
            math.prod(shape) - math.prod(left[name].get(i, dim) for i, dim in enumerate(shape))
            for name, shape in whole.items()
        )


@dataclass(frozen=True)
class Analysis:
    """A model in working form, its axes, and its groups in graph order."""

    model: ir.Model
    axes: AxisMap
    roles: Roles
    groups: tuple[Group, ...]
    allow_outputs: tuple[str, ...] = ()
    """Graph outputs whose axes count as groups like any other."""
    allow_ids: Mapping[str, int] = field(default_factory=dict)
    """Graph inputs whose numbers are ids of rows that may go, each with the id that stands in."""
    checked: list[tuple[object, list[tuple[Group, NDArray[np.int64]]]]] = field(
        default_factory=list, repr=False
    )
    """The last plan that ``make_plan`` made for it, if any, with the kept units of each group."""
    _by_name: dict[str, Group] = field(default_factory=dict, repr=False)

    def group(self, name: str) -> Group:
        """Return a group by name.

        Raises:
            BadInputError: no group has it; the message lists those there are.
        """
        if not self._by_name:
            self._by_name.update((group.name, group) for group in self.groups)
        if name not in self._by_name:
            known = ", ".join(g.name for g in self.groups if g.removable) or "none"
            raise BadInputError(
                f"the model has no group {name!r}",
                wanted=f"one of: {known}",
                next_step="`secateur analyse MODEL` lists every group",
            )
        return self._by_name[name]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of group names and sizes: what a plan refers to, not the values of weights."""
        text = "\n".join([f"{g.name}\t{g.role}\t{g.size}" for g in self.groups if g.weights])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def by_role(self, role: str) -> tuple[Group, ...]:
        """Return the groups of one role, in graph order."""
        return tuple(group for group in self.groups if group.role == role)


@without_collector()
def analyse(
    model: ir.Model,
    *,
    allow_outputs: Collection[str] = (),
    allow_ids: Mapping[str, int] = MappingProxyType({}),
    in_place: bool = False,
) -> Analysis:
    """Find the coupled groups of a model. The model is not changed, but see ``in_place``.

    Args:
        model: any; a copy of it is brought into working form first.
        allow_outputs: names of graph outputs whose positions can go too.
        allow_ids: names of graph inputs that give ids of rows that can go too (a vocabulary),
            each with the id that is read in place of one whose row is gone.
        in_place: bring the model itself into working form; it is then what the analysis
            refers to and what ``remove_atoms`` cuts.

    Raises:
        BadInputError: the graph contradicts itself, or has no such output, input or id.
    """
    prepared, visits = prepare_and_visit(model, in_place=in_place)
    return analyse_prepared(
        prepared, allow_outputs=allow_outputs, allow_ids=allow_ids, visits=visits
    )


@without_collector()
def analyse_prepared(
    model: ir.Model,
    *,
    allow_outputs: Collection[str] = (),
    allow_ids: Mapping[str, int] = MappingProxyType({}),
    visits: Iterable[Visit] | None = None,
) -> Analysis:
    """Find the groups of a model that ``prepare`` returned; the analysis refers to it.

    ``visits`` are the nodes of its graph, of a caller that has read them.
    """
    names = [str(value.name) for value in model.graph.outputs]
    if unknown := sorted(set(allow_outputs) - set(names)):
        raise BadInputError(
            f"the model has no output {unknown[0]!r}", wanted="one of: " + ", ".join(names)
        )
    _check_inputs(model, allow_ids)
    axes = analyse_axes(model, allow_outputs=allow_outputs, allow_ids=allow_ids, visits=visits)
    _check_stand_ins(axes)
    uses = _weight_uses(model, axes)
    made = {a for a, found in uses.items() if any(u.op not in _ADDED for u in found)}
    roles = find_roles(axes, made)
    if allow_outputs:
        computed = set(axes.values())
        opened = [v for v in model.graph.outputs if v.name in allow_outputs and v in computed]
        roles.outputs.update(a for v in opened for expr in axes.of(v) for a in leaves(expr))
    groups = [_group(atom, tuple(weights), roles) for atom, weights in uses.items()]
    groups.extend(_without_weights(model, axes, roles, uses))
    named = _with_unique_names(groups)
    return Analysis(model, axes, roles, named, tuple(allow_outputs), allow_ids)


def _check_inputs(model: ir.Model, allow_ids: Collection[str]) -> None:
    names = [
        str(value.name)
        for value in model.graph.inputs
        if value.dtype in _COUNTING and value.const_value is None
    ]
    if unknown := sorted(set(allow_ids) - set(names)):
        raise BadInputError(
            f"the model has no input {unknown[0]!r} of ids",
            wanted="one of: " + (", ".join(names) or "none: no input is int32 or int64"),
        )


def _check_stand_ins(axes: AxisMap) -> None:
    for lookup in axes.lookups.values():
        rows = size(axes.expr(lookup.node, lookup.port))
        if isinstance(rows, int) and not 0 <= lookup.stand_in < rows:
            raise BadInputError(
                "the id that stands in for those without a row has none itself",
                where=node_name(lookup.node),
                got=str(lookup.stand_in),
                wanted=f"0 to {rows - 1}",
            )


def _weight_uses(model: ir.Model, axes: AxisMap) -> dict[Atom, list[WeightUse]]:
    names = parameter_names(model)
    found: dict[Atom, list[WeightUse]] = {}
    for read in axes.of_uses.values():
        if not read.exprs:
            continue
        if read.dtype not in _FLOATING and read.visit.op not in _QUANTISED:
            continue  # positions and masks go along with a cut, but nobody calls them weights
        initialiser = read.name
        parameter = names.get(initialiser, "") or _guess(read.visit.node, initialiser)
        for axis, expr in enumerate(read.exprs):
            for atom in leaves(expr):
                use = WeightUse(read, initialiser, parameter, axis, expr)
                if atom in found:
                    found[atom].append(use)
                else:
                    found[atom] = [use]
    return found


def _guess(node: ir.Node, name: str) -> str:
    """Name a weight by the module that reads it where the exporter renamed it."""
    path = "" if "." in name else module_path(node)
    return f"{path}.{name}" if path and not name.startswith(path) else name


def _group(atom: Atom, weights: tuple[WeightUse, ...], roles: Roles) -> Group:
    role = _role(atom, weights, roles)
    place = _place(weights, role)
    word = _word(role, atom, roles)
    name = word if role == "residual" else f"{word} of {place}"
    return Group(name, role, place, atom, weights, atom not in roles.inexact)


def _word(role: str, atom: Atom, roles: Roles) -> str:
    if role != "head_width":
        return _WORDS[role]
    return "query-key width" if atom in roles.scored else "value width"


def _role(atom: Atom, weights: tuple[WeightUse, ...], roles: Roles) -> str:
    for role, atoms in (
        ("vocabulary", roles.vocabulary),
        ("heads", roles.heads),
        ("query_heads", roles.query_heads),
        ("tokens", roles.tokens),
        ("experts", roles.experts),
        ("head_width", roles.width),
        ("residual", roles.residual),
        ("outputs", roles.outputs),
    ):
        if atom in atoms:
            return role
    ops = {use.op for use in weights}
    if not ops.isdisjoint(_RECURRENT) and any(
        use.op in _RECURRENT and (use.slot, use.axis) == (2, 2) for use in weights
    ):
        return "recurrent"
    for reason in atom.reasons:
        if reason.text in _BOUNDARY:
            return _BOUNDARY[reason.text]
    attends = bool(roles.heads or roles.query_heads)
    dense = attends and bool(ops & {"MatMul", "Gemm"}) and "Conv" not in ops
    in_block = any(layer_of(use.parameter) for use in weights)
    is_packed = any(reason.text.startswith("position ") for reason in atom.reasons)  # q, k and v
    return "ffn" if dense and in_block and not is_packed else "channels"


_BOUNDARY = {
    "it is an axis of a graph input": "inputs",
    "it is an axis of a graph output": "outputs",
    "it is read at computed positions": "rows",
    "it is the extent of a kernel": "kernel",
}
"""What a frozen axis is to a person, by the reason that froze it."""


def _place(weights: tuple[WeightUse, ...], role: str) -> str:
    """The block that most of the weights stand in, or the module that makes the units."""
    names = [use.parameter for use in weights]
    if role in {"heads", "query_heads", "head_width", "ffn", "tokens", "experts"}:
        layers: dict[str, int] = {}
        for name in names:
            if layer := layer_of(name):
                layers[layer] = layers.get(layer, 0) + 1
        if layers:
            return max(layers, key=lambda layer: layers[layer])  # of equals the first
    if role not in {"channels", "vocabulary"} and (shared := _common(names)):
        return ".".join(shared)
    return names[0].rsplit(".", 1)[0] if "." in names[0] else names[0]


def _common(names: list[str]) -> list[str]:
    """The dotted parts that all names begin with, which are those of the first and the last."""
    split = sorted([name.split(".") for name in names])
    same = [one == other for one, other in zip(split[0], split[-1], strict=False)]
    return split[0][: same.index(False) if False in same else len(same)]


def _without_weights(
    model: ir.Model, axes: AxisMap, roles: Roles, uses: dict[Atom, list[WeightUse]]
) -> list[Group]:
    """Groups for the axes that only exist at run time: tokens and batch."""
    found = [
        Group("tokens", "tokens", "", a, (), exact=True) for a in roles.tokens if a not in uses
    ]
    seen = {group.atom for group in found} | set(uses)
    for value in model.graph.inputs:
        if value.const_value is not None or value.shape is None:
            continue
        for atom in (a for expr in axes.of(value)[:1] for a in leaves(expr)):
            if atom not in seen and not isinstance(size((atom,)), int):
                seen.add(atom)
                found.append(Group("batch", "batch", "", atom, (), exact=True))
    return found


def _with_unique_names(groups: list[Group]) -> tuple[Group, ...]:
    """Give groups of one name a longer place, and a number where that does not help."""
    if len({group.name for group in groups}) == len(groups):
        return tuple(groups)
    for attempt in (_by_module, _by_number):
        counts = Counter(group.name for group in groups)
        seen: Counter[str] = Counter()
        renamed = []
        for group in groups:
            if counts[group.name] > 1:
                seen[group.name] += 1
                renamed.append(attempt(group, seen[group.name]))
            else:
                renamed.append(group)
        groups = renamed
    return tuple(groups)


def _by_module(group: Group, number: int) -> Group:
    del number
    if not group.weights or group.role == "residual":
        return group
    place = ".".join(_common([use.parameter.rsplit(".", 1)[0] for use in group.weights]))
    if len(place) <= len(group.layer):
        place = group.weights[0].parameter.rsplit(".", 1)[0]
    return _renamed(group, f"{group.name.partition(' of ')[0]} of {place}")


def _by_number(group: Group, number: int) -> Group:
    return group if number == 1 else _renamed(group, f"{group.name} ({number})")


def _renamed(group: Group, name: str) -> Group:
    return Group(name, group.role, group.layer, group.atom, group.weights, group.exact)


__all__ = ["Analysis", "Group", "WeightUse", "analyse", "analyse_prepared"]
