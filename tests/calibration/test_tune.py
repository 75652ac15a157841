"""``secateur tune`` on a small encoder: what it finds, resumes from, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secateur import cli
from secateur.errors import BadInputError
from secateur.export.onnx_file import save
from secateur.recipe import Selection
from secateur.workflow.deploy import Silent
from secateur.workflow.recipe_file import load_recipe
from secateur.workflow.schedules import recipe_lines
from secateur.workflow.sources import load_model
from secateur.workflow.tune import Tuned, TuneOptions, tune

RECIPE = """\
schema: 1
name: small
model: {source: small.onnx}
data: {npz: data.npz}
select:
  - {site: layers.0, by: column_mean, keep: 0.5}
  - {site: layers.1, by: column_mean, keep: 0.5}
parity: {task: embedding, batch: 4}
"""
OPTIONS = TuneOptions(by=("column_mean",), cut=("attention",), evaluations=12, rounds=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune")
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, (24, 20))
    mask = (np.arange(20) < rng.integers(5, 21, (24, 1))).astype(np.int64)
    np.savez(path / "data.npz", input_ids=ids * mask, attention_mask=mask)
    (path / "recipe.yaml").write_text(RECIPE)
    save(load_model("tests.surface.small:encoder").graph, path / "small.onnx")
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> Tuned:
    return tune(load_recipe(folder / "recipe.yaml"), OPTIONS, progress=Silent())


def test_the_finalists_agree_no_worse_than_the_recipe_on_the_samples_searched(found: Tuned) -> None:
    assert [one.name for one in found.raced][:2] == ["dense", "recipe"]
    dense = found.raced[0]
    assert dense.loss < 1e-6
    assert dense.nearest == 1.0
    assert found.best in found.raced
    assert all(one.held_out_ms > 0 for one in found.raced)
    assert found.best.loss <= found.raced[1].loss


def test_a_schedule_judged_without_building_it_is_the_one_that_is_built(
    found: Tuned, folder: Path
) -> None:
    """Loss of the graph with every site, at 1000 where none is, against the graph itself."""
    from secateur.workflow.data import load_samples
    from secateur.workflow.finalists import agreement
    from secateur.workflow.schedules import Schedules, Variant
    from secateur.workflow.selecting import select_tokens
    from secateur.workflow.tune import split_samples

    recipe = load_recipe(folder / "recipe.yaml")
    source = load_model(recipe.model.source)
    samples = load_samples(recipe.data, source)
    known, _ = split_samples(samples, source, source.outputs[0], OPTIONS)
    point = max(found.points, key=lambda p: p.loss)
    sites = tuple(f"layers.{i}" for i in range(len(point.genes) - 1))
    schedules = Schedules((Variant("column_mean", "attention"),), sites)
    built = select_tokens(source.graph, schedules.selections(point.genes))
    assert agreement(built, known).loss == pytest.approx(point.loss, rel=1e-4)


def test_schedules_that_move_the_nearest_samples_go_on_only_where_all_do(
    folder: Path,
) -> None:
    from secateur.workflow.data import load_samples
    from secateur.workflow.finalists import Heat, agreement, fastest
    from secateur.workflow.selecting import Select, select_tokens
    from secateur.workflow.tune import split_samples

    recipe = load_recipe(folder / "recipe.yaml")
    source = load_model(recipe.model.source)
    samples = load_samples(recipe.data, source)
    known, _ = split_samples(samples, source, source.outputs[0], OPTIONS)
    gentle, rough = ((Select("layers.0", "column_mean", keep),) for keep in (0.999, 0.1))
    models = [select_tokens(source.graph, one) for one in (gentle, rough)]
    assert agreement(models[0], known).nearest == 1.0
    assert agreement(models[1], known).nearest < 1.0
    both = [rough, gentle]
    assert fastest(source.graph, both, Heat(known, folder, 2, nearest=1.0)) == [gentle]
    assert fastest(source.graph, both, Heat(known, folder, 2)) == both
    assert fastest(source.graph, [rough], Heat(known, folder, 2, nearest=1.0)) == [rough]
    assert len(fastest(source.graph, both, Heat(known, folder, 1))) == 1


def test_the_schedule_found_is_a_recipe(found: Tuned, folder: Path) -> None:
    text = RECIPE[: RECIPE.index("select:")] + recipe_lines(found.best.selections)
    (folder / "again.yaml").write_text(text)
    selections = load_recipe(folder / "again.yaml").select
    assert len(selections) == len(found.best.selections)
    assert all(isinstance(one, Selection) for one in selections)


def test_the_command_writes_the_front_and_resumes_from_its_journal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(folder / "recipe.yaml"), "--by", "column_mean", "--cut", "block"]
    command += ["--evaluations", "4", "--journal", str(folder / "search.jsonl")]
    command += ["--plot", str(folder / "front.svg"), "--json", "--loss", "1.0"]
    assert cli.run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (folder / "front.svg").read_text().startswith("<?xml")
    assert cli.run(command) == 0
    assert json.loads(capsys.readouterr().out)["points"] == first["points"]


def test_a_latency_out_of_reach_names_the_range(folder: Path, capsys) -> None:
    command = ["tune", str(folder / "recipe.yaml"), "--by", "column_mean", "--cut", "block"]
    assert cli.run([*command, "--evaluations", "2", "--latency", "0.0001ms"]) == 2
    assert "no schedule is so fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("data: {npz: data.npz}", ""), "needs data"),
        (("{npz: data.npz}", "{npz: data.npz, limit: 10}"), "too few samples"),
        ((RECIPE[RECIPE.index("select:") : RECIPE.index("parity")], ""), "nothing to be no worse"),
    ],
)
def test_what_cannot_be_searched_is_refused(folder: Path, change, message: str) -> None:
    (folder / "bad.yaml").write_text(RECIPE.replace(*change))
    options = TuneOptions(by=("column_mean",), cut=("block",), evaluations=2, rounds=1)
    with pytest.raises(BadInputError, match=message):
        tune(load_recipe(folder / "bad.yaml"), options, progress=Silent())


def test_an_unknown_site_is_refused(folder: Path) -> None:
    options = TuneOptions(sites=("layers.9",), evaluations=2)
    with pytest.raises(BadInputError, match=r"no site 'layers\.9'"):
        tune(load_recipe(folder / "recipe.yaml"), options, progress=Silent())


@pytest.mark.parametrize("text", ["fast", "-3ms", "0s"])
def test_a_latency_that_is_none_is_refused(folder: Path, capsys, text: str) -> None:
    assert cli.run(["tune", str(folder / "recipe.yaml"), f"--latency={text}"]) == 2
    assert "no time" in capsys.readouterr().err
