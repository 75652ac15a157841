"""FLAP's four structures on a small encoder: a head costs 256 numbers there, a neuron 32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.parity import tiny

from secateur import cli
from secateur.calibration.allocation import Allocation
from secateur.calibration.flap_structures import Structured, shared_out, unit_cost
from secateur.calibration.planning import Ranking, plan, removable
from secateur.errors import BadInputError
from secateur.export.onnx_file import save
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.workflow.recipe_file import load_recipe

LAYERS = 3


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(tiny.exported())


@pytest.fixture(scope="module")
def groups(analysis: Analysis) -> tuple[Group, ...]:
    return (*removable(analysis, "heads"), *removable(analysis, "ffn"))


def rising(groups: tuple[Group, ...]) -> dict[str, np.ndarray]:
    """Every unit is better than the one before it, and every layer than the layer before."""
    starts = {"heads": 0.0, "ffn": 0.5}
    return {
        group.name: starts[group.role] + 100.0 * int(group.layer[-1]) + np.arange(group.size)
        for group in groups
    }


def gone(keep: dict[str, tuple[int, ...]], groups: tuple[Group, ...]) -> dict[str, list[int]]:
    """How many units go of each layer, by role."""
    return {
        role: [g.size - len(keep[g.name]) for g in groups if g.role == role]
        for role in ("heads", "ffn")
    }


def test_units_cost_what_their_matrices_hold(groups: tuple[Group, ...]) -> None:
    assert {unit_cost(g) for g in groups if g.role == "heads"} == {4 * 16 * 4}
    assert {unit_cost(g) for g in groups if g.role == "ffn"} == {2 * 16}


def test_ul_um_takes_the_same_share_of_every_layer_rounded_down(groups: tuple[Group, ...]) -> None:
    keep = shared_out(rising(groups), groups, Structured("UL-UM", 0.3))
    assert gone(keep, groups) == {"heads": [1] * LAYERS, "ffn": [7] * LAYERS}
    assert keep[groups[0].name] == (1, 2, 3)  # the lowest went


def test_ul_mm_takes_the_heads_it_is_told_and_neurons_for_the_rest(
    groups: tuple[Group, ...],
) -> None:
    keep = shared_out(rising(groups), groups, Structured("UL-MM", 0.25, remove_heads=4))
    # A quarter of a layer's 1792 numbers is 448, of which a head is 256: 192 are 6 neurons.
    assert gone(keep, groups) == {"heads": [1] * LAYERS, "ffn": [6] * LAYERS}


def test_al_mm_takes_the_weakest_of_all_layers(groups: tuple[Group, ...]) -> None:
    keep = shared_out(rising(groups), groups, Structured("AL-MM", 0.25, remove_heads=4))
    # 1344 of all 5376 numbers go, of which four heads are 1024: 320 are 10 neurons. Every layer
    # keeps its best head, so that the second layer has to give one.
    assert gone(keep, groups) == {"heads": [3, 1, 0], "ffn": [10, 0, 0]}


def test_al_am_ranks_heads_and_neurons_together_by_their_costs(groups: tuple[Group, ...]) -> None:
    keep = shared_out(rising(groups), groups, Structured("AL-AM", 0.1))
    # From below: head 0, neuron 0 and head 1 are 544 of 5376 numbers, nearest to a tenth (538);
    # the unit at the threshold, neuron 1, goes as well.
    assert gone(keep, groups) == {"heads": [2, 0, 0], "ffn": [2, 0, 0]}


@pytest.mark.parametrize(
    ("structure", "reach"), [("UL-MM", "from 0.286 to 0.696"), ("AL-MM", "from 0.381 to 0.792")]
)
def test_a_ratio_that_the_heads_alone_exceed_names_what_can_be_met(
    groups: tuple[Group, ...], structure: str, reach: str
) -> None:
    with pytest.raises(BadInputError, match="no number of neurons meets") as caught:
        shared_out(rising(groups), groups, Structured(structure, 0.25, remove_heads=8))
    assert f"a ratio {reach}" in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"structure": "AL"}, "unknown structure"),
        ({"structure": "AL-AM", "remove_heads": 2}, "UL-MM or AL-MM"),
    ],
)
def test_structures_that_make_no_sense_are_refused(wanted: dict, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Structured(**wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "flap", "round_to": 8}, "no rounding"),
        ({"scope": "local", "remove_heads": 1}, "for scope flap"),
    ],
)
def test_a_structure_goes_with_its_own_scope_alone(options: dict, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Allocation(0.25, **options)


def test_neurons_alone_have_no_heads_to_count(analysis: Analysis) -> None:
    allocation = Allocation(0.25, scope="flap", structure="AL-MM", remove_heads=2)
    with pytest.raises(BadInputError, match="needs heads and neurons"):
        plan(analysis, "ffn", allocation, Ranking("flap", [tiny.BATCH]))


@pytest.mark.parametrize("structure", ["UL-UM", "UL-MM", "AL-MM", "AL-AM"])
def test_every_structure_is_an_option_of_prune(tmp_path: Path, structure: str) -> None:
    save(tiny.exported(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **tiny.BATCH)
    asked = ["--what", "heads_and_ffn", "--ratio", "0.3", "--importance", "flap"]
    asked += ["--scope", "flap", "--structure", structure, "--compensate", "bias"]
    asked += ["--remove-heads", "4"] if structure.endswith("MM") else []
    files = [str(tmp_path / "model.onnx"), str(tmp_path / "small.onnx")]
    assert cli.run(["prune", *files, *asked, "--data", str(tmp_path / "data.npz")]) == 0
    made = json.loads((tmp_path / "small.plan.json").read_text(encoding="utf-8"))
    assert len(made["keep"]) >= 2


def test_a_recipe_names_a_structure(tmp_path: Path) -> None:
    text = 'schema: 1\nname: small\nmodel: {source: "tests.surface.small:encoder"}\nremove:\n'
    line = "  - {what: heads_and_ffn, ratio: 0.3, importance: flap, scope: flap, structure: UL-UM}"
    (tmp_path / "recipe.yaml").write_text(f"{text}{line}\n", encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").remove[0].structure == "UL-UM"
    (tmp_path / "recipe.yaml").write_text(text + line.replace("UL-UM", "UL-XX") + "\n")
    with pytest.raises(BadInputError, match="structure"):
        load_recipe(tmp_path / "recipe.yaml")
