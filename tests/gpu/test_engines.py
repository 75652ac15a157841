"""Engines on a real device: equal to the goldens, whatever feature runs them."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.runtime.backend import BACKENDS, Profile, ShapeRange
from secateur.runtime.build import BuildOptions, build_target
from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.goldens import read_goldens
from secateur.runtime.parity import check_goldens
from secateur.runtime.session import open_session

K = "encoder.layer.0.k"


def test_an_engine_agrees_with_the_goldens(built):
    path, target = built()
    result = check_goldens(path, target)
    assert result.passed, result.failures()


def test_graphs_and_reused_memory_change_no_number(built):
    path, target = built()
    bundle = open_bundle(path)
    engine = bundle.file(bundle.engine(target).file)
    cases = read_goldens(path / "goldens.npz")
    found = []
    for graphs in (0, 16):
        with BACKENDS[target](graphs=graphs).session(engine) as run:
            found.append([run(case.inputs)["y"] for case in (*cases, *cases, *cases)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_another_budget_is_not_answered_from_an_old_graph(built, tokens):
    path, target = built()
    with open_session(path, target) as run:
        sizes = [
            run({"x": tokens}, keep={"encoder.layer.0": k})["y"].shape[1]
            for k in (3, 3, 3, 5, 5, 5, 3)
        ]
    assert sizes == [3, 3, 3, 5, 5, 5, 3]


def test_threads_share_a_session(built, tokens):
    path, target = built()
    bundle = open_bundle(path)
    engine = bundle.file(bundle.engine(target).file)
    with BACKENDS[target](contexts=3).session(engine) as run:
        wanted = [run({"x": tokens, K: np.array([k])})["y"] for k in (2, 3, 4)]
        found = {}

        def call(place: int) -> None:
            found[place] = run({"x": tokens, K: np.array([place % 3 + 2])})["y"]

        threads = [threading.Thread(target=call, args=(place,)) for place in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(found[place], wanted[place % 3]) for place in range(9))


def test_the_profile_is_chosen_at_run_time(backend, bundle_path):
    large = Profile({"x": ShapeRange((8, 32, 8), (8, 32, 8), (16, 64, 8))})
    with revised_bundle(bundle_path) as draft:
        draft.manifest = replace(draft.manifest, spec=replace(draft.manifest.spec, more=(large,)))
        build_target(draft, backend, BuildOptions("disabled"))
    with open_session(bundle_path, backend) as run:
        for shape in ((1, 8, 8), (16, 64, 8), (2, 8, 8)):
            assert run({"x": np.zeros(shape, np.float32)})["y"].shape == (shape[0], 4, 8)
        with pytest.raises(BadInputError, match="no profile of the engine"):
            run({"x": np.zeros((5, 20, 8), np.float32)})


def test_tensors_in_cuda_memory_come_and_go_without_a_copy(built, tokens):
    torch = pytest.importorskip("torch")
    path, target = built()
    with open_session(path, target) as run:
        wanted = run({"x": tokens})["y"]
        found = run({"x": torch.from_numpy(tokens).cuda()})["y"]
    assert found.is_cuda
    assert np.array_equal(found.cpu().numpy(), wanted)


@pytest.mark.parametrize("damage", ["truncated", "random"])
def test_a_damaged_engine_is_refused_in_words(damage, built):
    path, target = built()
    bundle = open_bundle(path)
    content = bundle.file(bundle.engine(target).file).read_bytes()
    content = content[: len(content) // 2] if damage == "truncated" else bytes(4096)
    with (
        pytest.raises(BadInputError, match="cannot open the engine"),
        BACKENDS[target]().session(content),
    ):
        pass
