"""What `secateur prune` removes, how much of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from secateur import cli

FFN = 32


@pytest.fixture
def prune(encoder_onnx, tmp_path, capsys):
    """Run the command; its plan and the smaller file, or what it told on its way out."""

    def run(*options: str, code: int = 0):
        output = tmp_path / "small.onnx"
        capsys.readouterr()
        assert cli.run(["prune", str(encoder_onnx), str(output), *options]) == code
        if code:
            assert not output.exists()
            return capsys.readouterr().err
        plan = json.loads(Path(output.with_suffix(".plan.json")).read_text())
        return plan, onnx.load(output)

    return run


def test_whole_blocks_go(prune, encoder_onnx):
    plan, small = prune("--what=blocks", "--ratio=0.34", "--importance=l1")
    assert len(plan["blocks"]) == 2
    assert len(small.graph.node) < len(onnx.load(encoder_onnx).graph.node)


def test_an_output_is_shortened_where_it_is_named(prune):
    _, small = prune("--what=residual", "--ratio=0.5", "--allow-output=vector")
    (output,) = small.graph.output
    assert output.type.tensor_type.shape.dim[1].dim_value == 8


def test_an_output_that_is_not_named_keeps_its_shape(prune):
    told = prune("--what=residual", "--ratio=0.5", code=2)
    assert "graph output" in told


def test_an_output_that_does_not_exist_is_refused_with_those_that_do(prune):
    told = prune("--what=ffn", "--allow-output=logits", code=2)
    assert "no output 'logits'" in told
    assert "vector" in told


@pytest.fixture
def data(tmp_path) -> Path:
    """Samples of the encoder's inputs, and gradients of a parameter that is not ranked alone."""
    rng, path = np.random.default_rng(0), tmp_path / "samples.npz"
    ids = rng.integers(0, 40, (12, 9))
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids))
    return path


def test_units_are_ranked_and_made_up_for_by_data(prune, data, encoder_onnx):
    options = ("--what=ffn", "--ratio=0.5", "--importance=wanda", f"--data={data}")
    plain, small = prune(*options)
    fitted_plan, fitted = prune(*options, "--compensate=least_squares")
    assert plain == fitted_plan
    assert plain != prune("--what=ffn", "--ratio=0.5", "--importance=l2")[0]
    inputs = dict(np.load(data))
    dense, cut, made_up = (
        outputs(path, inputs) for path in (onnx.load(encoder_onnx), small, fitted)
    )
    assert np.square(made_up - dense).sum() < np.square(cut - dense).sum()


def outputs(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=providers).run(
        None, inputs
    )[0]


def test_a_search_over_layers_tells_its_progress_and_goes_on(prune, data, tmp_path, capsys):
    journal = tmp_path / "search.jsonl"
    options = ("--what=ffn", "--ratio=0.5", "--scope=tyr", f"--data={data}", f"--journal={journal}")
    plan, _ = prune(*options)
    assert "round 3, generation 6" in capsys.readouterr().err
    lines = journal.read_text().splitlines()
    assert prune(*options)[0] == plan
    assert journal.read_text().splitlines() == lines  # nothing was evaluated again
    assert sum(len(units) for units in plan["keep"].values()) == 3 * FFN // 2


def test_shares_by_layer_reach_the_command(prune, data):
    plan, _ = prune("--what=ffn", "--ratio=0.5", "--scope=cfsp", f"--data={data}")
    assert len({len(units) for units in plan["keep"].values()}) > 1


def test_a_criterion_of_activations_without_data_is_refused(prune):
    assert "needs data" in prune("--what=ffn", "--importance=wanda", code=2)


def test_gradients_are_taken_from_a_file(prune, tmp_path, encoder_onnx):
    path = tmp_path / "gradients.npz"
    np.savez(path, nothing=np.zeros(1))
    told = prune("--what=ffn", "--importance=taylor", f"--arrays={path}", code=2)
    assert "was handed in" in told


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--data=nowhere.npz", "no such data"),
        ("--compensate=magic", "magic"),
        ("--arrays=nowhere.npz", "no NumPy arrays"),
    ],
)
def test_what_a_removal_is_decided_by_is_named_where_it_is_missing(prune, option, says):
    assert says in prune("--what=ffn", option, code=2)


def test_a_limit_spares_a_layer(prune):
    plan, _ = prune("--what=ffn", "--ratio=0.5", "--limit=*layers.0=0", "--limit=*layers.1=0.25")
    kept = {name.rpartition(".")[2]: len(units) for name, units in plan["keep"].items()}
    assert kept == {"0": FFN, "1": 24, "2": 16}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--limit=0.5", "no GROUP=SHARE"),
        ("--limit=nothing=0.5", "is for no group"),
        ("--limit=*=1.5", "1.5"),
        ("--limit=*=most", "most"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(prune, option, says):
    assert says in prune("--what=ffn", option, code=2)


def test_a_limit_given_twice_is_refused(prune):
    assert "given twice" in prune("--what=ffn", "--limit=*=0.1", "--limit=*=0.2", code=2)


def test_a_ratio_that_empties_a_layer_is_refused_and_can_be_had_with_a_floor(prune):
    assert "would remove all of heads" in prune("--what=heads", "--ratio=0.9", code=2)
    plan, _ = prune("--what=heads", "--ratio=0.9", "--at-least=1")
    assert {len(units) for units in plan["keep"].values()} == {1}


def test_a_ratio_that_removes_nothing_is_refused(prune):
    assert "nothing would be removed" in prune("--what=heads", "--ratio=0.05", code=2)


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "prod", "first"])
def test_all_layers_are_ranked_together_by_any_aggregate(prune, aggregate):
    options = ("--what=ffn", "--ratio=0.25", "--scope=global", "--round-to=8")
    plan, _ = prune(*options, f"--aggregate={aggregate}", "--normalise=max")
    sizes = [len(units) for units in plan["keep"].values()]
    assert all(size % 8 == 0 and size > 0 for size in sizes)
    assert sum(sizes) < 3 * FFN


def test_a_plan_whose_group_stands_twice_is_refused(prune, tmp_path):
    path = tmp_path / "twice.json"
    path.write_text('{"schema": 1, "keep": {"a": [0], "a": [1]}}')
    assert "'a' stands twice" in prune(f"--plan={path}", code=2)
