"""Random networks, cut at random: always equal to the masked dense network, or refused.

``SECATEUR_RANDOM_GRAPHS`` is how many (``make properties``: 5000); the number in a
failure is the seed, and ``python -m tests.laws.test_random_graphs SEED`` shows the network.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.laws.random_models import random_model

from secateur.errors import SecateurError
from secateur.graph_passes.blocks import find_blocks, select_blocks
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

_CHUNK = 25
_GRAPHS = int(os.environ.get("SECATEUR_RANDOM_GRAPHS", "200"))
_TOLERANCE = 1e-5
Outputs = list[NDArray]


@dataclass
class Outcome:
    """What became of one network."""

    cut: int = 0
    refused: str = ""
    error: float = 0.0


def run(model: onnx.ModelProto, feeds: dict[str, NDArray]) -> Outputs:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def run_in_doubles(model: onnx.ModelProto, feeds: dict[str, NDArray]) -> Outputs:
    """The same network in float64, on the reference evaluator of onnx."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for tensor in wide.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            continue
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in wide.graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == (
                "Cast",
                "to",
                onnx.TensorProto.FLOAT,
            ):
                attribute.i = onnx.TensorProto.DOUBLE
    wide_feeds = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in feeds.items()
    }
    return list(ReferenceEvaluator(wide).run(None, wide_feeds))


def feeds_of(model: onnx.ModelProto, seed: int) -> dict[str, NDArray]:
    rng = np.random.default_rng(seed)
    shapes = {p.key: [int(d) for d in p.value.split()] for p in model.metadata_props}
    feeds = {}
    for name in (value.name for value in model.graph.input):
        rows = shapes.get(f"rows.{name}")
        feeds[name] = (
            rng.integers(-rows[0], rows[0], shapes[name])  # negative ids count from the end
            if rows
            else rng.standard_normal(shapes[name]).astype(np.float32)
        )
    return feeds


def random_plan(model: ir.Model, random: Random) -> Plan | None:
    """Random units of random groups, sometimes a whole block; every fifth time what is
    only cut when asked for: the width under a norm, an axis of an output; and every other
    time what ids from outside read.
    """
    inexact, opened = random.random() < 0.2, random.random() < 0.2
    names = [str(value.name) for value in model.graph.outputs]
    outputs = random.sample(names, random.randint(1, len(names))) if opened else []
    rows = {k[5:]: int(v) for k, v in model.metadata_props.items() if k.startswith("rows.")}
    ids = {n: random.randrange(rows[n]) for n in rows if random.random() < 0.5}
    analysis = analyse(model, allow_outputs=outputs, allow_ids=ids)
    for group in analysis.groups:
        assert group.removable or group.frozen or not group.exact or not group.weights, group.name
    keep: dict[str, tuple[int, ...]] = {}
    for group in analysis.groups:
        fits = group.removable or (inexact and group.weights and not group.frozen)
        if fits and group.size > max(1, group.atom.at_least) and random.random() < 0.8:
            count = random.randint(max(1, group.atom.at_least), group.size - 1)
            kept = {*random.sample(range(group.size), count)}
            kept |= analysis.roles.vocabulary.get(group.atom, set())
            keep[group.name] = tuple(sorted(kept))
    blocks = [b.name for b in find_blocks(analysis.model)] if random.random() < 0.2 else []
    blocks = random.sample(blocks, min(1, len(blocks)))
    if not keep and not blocks:
        return None
    whole = [set(b.nodes) for b in select_blocks(analysis.model, blocks)] if blocks else []
    keep = {  # what lies in a block that goes whole cannot be cut as well
        name: units
        for name, units in keep.items()
        if not any({use.node for use in analysis.group(name).weights} < nodes for nodes in whole)
    }
    return make_plan(analysis, keep, allow_inexact=inexact, blocks=tuple(blocks))


def difference(got: Outputs, wanted: Outputs) -> float:
    errors = []
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape, f"{a.shape} against {b.shape}"
        assert np.isfinite(a).all(), "the cut network makes numbers that are not finite"
        assert np.isfinite(b).all(), "the masked network makes numbers that are not finite"
        scale = max(float(np.abs(b).max(initial=0.0)), 1e-6)
        errors.append(float(np.abs(a - b).max(initial=0.0)) / scale)
    return max(errors)


def fingerprint(model: ir.Model) -> str:
    return hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()


def judge(seed: int) -> Outcome:
    """Cut one network and hold it against its masked twin."""
    proto = random_model(seed)
    onnx.checker.check_model(proto)
    feeds = feeds_of(proto, seed)
    if not all(np.isfinite(array).all() for array in run(proto, feeds)):
        return Outcome(refused="the dense network overflows")
    model = ir.from_proto(proto)
    before = fingerprint(model)
    plan = random_plan(model, Random(seed))
    if plan is None:
        return Outcome()
    cut, refused = attempt(remove, model, plan)
    if cut is None:
        return Outcome(refused=refused)
    onnx.checker.check_model(cut, full_check=True)
    got = run(cut, feeds)
    masked, refused = attempt(mask, model, plan)
    if masked is None:  # some norms over cut units have no twin, nor dynamic outputs
        assert plan.allow_inexact or plan.allow_outputs, refused
        return Outcome(refused=refused)
    assert fingerprint(model) == before, "the input model was changed"
    error = difference(got, run(masked, feeds))
    if error > _TOLERANCE:  # a steep function of large numbers: rounding vanishes in doubles
        error = difference(run_in_doubles(cut, feeds), run_in_doubles(masked, feeds)) * 1e4
    return Outcome(cut=len(plan.keep) + len(plan.blocks), error=error)


def attempt(
    change: Callable[[ir.Model, Plan], ir.Model], model: ir.Model, plan: Plan
) -> tuple[onnx.ModelProto | None, str]:
    """The changed model, or the reason of the refusal."""
    try:
        return ir.to_proto(change(model, plan)), ""
    except SecateurError as error:
        return None, error.what


@pytest.mark.parametrize("start", range(0, _GRAPHS, _CHUNK))
def test_a_cut_network_equals_its_masked_twin(start: int) -> None:
    outcomes = Counter[str]()
    for seed in range(start, min(start + _CHUNK, _GRAPHS)):
        try:
            outcome = judge(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        assert outcome.error <= _TOLERANCE, f"seed {seed}: {outcome.error:.1e}"
        outcomes["refused" if outcome.refused else "cut" if outcome.cut else "nothing to cut"] += 1
    print(f"networks {start} to {start + _CHUNK}: {dict(outcomes)}")  # noqa: T201
    assert outcomes["cut"] > outcomes.total() // 3, "the networks leave too little to cut"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.write(f"{ir.from_proto(random_model(int(argument)))}\n")
        sys.stdout.write(f"{judge(int(argument))}\n")
