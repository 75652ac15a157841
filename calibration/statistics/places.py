"""Where a weight combines the units of a group: the activation and the weight that meet there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.units import units
from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, Expr, FoldUse, leaves
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Analysis, Group
from secateur.graph_passes.names import parameter_names
from secateur.weights import array_of

_CONVOLUTIONS = frozenset({"Conv"})


@dataclass(frozen=True, slots=True)
class Place:
    """One product of an activation and a weight, seen along the axis that both are summed over."""

    node: ir.Node
    value: str
    """Name of the activation."""
    slot: int
    """Input of the node that is the activation."""
    axis: int
    """Axis of the activation that is summed over."""
    expr: Expr
    """That axis in atoms."""
    weight_slot: int
    weight_axis: int
    """Axis of the weight that is summed over."""
    parameter: str
    """The user's name of the weight."""

    @property
    def initialiser(self) -> str:
        """Name of the weight in the graph."""
        return self.weight_value.name or ""

    @property
    def weight_value(self) -> ir.Value:
        """The weight as a value of the graph."""
        value = self.node.inputs[self.weight_slot]
        assert value is not None
        return value

    @property
    def kernel(self) -> tuple[int, ...]:
        """Extent of a convolution's kernel; () for other ops."""
        if self.node.op_type not in _CONVOLUTIONS:
            return ()
        tensor = constant_tensor(self.weight_value)
        assert tensor is not None
        return tuple(tensor.shape.numpy()[2:])

    def matrix(self) -> NDArray[np.float64]:
        """The weight as (out, in), float64; in a convolution every column is a kernel position.

        Columns follow the activation's axis, each with its kernel positions beside one another.
        """
        tensor = constant_tensor(self.weight_value)
        assert tensor is not None
        array = np.moveaxis(np.asarray(array_of(tensor), dtype=np.float64), self.weight_axis, -1)
        if not self.kernel:
            return array.reshape(-1, array.shape[-1])
        rows = np.moveaxis(array, -1, 1)  # (out, in, *kernel)
        return rows.reshape(rows.shape[0], -1)

    def owners(self, atom: Atom) -> NDArray[np.int64]:
        """Unit of ``atom`` that each column of ``matrix()`` belongs to, -1 for none."""
        owners = units(self.expr, atom)
        return np.repeat(owners, int(np.prod(self.kernel, dtype=np.int64)))


def all_places(analysis: Analysis) -> tuple[Place, ...]:
    """Every product of an activation and a weight, in graph order."""
    names = parameter_names(analysis.model)
    found = (_place(analysis, fold, names) for fold in analysis.axes.folds)
    return tuple(place for place in found if place is not None)


def places_of(group: Group, known: Sequence[Place]) -> tuple[Place, ...]:
    """Those of the known products in which a weight sums over the units of a group.

    Raises:
        PreconditionError: there is none, as for the width that queries and keys share.
    """
    found = tuple(place for place in known if group.atom in leaves(place.expr))
    if not found:
        raise PreconditionError(
            f"no weight reads the output of {group.name}",
            next_step="rank by weights: l1, l2",
        )
    return found


def _place(analysis: Analysis, fold: FoldUse, names: dict[str, str]) -> Place | None:
    inputs = [port for port in fold.ports if port.slot >= 0]
    weights = [port for port in inputs if _is_weight(fold.node.inputs[port.slot])]
    others = [port for port in inputs if not _is_weight(fold.node.inputs[port.slot])]
    if not weights or not others or fold.neutral is None:
        return None
    weight, other = weights[0], others[0]
    value, held = fold.node.inputs[other.slot], fold.node.inputs[weight.slot]
    assert value is not None
    assert held is not None
    return Place(
        node=fold.node,
        value=value.name or "",
        slot=other.slot,
        axis=other.axis,
        expr=analysis.axes.expr(fold.node, other),
        weight_slot=weight.slot,
        weight_axis=weight.axis,
        parameter=names.get(held.name or "", held.name or ""),
    )


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and constant_tensor(value) is not None


__all__ = ["Place", "all_places", "places_of"]
