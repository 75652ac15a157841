"""Several profiles: made, checked, built, chosen from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.runtime.conftest import make_dense, make_selecting

from secateur.errors import BadInputError
from secateur.runtime.__main__ import main
from secateur.runtime.backend import EngineSpec, Profile, ShapeRange
from secateur.runtime.build import forced_spec
from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.checks import check_build
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.profile_choice import advice, choose_profile, sizes_of
from secateur.runtime.profiles import complete_spec
from secateur.runtime.session import open_session
from secateur.runtime.sites import sites_from_metadata
from secateur.runtime.targets import Target
from secateur.runtime.traffic import (
    Request,
    profiles_from_traffic,
    read_traffic,
    record_request,
)

K = "encoder.layer.0.k"
RTX = Target("rtx", ("sm86",))
SMALL = Profile({"x": ShapeRange((1, 4, 8), (1, 8, 8), (1, 16, 8))})
LARGE = Profile({"x": ShapeRange((2, 16, 8), (8, 32, 8), (16, 64, 8))})
TWO = EngineSpec(profiles=SMALL.shapes, more=(LARGE,))


def with_k(profile: Profile, *ends: int) -> Profile:
    return replace(profile, values={K: ShapeRange(*((end,) for end in ends))})


def check(path: Path, spec: EngineSpec) -> EngineSpec:
    outline = read_outline(path)
    complete = complete_spec(outline, spec, RTX)
    check_build(outline, sites_from_metadata(outline.metadata), complete, RTX)
    return complete


def test_profiles_survive_json():
    spec = replace(TWO, more=(with_k(LARGE, 1, 2, 3),))
    assert EngineSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_each_undoes_with_each():
    assert TWO.with_each(TWO.each()) == TWO
    assert [one.profiles for one in TWO.each()] == [SMALL.shapes, LARGE.shapes]
    assert TWO.all_profiles == (SMALL, LARGE)


def test_a_specification_of_one_profile_is_read_without_the_new_key():
    record = EngineSpec(profiles=SMALL.shapes).to_json()
    del record["more_profiles"]
    assert EngineSpec.from_json(record).all_profiles == (SMALL,)


def test_every_profile_gets_the_budget_range_that_follows_from_it(selecting_path):
    complete = check(selecting_path, TWO)
    assert complete.shape_values[K] == ShapeRange((1,), (4,), (16,))
    assert complete.more[0].values[K] == ShapeRange((1,), (4,), (64,))


def test_every_profile_of_the_forced_twin_has_its_bias(forced_path):
    found = forced_spec(forced_path, TWO)
    biases = [one.profiles["encoder.layer.0.score_bias"] for one in found.each()]
    assert biases == [
        ShapeRange((1, 4), (1, 8), (1, 16)),
        ShapeRange((2, 16), (8, 32), (16, 64)),
    ]


WRONG = {
    "not ordered": ({"x": ShapeRange((2, 16, 8), (1, 32, 8), (16, 64, 8))}, "not ordered"),
    "another width": ({"x": ShapeRange((1, 4, 9), (1, 4, 9), (1, 4, 9))}, "does not fit the model"),
    "no range": ({}, "has a dynamic shape and no range"),
    "too many elements": (
        {"x": ShapeRange((1, 4, 8), (1, 8, 8), (1 << 20, 1 << 10, 8))}, "too many elements"
    ),
    "another name": ({**LARGE.shapes, "q": ShapeRange((1,), (1,), (1,))}, "no such input"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_later_profile_is_said_with_its_number(case, dense_path):
    shapes, said = WRONG[case]
    with pytest.raises(BadInputError, match=said) as caught:
        check(dense_path, replace(TWO, more=(LARGE, Profile(shapes))))
    assert "profile 2 of 3" in caught.value.where


def test_of_one_profile_no_number_is_said(dense_path):
    with pytest.raises(BadInputError) as caught:
        check(dense_path, EngineSpec(profiles={}))
    assert "profile 0" not in caught.value.where


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((1, 40, 40), "more tokens than it has"),
        ((0, 4, 16), "cannot be"),
        ((1, 4, 4000), "more tokens than it has"),
    ],
)
def test_a_range_of_k_is_checked_in_every_profile(ends, said, selecting_path):
    with pytest.raises(BadInputError, match=said) as caught:
        check(selecting_path, replace(TWO, more=(with_k(LARGE, *ends),)))
    assert "profile 1 of 2" in caught.value.where


def test_a_share_above_all_is_no_range(tmp_path):
    model = make_selecting()
    record = json.loads(model.metadata_props[0].value)
    record[0]["budget"] = {"kind": "permille", "input": K, "default": 600}
    model.metadata_props[0].value = json.dumps(record)
    onnx.save(model, tmp_path / "m.onnx")
    spec = EngineSpec().with_each([EngineSpec(SMALL.shapes, with_k(SMALL, 1, 600, 1001).values)])
    with pytest.raises(BadInputError, match="cannot be"):
        check(tmp_path / "m.onnx", spec)


def test_too_many_axes_are_refused(tmp_path):
    shape = ["n", *[1] * 8]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="too many axes"):
        check(tmp_path / "m.onnx", EngineSpec(profiles={"x": ShapeRange.fixed(*[1] * 9)}))


# --- the choice -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "place"),
    [((1, 4, 8), 0), ((1, 16, 8), 0), ((2, 16, 8), 1), ((16, 64, 8), 1)],
)
def test_the_profile_that_takes_the_shapes_is_chosen(shape, place):
    assert choose_profile(TWO.all_profiles, {"x": shape}, {}) == place


def test_of_two_that_fit_the_one_tuned_nearer_is_chosen():
    wide = Profile({"x": ShapeRange((1, 1), (1, 64), (8, 128))})
    narrow = Profile({"x": ShapeRange((1, 1), (1, 8), (8, 128))})
    assert choose_profile([wide, narrow], {"x": (1, 9)}, {}) == 1
    assert choose_profile([wide, narrow], {"x": (1, 60)}, {}) == 0


def test_budgets_decide_too():
    profiles = [with_k(SMALL, 1, 2, 4), with_k(SMALL, 5, 6, 16)]
    assert choose_profile(profiles, {"x": (1, 16, 8)}, {K: (9,)}) == 1
    arrays = {"x": np.zeros((1, 16, 8), np.float32), K: np.array([3])}
    assert sizes_of(arrays, profiles) == ({"x": (1, 16, 8)}, {K: (3,)})
    assert choose_profile(profiles, *sizes_of(arrays, profiles)) == 0


def test_where_none_fits_each_says_why():
    with pytest.raises(BadInputError, match="no profile of the engine takes") as caught:
        choose_profile([with_k(SMALL, 1, 2, 4), LARGE], {"x": (1, 17, 8)}, {K: (2,)})
    assert "profile 0: x [1, 17, 8] is not in [1, 4, 8]..[1, 16, 8]" in caught.value.where
    assert "profile 1: x [1, 17, 8]" in caught.value.where
    with pytest.raises(BadInputError, match=re.escape("value of " + K)):
        choose_profile([with_k(SMALL, 1, 2, 4)], {"x": (1, 16, 8)}, {K: (5,)})


def test_a_wide_range_is_advised_against_once():
    wide = ShapeRange((1, 4), (8, 128), (1, 512))
    (told,) = advice([Profile({"ids": wide, "mask": wide})])
    assert "4..512" in told
    assert "two profiles, 4..45 and 45..512" in told
    assert not advice([SMALL, LARGE])


# --- from traffic ---------------------------------------------------------------------------


def requests(*shapes: tuple[int, int]) -> list[Request]:
    return [Request({"x": (*shape, 8)}, {K: (shape[1] // 2,)}) for shape in shapes]


def test_one_profile_takes_all_requests_and_is_tuned_for_the_most_frequent():
    (found,) = profiles_from_traffic(requests((1, 8), (1, 8), (4, 20), (2, 6)), 1)
    assert found.shapes == {"x": ShapeRange((1, 6, 8), (1, 8, 8), (4, 20, 8))}
    assert found.values == {K: ShapeRange((3,), (4,), (10,))}


def test_profiles_divide_the_requests_where_they_differ_most():
    seen = requests(*[(1, 8)] * 5, *[(1, 12)] * 2, *[(1, 400)] * 3, (1, 512))
    small, large = profiles_from_traffic(seen, 2)
    assert small.shapes == {"x": ShapeRange((1, 8, 8), (1, 8, 8), (1, 12, 8))}
    assert large.shapes == {"x": ShapeRange((1, 400, 8), (1, 400, 8), (1, 512, 8))}
    for request in seen:
        assert choose_profile([small, large], request.shapes, request.values) in {0, 1}


def test_no_more_profiles_are_made_than_the_requests_differ():
    assert len(profiles_from_traffic(requests((1, 8), (1, 8)), 4)) == 1
    assert len(profiles_from_traffic(requests((1, 8), (2, 8), (4, 8)), 16)) == 3


def test_traffic_is_recorded_by_a_session_and_built_from(proven_path, tmp_path, tokens):
    record = tmp_path / "traffic.jsonl"
    with open_session(proven_path, record=record) as run:
        run({"x": tokens}, keep={"encoder.layer.0": 3})
        run({"x": tokens[:1, :5]})
    assert read_traffic(record) == (
        Request({"x": (2, 6, 8)}, {K: (3,)}),
        Request({"x": (1, 5, 8)}, {K: (4,)}),
    )


BAD_TRAFFIC = {
    "no file": (None, "cannot be read"),
    "empty": ("\n", "holds no request"),
    "no JSON": ('{"shapes": {"x": [1]}}\nfast\n', "is no request"),
    "no shapes": ('{"x": [1]}\n', "is no request"),
    "no numbers": ('{"shapes": {"x": ["a"]}}\n', "is no request"),
    "other inputs": ('{"shapes": {"x": [1]}}\n{"shapes": {"y": [1]}}\n', "same inputs"),
    "other axes": ('{"shapes": {"x": [1]}}\n{"shapes": {"x": [1, 2]}}\n', "same inputs"),
}


@pytest.mark.parametrize("case", BAD_TRAFFIC)
def test_traffic_that_is_none_is_refused(case, tmp_path):
    text, said = BAD_TRAFFIC[case]
    if text is not None:
        (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(BadInputError, match=said):
        profiles_from_traffic(read_traffic(tmp_path / "t.jsonl"), 1)


@pytest.mark.parametrize("count", [0, 17])
def test_a_strange_number_of_profiles_is_refused(count):
    with pytest.raises(BadInputError, match="number of profiles"):
        profiles_from_traffic(requests((1, 8)), count)


def test_a_record_is_appended_to(tmp_path):
    for size in (1, 2):
        record_request(tmp_path / "t", {"x": np.zeros(size), "k": np.array([size])}, ["k"])
    assert [r.values for r in read_traffic(tmp_path / "t")] == [{"k": (1,)}, {"k": (2,)}]


# --- the real builder -----------------------------------------------------------------------


def test_an_engine_is_built_with_every_profile(bundle_path):
    with revised_bundle(bundle_path) as draft:
        draft.manifest = replace(draft.manifest, spec=TWO)
    assert main(["build", str(bundle_path), "--target", "rtx:sm86"]) == 0
    bundle = open_bundle(bundle_path)
    record = json.loads(bundle.file(bundle.engine("rtx").record).read_text())
    assert record["profiles"]["x"] == [[1, 4, 8], [1, 8, 8], [1, 16, 8]]
    (more,) = record["more_profiles"]
    assert more["shapes"]["x"] == [[2, 16, 8], [8, 32, 8], [16, 64, 8]]
    assert more["values"] == {K: [[1], [4], [64]]}


def test_two_profiles_make_a_larger_engine_than_one(dense_path):
    from secateur.runtime.backends.tensorrt import TensorRt

    onnx.save(make_dense(), dense_path)
    sizes = [
        len(TensorRt("rtx").build(dense_path, replace(spec, compute_capabilities=("sm86",))))
        for spec in (EngineSpec(profiles=SMALL.shapes), TWO)
    ]
    assert sizes[1] > 1.5 * sizes[0], "the second profile reached the builder"
