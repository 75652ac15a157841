"""More tokens to keep than there are: refused where that is known, clamped where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.selectors.targets import PATCHES, vit
from tests.surface import small

from secateur import cli
from secateur.errors import BadInputError
from secateur.export.onnx_file import save
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.recipe import Profile
from secateur.workflow.select_checks import check_counts, largest_sizes
from secateur.workflow.selecting import Select, select_tokens, selection_rows

TOKENS = PATCHES + 1


@pytest.fixture(scope="module")
def encoder() -> ir.Model:
    """Any number of tokens."""
    net, inputs, dynamic = small.encoder()
    return from_torch(net, inputs, dynamic)


@pytest.mark.parametrize("budget", ["input", "constant"])
def test_more_tokens_than_the_model_has_are_refused(budget: str) -> None:
    wanted = Select("blocks.2", "key_norm", TOKENS + 1, budget=budget)
    with pytest.raises(BadInputError, match="more tokens than it ever has") as caught:
        select_tokens(vit().dense, [wanted])
    assert "blocks.2" in caught.value.where
    assert str(TOKENS + 1) in caught.value.got
    assert caught.value.wanted == f"at most {TOKENS} tokens"
    assert "share" in caught.value.next_step


def test_as_many_tokens_as_the_model_has_may_stay() -> None:
    model = select_tokens(vit().dense, [Select("blocks.2", "key_norm", TOKENS)])
    assert [row.keep for row in selection_rows(model)] == [f"{TOKENS} tokens"]


def test_a_number_of_tokens_that_only_an_input_tells_is_clamped(encoder: ir.Model) -> None:
    model = select_tokens(encoder, [Select("layers.0", "key_norm", 5000, budget="constant")])
    ids = np.arange(12)[None] % small.WORDS
    kept = run(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})["layers.0.kept"]
    assert kept.tolist() == [list(range(12))]


def test_the_largest_shapes_of_all_profiles_count(encoder: ir.Model) -> None:
    model = select_tokens(encoder, [Select("layers.0", "key_norm", 48)])
    short, long = (_profile(most) for most in (32, 64))
    assert largest_sizes(model, [short, long]) == {"batch": 4, "tokens": 64}
    check_counts(model, largest_sizes(model, [short, long]))
    with pytest.raises(BadInputError) as caught:
        check_counts(model, largest_sizes(model, [short]))
    assert caught.value.wanted == "at most 32 tokens, by the largest shapes"


def _profile(most: int) -> Profile:
    names = ("input_ids", "attention_mask")
    low, high = (dict.fromkeys(names, shape) for shape in ((1, 4), (4, most)))
    return Profile.model_validate({"min": low, "opt": low, "max": high})


def test_the_command_line_says_that_a_count_is_a_limit(
    encoder: ir.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(encoder, tmp_path / "in.onnx")
    rest = ("--site", "layers.0", "--by", "key_norm", "--keep", "5000")
    assert cli.run(["select", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), *rest]) == 0
    assert "up to 5000 tokens" in capsys.readouterr().out


def test_the_command_line_refuses_a_count_beyond_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(vit().dense, tmp_path / "in.onnx")
    rest = ("--site", "blocks.2", "--by", "key_norm", "--keep", "5000")
    assert cli.run(["select", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), *rest]) == 2
    told = capsys.readouterr()
    assert f"at most {TOKENS} tokens" in told.err
    assert "5000 tokens" not in told.out
