"""Keep the units that the loss would miss, by gradients that training hands in.

Source: ``taylor``: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019,
arXiv:1906.10771; ``snip``: Lee et al., ICLR 2019, arXiv:1810.02340; ``grasp``: Wang et al., Picking
Winning Tickets Before Training by Preserving Gradient Flow, ICLR 2020, arXiv:2002.07376;
``fisher``: Theis et al., Faster gaze prediction with dense networks and Fisher pruning,
arXiv:1801.05787. Slices are reduced as in johnrachwan123/Torch-Pruning at 777d5aa, a co-author's
code of Structurally Prune Anything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.unit_weights import counted, weight
from secateur.calibration.statistics.handed_in import HandedIn
from secateur.calibration.units import sum_of_units
from secateur.graph_passes.groups import Group, WeightUse

Rule = Callable[[WeightUse, HandedIn, Group], Scores]


@CRITERIA.register("taylor")
def taylor(group: Group, context: Context) -> Scores:
    """Sum of |weight * gradient| over the slices of a unit."""
    return _scored(group, context, absolute_flow)


@CRITERIA.register("taylor_joint")
def taylor_joint(group: Group, context: Context) -> Scores:
    """|Sum of weight * gradient| over each slice of a unit: parts may cancel."""
    return _scored(group, context, joint_flow)


@CRITERIA.register("taylor_samples")
def taylor_samples(group: Group, context: Context) -> Scores:
    """Mean over samples of the squared sum of weight * gradient, from ``NAME@samples``."""
    return _scored(group, context, _squared_by_sample)


@CRITERIA.register("snip")
def snip(group: Group, context: Context) -> Scores:
    """Length of weight * gradient over each slice of a unit, squared for a batch norm's scale."""
    return _scored(group, context, flow_length)


@CRITERIA.register("fisher")
def fisher(group: Group, context: Context) -> Scores:
    """Half of the squared weights times their Fisher information, from ``NAME@fisher``."""

    def rule(use: WeightUse, given: HandedIn, group: Group) -> Scores:
        return by_slice(np.square(weight(use)) * given.find(use, "fisher") / 2, use, group)

    return _scored(group, context, rule)


@CRITERIA.register("grasp")
def grasp(group: Group, context: Context) -> Scores:
    """Gradient flow that goes with a unit: the sum of weight * (Hessian * gradient).

    From ``NAME@hessian``. GraSP removes what has the largest -w * Hg; larger is kept here.
    """

    def rule(use: WeightUse, given: HandedIn, group: Group) -> Scores:
        return by_slice(weight(use) * given.find(use, "hessian"), use, group)

    return _scored(group, context, rule)


def by_slice(values: Scores, use: WeightUse, group: Group) -> Scores:
    """Sum numbers laid out like a weight over the slice of each unit; leading axes stay."""
    leading = values.ndim - len(use.shape)
    axis = use.axis + leading
    others = tuple(i for i in range(leading, values.ndim) if i != axis)
    return sum_of_units(values.sum(axis=others), use.expr, group.atom)


def _scored(group: Group, context: Context, rule: Rule) -> Scores:
    given = HandedIn(context.analysis.model, context.arrays)
    found = [rule(use, given, group) for use in counted(group, context)]
    return aggregate(np.stack(found), context.scoring.aggregate)


def absolute_flow(use: WeightUse, given: HandedIn, group: Group) -> Scores:
    """Sum of |weight * gradient| over the slice of each unit in one weight."""
    return by_slice(np.abs(_flow(use, given)), use, group)


def joint_flow(use: WeightUse, given: HandedIn, group: Group) -> Scores:
    """|Sum of weight * gradient| over the slice of each unit in one weight."""
    joint: Scores = np.abs(by_slice(_flow(use, given), use, group))
    return joint


def flow_length(use: WeightUse, given: HandedIn, group: Group) -> Scores:
    """Length of weight * gradient over the slice of each unit, squared for a batch norm."""
    squares = by_slice(np.square(_flow(use, given)), use, group)
    is_scale = use.node.op_type == "BatchNormalization"
    length: Scores = squares if is_scale else np.sqrt(squares)
    return length


def _flow(use: WeightUse, given: HandedIn) -> Scores:
    return weight(use) * given.find(use)


def _squared_by_sample(use: WeightUse, given: HandedIn, group: Group) -> Scores:
    flows = weight(use)[None] * given.find(use, "samples")
    mean: Scores = np.square(by_slice(flows, use, group)).mean(axis=0)
    return mean


__all__ = [
    "absolute_flow",
    "by_slice",
    "fisher",
    "flow_length",
    "grasp",
    "joint_flow",
    "snip",
    "taylor",
    "taylor_joint",
    "taylor_samples",
]
