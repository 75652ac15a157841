"""The public functions, used as a user of Python would use them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.surface import small

import secateur as sc
from secateur.errors import BadInputError


@pytest.fixture(scope="module")
def net_and_model(encoder_onnx):
    """The module, and the graph that ``sc.from_torch`` made of it."""
    return small.encoder()[0], sc.from_onnx(encoder_onnx)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(1)
    mask = (np.arange(14) < np.array([[14], [6], [9]])).astype(np.int64)
    return [{"input_ids": rng.integers(0, 40, (3, 14)) * mask, "attention_mask": mask}]


@pytest.fixture(scope="module")
def bundle(net_and_model, batches, tmp_path_factory):
    _, dense = net_and_model
    heads = sc.plan(sc.analyse(dense), "heads", ratio=0.25, importance="output_norm", data=batches)
    model = sc.remove(dense, heads, data=batches)
    ffn = sc.plan(sc.analyse(model), "ffn", ratio=0.25, round_to=8, scope="global")
    model = sc.remove(model, ffn)
    model = sc.select(model, [sc.Select(site="layers.1", by="column_mean", keep=0.6)])
    return sc.build(
        model,
        ["onnxruntime"],
        {"batch": (1, 2, 8), "tokens": (4, 16, 32)},
        path=tmp_path_factory.mktemp("api") / "bundle",
        dense=dense,
    )


def test_a_model_goes_from_a_module_to_a_verified_bundle(net_and_model, bundle, batches):
    net, dense = net_and_model
    assert sc.parity(net, bundle, batches).passed
    assert sc.parity(dense, bundle, batches).passed


def test_a_session_takes_other_keep_ratios(bundle, batches):
    with sc.session(bundle) as run:
        kept = [run(batches[0], keep={"layers.1": share})["layers.1.kept"] for share in (0.9, 0.3)]
    assert [array.shape[1] for array in kept] == [13, 5]


def test_another_model_does_not_pass_for_the_reference(bundle, batches):
    import torch

    torch.manual_seed(5)
    assert not sc.parity(small.Encoder(layers=3).eval(), bundle, batches).passed


def test_a_removal_can_be_proved_again(net_and_model):
    _, dense = net_and_model
    plan = sc.plan(sc.analyse(dense), "ffn", ratio=0.5)
    proofs = sc.prove(dense, sc.remove(dense, plan), plan)
    assert proofs
    assert all(proof.passed for proof in proofs)


def test_a_wrong_removal_is_not_proved(net_and_model):
    _, dense = net_and_model
    groups = sc.analyse(dense)
    plan = sc.plan(groups, "heads", ratio=0.25)
    other = sc.plan(groups, "heads", ratio=0.25, importance="random")
    assert plan.keep != other.keep
    assert not all(proof.passed for proof in sc.prove(dense, sc.remove(dense, other), plan))


def test_a_bundle_without_its_dense_model_says_what_is_missing(net_and_model, batches, tmp_path):
    net, dense = net_and_model
    plan = sc.plan(sc.analyse(dense), "heads", ratio=0.25)
    ranges = {"batch": (1, 2, 8), "tokens": (4, 16, 32)}
    alone = sc.build(sc.remove(dense, plan), ["onnxruntime"], ranges, path=tmp_path / "b")
    with pytest.raises(BadInputError, match="does not hold its dense model"):
        sc.parity(net, alone, batches)


def test_bench_compares_with_the_dense_model_of_the_bundle(bundle, monkeypatch):
    from secateur.runtime import bench

    monkeypatch.setattr(bench.BenchOptions, "__init__", _quick(bench.BenchOptions.__init__))
    (row,) = sc.bench(bundle, batches=[1], tokens=16)
    assert row.flops_ratio > 1
    assert row.dense_ms > 0


def _quick(init):
    return lambda self, **options: init(self, **{"processes": 1, "pairs": 2, **options})
