"""Profiles as a recipe and the command line spell them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from pydantic import ValidationError
from tests.runtime.conftest import make_selecting

from secateur.errors import BadInputError
from secateur.recipe import Profile, Recipe, Traffic
from secateur.runtime.backend import ShapeRange
from secateur.workflow.building import shapes_from
from secateur.workflow.shipping import engine_spec

SITE = "encoder.layer.0"
ONE = {"min": "x:1x4x8", "opt": "x:1x8x8", "max": "x:4x16x8"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(make_selecting(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def recipe(**keys: object) -> Recipe:
    return Recipe.model_validate({"name": "a", "model": "m.onnx", **keys})


def test_a_recipe_takes_one_profile_or_a_list_of_them():
    assert recipe(profile=ONE).profile == recipe(profile=[ONE]).profile
    assert len(recipe(profile=[ONE, ONE]).profile) == 2
    assert recipe().profile == ()


def test_profile_and_traffic_exclude_each_other():
    with pytest.raises(ValidationError, match="both profile and traffic"):
        recipe(profile=ONE, traffic={"file": "t.jsonl"})


def test_a_profile_limits_what_a_site_keeps(model):
    spec = engine_spec(model, [Profile.model_validate(ONE | {"keep": {SITE: [1, 4, 8]}})])
    assert spec.shape_values == {f"{SITE}.k": ShapeRange((1,), (4,), (8,))}


@pytest.mark.parametrize(
    ("keep", "said"),
    [({"layer.9": [1, 4, 8]}, "'layer.9' keeps"), ({SITE: [0.2, 0.4, 0.5]}, "a number of tokens")],
)
def test_a_limit_for_no_site_or_in_another_unit_is_refused(keep, said, model):
    with pytest.raises(BadInputError, match=said):
        engine_spec(model, [Profile.model_validate(ONE | {"keep": keep})])


def test_a_limit_that_does_not_rise_is_refused():
    with pytest.raises(ValidationError, match="min <= opt <= max"):
        Profile.model_validate(ONE | {"keep": {SITE: [8, 4, 8]}})


def test_traffic_gives_profiles(model, tmp_path):
    file = tmp_path / "t.jsonl"
    lines = [f'{{"shapes": {{"x": [1, {n}, 8]}}, "values": {{}}}}' for n in (8, 8, 64)]
    file.write_text("\n".join(lines), encoding="utf-8")
    spec = engine_spec(model, Traffic(file=file, profiles=2))
    assert [one.shapes["x"].high for one in spec.all_profiles] == [(1, 8, 8), (1, 64, 8)]


def test_the_command_line_takes_several_profiles_or_traffic():
    ends = [ONE["min"]] * 2, [ONE["opt"]] * 2, [ONE["max"]] * 2
    assert shapes_from(*ends) == recipe(profile=[ONE, ONE]).profile
    found = shapes_from((), (), (), traffic=Path("t"), count=3)
    assert found == Traffic(file=Path("t"), profiles=3)


def test_shapes_that_do_not_pair_up_are_refused():
    with pytest.raises(BadInputError, match="smallest, usual and largest"):
        shapes_from([ONE["min"]], [], [ONE["max"]])
    with pytest.raises(BadInputError, match="both given"):
        shapes_from([ONE["min"]], [ONE["opt"]], [ONE["max"]], traffic=Path("t"))


def test_a_wide_range_is_told_of(model, caplog):
    wide = ONE | {"max": "x:4x512x8"}
    engine_spec(model, [Profile.model_validate(wide)])
    assert "two profiles" in caplog.text
