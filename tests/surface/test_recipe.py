"""A recipe that cannot be used says which key, on which line, and what would be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.errors import BadInputError
from secateur.recipe import Recipe, Selection, json_schema, parse_shapes
from secateur.workflow.recipe_file import load_recipe
from secateur.workflow.schedules import selects

GOOD = """\
name: small
model: model.onnx
remove:
  - what: heads
    ratio: 0.25
select:
  - site: encoder.layer.1
    keep: 0.6
"""


def _write(folder: Path, text: str) -> Path:
    (folder / "model.onnx").write_bytes(b"")
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _refusal(folder: Path, text: str) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        load_recipe(_write(folder, text))
    return caught.value


def test_a_good_recipe_is_read_and_its_paths_are_relative_to_its_folder(tmp_path):
    recipe = load_recipe(_write(tmp_path, GOOD))
    assert recipe.model.source == str(tmp_path.resolve() / "model.onnx")
    assert recipe.output == tmp_path.resolve() / "build" / "small"
    assert recipe.remove[0].ratio == 0.25


def test_an_unknown_key_names_the_nearest_valid_one_and_its_line(tmp_path):
    error = _refusal(tmp_path, GOOD.replace("    ratio:", "    ratoi:"))
    assert "ratoi" in str(error)
    found = _refusal(tmp_path, GOOD + "    kepp: 0.5\n")
    assert found.what == "unknown key 'kepp'"
    assert found.where.endswith("line 9, select[0].kepp")
    assert found.next_step == "did you mean 'keep'?"
    assert "protected" in found.wanted


def test_an_unknown_key_at_the_top_names_the_nearest_valid_one(tmp_path):
    found = _refusal(tmp_path, GOOD + "target: [onnxruntime]\n")
    assert found.next_step == "did you mean 'targets'?"
    assert "line 9" in found.where


@pytest.mark.parametrize("ratio", ["0", "1", "1.0", "-0.1", "25", ".nan"])
def test_a_ratio_outside_0_to_1_is_refused_by_line(tmp_path, ratio):
    found = _refusal(tmp_path, GOOD.replace("0.25", ratio))
    assert "line 5, remove[0].ratio" in found.where
    assert "ratio" in found.what


@pytest.mark.parametrize("keep", ["0", "1.0", "-0.5", "1.5", "true", "lots"])
def test_keep_is_a_share_or_a_whole_number(tmp_path, keep):
    found = _refusal(tmp_path, GOOD.replace("0.6", keep))
    assert "line 8, select[0].keep" in found.where
    assert "whole number of tokens" in found.what


def test_keep_as_a_share_is_counted_in_permille():
    share, count = Selection(site="a", keep=0.6), Selection(site="a", keep=64)
    assert (share.is_share, share.amount) == (True, 600)
    assert (count.is_share, count.amount) == (False, 64)


@pytest.mark.parametrize(("keep", "kind", "default"), [(0.6, "permille", 600), (64, "count", 64)])
def test_a_share_and_a_count_reach_the_graph_as_such(keep, kind, default):
    (wanted,) = selects([Selection(site="a", keep=keep)])
    assert (wanted.amount.kind, wanted.amount.default) == (kind, default)


def test_a_missing_key_is_named(tmp_path):
    found = _refusal(tmp_path, GOOD.replace("    ratio: 0.25\n", ""))
    assert found.what == "the key 'ratio' is missing"
    assert "line 4, remove[0].ratio" in found.where


def test_several_mistakes_are_listed_together(tmp_path):
    found = _refusal(tmp_path, GOOD.replace("0.25", "2").replace("0.6", "0"))
    assert found.what == "2 mistakes in the recipe"
    assert "line 5" in found.got
    assert "line 8" in found.got


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("    importance: l3", "remove[0].importance"),
        ("    by: clas_row", "select[0].by"),
        ("targets: [onnxruntim]", "targets[0]"),
        ("targets: ['rtx:sm87']", "targets[0]"),
    ],
)
def test_an_unknown_method_or_target_names_the_known_ones(tmp_path, line, where):
    text = GOOD.replace("    ratio: 0.25", f"    ratio: 0.25\n{line}")
    found = _refusal(tmp_path, text if "importance" in line else GOOD + line + "\n")
    assert where in found.where
    assert found.what.startswith("unknown ")
    assert found.wanted.startswith("one of ")


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(BadInputError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_missing_model_file_is_named_with_its_line(tmp_path):
    found = _refusal(tmp_path, GOOD.replace("model.onnx", "./other.onnx"))
    assert found.what == "no such model file"
    assert "line 2" in found.where


@pytest.mark.parametrize(
    "key", ["texts: none.txt", "images: none", "npz: none.npz", "loader: 'none.py:load'"]
)
def test_a_missing_data_file_is_named(tmp_path, key):
    found = _refusal(tmp_path, GOOD + f"data:\n  {key}\n")
    assert found.what.startswith("no such ")
    assert "line 10, data." in found.where


def test_broken_yaml_is_named_by_line(tmp_path):
    found = _refusal(tmp_path, "name: [small\nmodel: x\n")
    assert found.what == "the recipe is not valid YAML"
    assert "line 2" in found.where


def test_a_key_given_twice_is_refused(tmp_path):
    found = _refusal(tmp_path, GOOD + "name: other\n")
    assert "given twice" in found.what
    assert "line 9" in found.where


def test_yaml_tags_run_nothing(tmp_path):
    found = _refusal(tmp_path, GOOD + "targets: !!python/object/apply:os.getcwd []\n")
    assert found.what == "the recipe is not valid YAML"


def test_a_recipe_that_is_no_mapping_is_refused(tmp_path):
    assert "mapping" in _refusal(tmp_path, "- name: x\n").what


def test_a_plan_and_a_removal_exclude_each_other(tmp_path):
    assert "both plan and remove" in _refusal(tmp_path, GOOD + "plan: plan.json\n").what


def test_a_site_may_be_named_once(tmp_path):
    repeated = "  - site: encoder.layer.1\n    keep: 0.5\n"
    assert "twice" in _refusal(tmp_path, GOOD + repeated).what


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("{min: 'x:1x16', opt: 'x:1x8', max: 'x:1x32'}", "min <= opt <= max"),
        ("{min: 'x:1x16', opt: 'y:1x16', max: 'x:1x32'}", "same inputs"),
        ("{min: 'x:1x16', opt: 'x:16', max: 'x:1x32'}", "ranks"),
        ("{min: 'x=1x16', opt: 'x:1x16', max: 'x:1x32'}", "name:1x16"),
    ],
)
def test_a_profile_that_is_not_ordered_is_refused(tmp_path, profile, message):
    found = _refusal(tmp_path, GOOD + f"profile: {profile}\n")
    assert message in str(found)
    assert "line 9" in found.where


def test_shapes_are_read_as_trtexec_writes_them():
    assert parse_shapes("ids:1x16, mask:1x16") == {"ids": (1, 16), "mask": (1, 16)}


def test_the_schema_knows_every_key_of_the_recipe():
    schema = json_schema()
    assert "schema" in schema["properties"]
    assert set(schema["$defs"]["Removal"]["properties"]) >= {"what", "ratio", "round_to"}
    json.dumps(schema)


def test_the_demo_recipe_is_valid():
    root = Path(__file__).resolve().parents[2]
    recipe = load_recipe(root / "examples/minilm/recipe.yaml")
    assert recipe.output == root / "build/demo/minilm" or recipe.output.resolve() == (
        root / "build/demo/minilm"
    )
    assert isinstance(recipe, Recipe)
