"""Coupled groups, their scores and their removal, against a co-author's PyTorch code.

The published code has a row per convolution, linear and batch-norm *weight* slice, none for
biases, statistics and depthwise kernels; which rows there are is said here, everything else is
the product's. Taylor and SNIP take the gradients of the case, by parameter name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from secateur.calibration.importance import gradients
from secateur.calibration.importance.aggregation import aggregate, normalise
from secateur.calibration.importance.unit_weights import rows
from secateur.calibration.statistics.handed_in import HandedIn
from secateur.calibration.units import units
from secateur.export.onnx_file import from_onnx
from secateur.graph_passes.groups import Analysis, Group, WeightUse, analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

Unit = frozenset[tuple[str, int, tuple[int, ...]]]
"""What goes with one unit: (parameter, axis, positions) of every slice."""

_REDUCTIONS = ("sum", "mean", "max", "first")
_NORMALISERS = ("None", "sum", "mean", "max")
_POWERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {1: np.abs, 2: np.square}


class Member(NamedTuple):
    """One layer of a published group: which of its channels, and on which side."""

    layer: str
    handler: str
    channels: list[int]

    @property
    def axis(self) -> int:
        """Axis of the weight; a depthwise kernel has one input channel, so it has no side."""
        inner = self.handler.endswith("in_channels") and "depthwise" not in self.handler
        return 1 if inner else 0

    @property
    def is_scored(self) -> bool:
        """Whether the published code has a row for it."""
        return "depthwise" not in self.handler

    def vectors(self) -> tuple[str, ...]:
        """Parameters besides the weight that have one number per output channel."""
        return () if self.axis else ("bias", "running_mean", "running_var")


class Match(NamedTuple):
    """A published group and ours: ``order[j]`` is our unit for the published unit j."""

    members: list[Member]
    group: Group
    order: np.ndarray


def check(case) -> None:
    """Hold groups, magnitude scores, chosen units, pruned weights and outputs to the case."""
    model = from_onnx(case.path.with_suffix(".onnx"))
    analysis = analyse(model)
    matches = _matches(analysis, case)
    _close(_run(model, case.arrays["x"]), case.arrays["y"], "the output of the whole network")
    for number, match in enumerate(matches):
        _check_scores(match, f"g{number}", case.arrays)
        _check_gradient_scores(match, f"g{number}", model, case.arrays)
    keep = {
        match.group.name: _kept(match, f"g{number}", case.arrays)
        for number, match in enumerate(matches)
    }
    small = remove(model, make_plan(analysis, keep))
    _check_weights(small, case.arrays)
    _close(_run(small, case.arrays["x"]), case.arrays["y_pruned"], "the output after removal")


def _matches(analysis: Analysis, case) -> list[Match]:
    """Pair the published groups with ours; both sides must have the same units."""
    ours = {group.name: (group, _our_units(group)) for group in analysis.groups if group.removable}
    found = []
    for members in json.loads(case.text("groups_json")):
        published = [Member(*member) for member in members]
        wanted = _published_units(published, case.arrays)
        name = next((n for n, (_, have) in ours.items() if set(have) == set(wanted)), None)
        assert name is not None, f"no group of ours is {[m.layer for m in published]}"
        group, have = ours.pop(name)
        found.append(Match(published, group, np.array([have.index(unit) for unit in wanted])))
    assert not ours, f"groups that the published code does not have: {sorted(ours)}"
    return found


def _published_units(members: list[Member], arrays: dict[str, np.ndarray]) -> list[Unit]:
    size = len(members[0].channels)
    result: list[set[tuple[str, int, tuple[int, ...]]]] = [set() for _ in range(size)]
    for member in members:
        vectors = [v for v in member.vectors() if f"param__{member.layer}.{v}" in arrays]
        for unit, channels in zip(result, np.split(np.array(member.channels), size), strict=True):
            positions = tuple(sorted(channels.tolist()))
            unit.add((f"{member.layer}.weight", member.axis, positions))
            unit.update((f"{member.layer}.{vector}", 0, positions) for vector in vectors)
    return [frozenset(unit) for unit in result]


def _our_units(group: Group) -> list[Unit]:
    owners = [(use, units(use.expr, group.atom)) for use in group.weights]
    return [
        frozenset(
            (use.parameter, use.axis, tuple(np.flatnonzero(owner == unit).tolist()))
            for use, owner in owners
        )
        for unit in range(group.size)
    ]


def _check_scores(match: Match, prefix: str, arrays: dict[str, np.ndarray]) -> None:
    for power in (1, 2):
        found = _rows(match, power)
        for reduction in _REDUCTIONS:
            for normaliser in _NORMALISERS:
                name = f"{prefix}__mag_p{power}_{reduction}_{normaliser}"
                got = normalise(aggregate(found, reduction), normaliser.lower())
                _close(got, arrays[name], name)


def _check_gradient_scores(
    match: Match, prefix: str, model: ir.Model, arrays: dict[str, np.ndarray]
) -> None:
    given = HandedIn(
        model, {k.removeprefix("grad__"): v for k, v in arrays.items() if k.startswith("grad__")}
    )
    rules = {
        "taylor_mv0_sum_sum": (gradients.absolute_flow, "sum"),
        "taylor_mv1_sum_sum": (gradients.joint_flow, "sum"),
        "snip_absnorm_sum": (gradients.flow_length, "none"),
    }
    for name, (rule, normaliser) in rules.items():
        if f"{prefix}__{name}" not in arrays and prefix != "g0":
            continue  # the published SNIP fails where rows differ in length (flattened inputs)
        found = np.stack([rule(use, given, match.group) for use in _scored(match)])
        got = normalise(found[:, match.order].sum(0), normaliser)
        _close(got, arrays[f"{prefix}__{name}"], f"{prefix}__{name}")


def _rows(match: Match, power: int) -> np.ndarray:
    """(members, units): sum |w|^p of each weight slice, in the published order of both."""
    return rows(match.group, _scored(match), _POWERS[power])[:, match.order]


def _scored(match: Match) -> list[WeightUse]:
    uses = {(use.parameter, use.axis): use for use in match.group.weights}
    return [
        uses[f"{member.layer}.weight", member.axis]
        for member in match.members
        # the published code drops rows of another length (flattened inputs)
        if member.is_scored and len(member.channels) == len(match.order)
    ]


def _kept(match: Match, prefix: str, arrays: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Our units that stay when the lower half by L1 goes; it is the published half."""
    scores = _rows(match, 1).sum(0)
    lowest = np.argsort(scores, kind="stable")[: len(scores) // 2]
    root = np.array(match.members[0].channels)
    chosen, published = np.sort(root[lowest]), np.sort(arrays[f"{prefix}__pruned_idx"])
    np.testing.assert_array_equal(chosen, published, err_msg=f"{prefix}: the units that go")
    return tuple(sorted(np.delete(match.order, lowest).tolist()))


def _check_weights(small: ir.Model, arrays: dict[str, np.ndarray]) -> None:
    """Every parameter that is still in the graph, and every pruned one is."""
    pruned = {name.removeprefix("pruned__") for name in arrays if name.startswith("pruned__")}
    assert pruned <= set(small.graph.initializers)
    for name in sorted(pruned):
        tensor = small.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), arrays[f"pruned__{name}"], err_msg=name)


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def _close(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6, err_msg=what)
