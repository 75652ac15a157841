"""A selection is handed what the model does not take, such as how well words fit a token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.surface.small import encoder

import secateur as sc
from secateur import cli
from secateur.errors import BadInputError
from secateur.export.onnx_file import from_onnx
from secateur.workflow.data import Samples
from secateur.workflow.handed_in import set_beside

RECIPE = """\
schema: 1
name: handed
model: {source: "tests.surface.small:encoder"}
data: {npz: data.npz}
select:
  - site: layers.0
    by: reagent
    keep: 0.5
    signals: {importance: "input:12"}
targets: [onnxruntime]
parity: {task: embedding, batch: 3}
output: out/bundle
"""
NAME = "layers.0.importance"


def arrays() -> dict[str, np.ndarray]:
    _, inputs, _ = encoder()
    rng = np.random.default_rng(4)
    made = {"input_ids": np.tile(inputs["input_ids"].numpy(), (2, 1))}
    made["attention_mask"] = np.ones_like(made["input_ids"])
    return made | {NAME: rng.random((8, 12), dtype=np.float32)}


def written(folder: Path, data: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "data.npz", **data)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.yaml"


def test_a_recipe_with_a_signal_from_outside_is_compared_and_shipped(tmp_path: Path) -> None:
    data = arrays()
    assert cli.run(["deploy", str(written(tmp_path, data))]) == 0
    bundle = tmp_path / "out" / "bundle"
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    assert parity["onnxruntime"]["passed"]
    shipped = from_onnx(bundle / "model.onnx")
    assert NAME in {value.name for value in shipped.graph.inputs}
    assert NAME not in {v.name for v in from_onnx(bundle / "model.dense.onnx").graph.inputs}
    with sc.session(bundle) as run:
        kept = run({name: x[:4] for name, x in data.items()})["layers.0.kept"]
    for row, importance in zip(kept, data[NAME], strict=False):
        best = 1 + np.argsort(-importance[1:])[:5]
        assert row.tolist() == [0, *sorted(best.tolist())]


@pytest.mark.sweep
def test_data_without_what_a_selection_is_handed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = arrays()
    del data[NAME]
    assert cli.run(["deploy", str(written(tmp_path, data))]) != 0
    assert f"no array for input '{NAME}'" in " ".join(capsys.readouterr().err.split())


def test_an_array_of_another_size_is_refused() -> None:
    samples = Samples(({"x": np.zeros((1, 3)), NAME: np.zeros((1, 4))},), ("one",))
    with pytest.raises(BadInputError, match="which a selection is handed"):
        set_beside(samples, {NAME: (5,)}, where="data.npz")


def test_without_data_what_is_handed_in_is_made_up() -> None:
    samples = Samples(({"x": np.zeros((1, 3), np.float32)},), ("one",))
    made = set_beside(samples, {NAME: (5,)}, where="")
    assert made.whole(0)[NAME].shape == (1, 5)
    assert list(made.arrays[0]) == ["x"]
    assert made.sha256 != samples.sha256
    assert NAME in next(made.subset([0]).whole_batches(2))
