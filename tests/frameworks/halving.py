"""Half of everything that can go goes; what is left equals the model with the same units masked."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from secateur.export.onnx_file import save
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

Feeds = Mapping[str, NDArray]
BOUND = 1e-4
_INTEGERS = {ir.DataType.INT64, ir.DataType.BOOL}
HALF_BOUND = 2e-3
"""Of a file in half precision: both sides round, and sum in another order."""


@dataclass(frozen=True)
class Halved:
    """A model, what was found in it, and what is left of it."""

    model: ir.Model
    analysis: Analysis
    plan: Plan
    small: ir.Model

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Sizes of the groups that were cut, by role."""
        found: dict[str, list[int]] = {}
        for name in self.plan.keep:
            group = self.analysis.group(name)
            found.setdefault(group.role, []).append(group.size)
        return {role: sorted(sizes) for role, sizes in sorted(found.items())}

    @property
    def refusals(self) -> dict[str, str]:
        """Every group of two or more units that stays whole, with the first reason."""
        return {
            group.name: group.frozen[0].text if group.frozen else "a norm is taken over it"
            for group in self.analysis.groups
            if group.weights and group.size > 1 and group.name not in self.plan.keep
        }


def halve(model: ir.Model, *, inexact: bool = False) -> Halved:
    """Remove a random half of every group that can lose units, print what stays and why."""
    analysis = analyse(model)
    able = [g for g in analysis.groups if g.weights and not g.frozen and g.size > 1]
    rng = np.random.default_rng(0)
    keep = {
        group.name: tuple(
            np.sort(rng.permutation(group.size)[: max(group.size // 2, group.at_least)]).tolist()
        )
        for group in able
        if group.exact or inexact
    }
    plan = make_plan(analysis, keep, allow_inexact=inexact)
    halved = Halved(model, analysis, plan, remove(model, plan))
    for name, reason in halved.refusals.items():
        print(f"{name}: {reason}")  # noqa: T201
    return halved


def outputs_of(model: ir.Model, feeds: Feeds) -> list[NDArray]:
    """Check a model as a file and run it with ONNX Runtime, optimisation off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        onnx.checker.check_model(str(path))
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(feeds)))


def assert_equal_to_masked(halved: Halved, feeds: Feeds, bound: float = BOUND) -> None:
    """Something was cut, the result equals the masked model, and masking matters at all."""
    assert halved.plan.keep, halved.refusals
    assert weights(halved.small) < weights(halved.model)
    twin = mask(halved.model, halved.plan)
    effects = []
    runs = (outputs_of(model, feeds) for model in (halved.small, twin, halved.model))
    for small, masked, whole in zip(*runs, strict=True):
        assert small.shape == masked.shape
        if masked.dtype.kind != "f":
            assert np.array_equal(small, masked)
            continue
        scale = np.abs(masked).max()
        assert scale > 0
        assert np.abs(small - masked).max() <= bound * scale
        effects.append(np.abs(whole - masked).max() / scale)
    assert max(effects) > 10 * bound, "what went did nothing, so that its removal proves nothing"


def assert_nothing_is_silent(halved: Halved) -> None:
    """Each group is either cut or refused with a reason, and every weight of a cut shrinks."""
    for group in halved.analysis.groups:
        if group.weights and group.size > 1 and group.name not in halved.plan.keep:
            assert halved.refusals[group.name]
    named = {
        use.initialiser for name in halved.plan.keep for use in halved.analysis.group(name).weights
    }
    before, after = _shapes(halved.analysis.model), _shapes(halved.small)
    kept_whole = [n for n in named if before.get(n) == after.get(n)]
    assert not kept_whole, kept_whole


def weights(model: ir.Model) -> int:
    """Elements of all constants that are no shapes."""
    values = list(model.graph.initializers.values())
    tensors = [v.const_value for v in values if v.const_value is not None]
    tensors += [
        a.as_tensor()
        for node in model.graph
        if node.op_type == "Constant"
        for a in node.attributes.values()
        if a.type == ir.AttributeType.TENSOR
    ]
    return sum(int(t.size) for t in tensors if t.dtype not in _INTEGERS)


def ops(model: ir.Model) -> Counter[str]:
    """How often each op stands in the graph."""
    return Counter(node.op_type for node in model.graph)


def _shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
