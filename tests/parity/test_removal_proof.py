"""A removal is proved against the masked graph, and the PyTorch reference agrees."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.parity import tiny
from torch import nn

from secateur.errors import BadInputError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove
from secateur.models.reference import neutralised
from secateur.workflow.model_session import open_model
from secateur.workflow.removal_proof import random_like, removal_proof, removed_units

BATCH = tiny.BATCH


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return tiny.bert()


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny.exported()


@pytest.fixture(scope="module")
def plan(model: ir.Model) -> Plan:
    analysis = analyse(model)
    keep = {g.name: (0, 2, 3) for g in analysis.by_role("heads")}
    keep |= {g.name: tuple(range(1, g.size, 2)) for g in analysis.by_role("ffn")}
    assert len(keep) == 6
    return make_plan(analysis, keep)


def test_a_removal_equals_the_masked_original(model: ir.Model, plan: Plan) -> None:
    proofs = removal_proof(model, remove(model, plan), plan, [BATCH])
    assert {(p.inputs, p.output) for p in proofs} == {
        (kind, output) for kind in ("user", "random") for output in ("pooled", "hidden")
    }
    assert all(p.passed for p in proofs)


def test_a_removal_of_other_units_is_found(model: ir.Model, plan: Plan) -> None:
    name = next(name for name in plan.keep if "heads" in name)
    other = Plan({**plan.keep, name: (0, 1, 3)})
    assert not any(p.passed for p in removal_proof(model, remove(model, other), plan, [BATCH]))


def test_the_pytorch_reference_agrees_with_the_removal(
    net: nn.Module, model: ir.Model, plan: Plan
) -> None:
    """Two independent ways: sliced ONNX weights, and zeroed columns of the torch module."""
    units = removed_units(model, plan)
    assert {u.parameter for u in units} == {
        f"layers.{i}.{name}.weight" for i in range(3) for name in ("attention.o", "down")
    }
    with torch.no_grad():
        want = neutralised(net, units)(**{n: torch.from_numpy(x) for n, x in BATCH.items()})
    with open_model(remove(model, plan)) as run:
        got = run(BATCH)
    np.testing.assert_allclose(got["pooled"], want["pooled"], rtol=1e-4, atol=1e-5)


def test_random_inputs_keep_names_shapes_and_valid_values() -> None:
    drawn = random_like({**BATCH, "pixels": np.zeros((3, 3), np.float32)}, seed=0)
    assert {n: (x.shape, x.dtype) for n, x in drawn.items()} == {
        "input_ids": ((3, 12), np.dtype(np.int64)),
        "attention_mask": ((3, 12), np.dtype(np.int64)),
        "pixels": ((3, 3), np.dtype(np.float32)),
    }
    assert drawn["input_ids"].max() <= 35
    assert drawn["attention_mask"][:, 0].all()
    assert drawn["pixels"].any()


def test_a_proof_without_inputs_is_refused(model: ir.Model, plan: Plan) -> None:
    with pytest.raises(BadInputError, match="at least one batch"):
        removal_proof(model, remove(model, plan), plan, [])
