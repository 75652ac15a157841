"""What is refused before a build, and the ranges that follow from a profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from secateur.errors import BadInputError
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.budgets import default_shape_values, symbol_ranges
from secateur.runtime.checks import check_build
from secateur.runtime.expressions import evaluate
from secateur.runtime.onnx_outline import ModelOutline, read_outline
from secateur.runtime.profiles import complete_spec, profiles_from_dimensions
from secateur.runtime.signature import TensorInfo
from secateur.runtime.sites import Site, sites_from_metadata
from secateur.runtime.targets import Target, parse_target

RTX = Target("rtx", ("sm86",))
K = "encoder.layer.0.k"


@pytest.fixture
def outline(selecting_path: Path) -> ModelOutline:
    return read_outline(selecting_path)


def _spec(low: int = 4, usual: int = 8, high: int = 16, k: tuple[int, int, int] = (1, 4, 16)):
    ends = [(1, low, 8), (1, usual, 8), (4, high, 8)]
    return EngineSpec(
        profiles={"x": ShapeRange(*ends)}, shape_values={K: ShapeRange(*((n,) for n in k))}
    )


def _check(outline: ModelOutline, spec: EngineSpec, target: Target = RTX) -> None:
    check_build(outline, sites_from_metadata(outline.metadata), spec, target)


def test_a_good_specification_passes(outline: ModelOutline) -> None:
    _check(outline, _spec())


BAD = {
    "min above opt": (_spec(low=9), r"not ordered"),
    "opt above max": (_spec(usual=17), r"not ordered"),
    "k out of order": (_spec(k=(5, 4, 16)), r"not ordered"),
    "k above N at opt": (_spec(k=(1, 9, 16)), r"more tokens than it has"),
    "k above N at max": (_spec(k=(1, 4, 17)), r"more tokens than it has"),
    "k above 3840": (_spec(high=5000, k=(1, 4, 4000)), r"TopK takes at most 3840"),
    "no range for k": (replace(_spec(), shape_values={}), r"has no range of values"),
    "no range for x": (replace(_spec(), profiles={}), r"dynamic shape and no range"),
    "a range for nothing": (
        replace(_spec(), shape_values={"q": ShapeRange((1,), (1,), (1,))}),
        r"no such input",
    ),
    "another static size": (
        replace(_spec(), profiles={"x": ShapeRange((1, 4, 9), (1, 8, 9), (4, 16, 9))}),
        r"does not fit the model",
    ),
    "another rank": (replace(_spec(), profiles={"x": ShapeRange.fixed(1, 8)}), "does not fit"),
    "ranks that differ": (
        replace(_spec(), profiles={"x": ShapeRange((1,), (1, 8, 8), (4, 16, 8))}),
        "differ in rank",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_specification_is_refused(case: str, outline: ModelOutline) -> None:
    spec, message = BAD[case]
    with pytest.raises(BadInputError, match=message):
        _check(outline, spec)


def test_the_refusal_names_the_input_and_the_three_shapes(outline: ModelOutline) -> None:
    with pytest.raises(BadInputError) as caught:
        _check(outline, _spec(usual=17))
    assert "'x', entry 1" in caught.value.where
    assert "opt (1, 17, 8)" in caught.value.got


def test_onnxruntime_is_not_held_to_the_limits_of_rtx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_one("NonZero", outputs=["y"]), path)
    _check(read_outline(path), EngineSpec(), Target("onnxruntime"))
    with pytest.raises(BadInputError, match="TensorRT-RTX has no NonZero"):
        _check(read_outline(path), EngineSpec())


def test_turing_is_refused_for_fp32_products_naming_the_node(outline: ModelOutline) -> None:
    with pytest.raises(BadInputError, match="sm75") as caught:
        _check(outline, _spec(), Target("rtx", ("sm75", "sm86")))
    assert "node 'project' (MatMul)" in caught.value.where


def test_dimensions_of_one_name_need_one_range(masked_path: Path) -> None:
    profiles = {
        "x": ShapeRange((1, 4), (1, 8), (4, 16)),
        "mask": ShapeRange((1, 4), (1, 8), (4, 12)),
    }
    with pytest.raises(BadInputError, match="'tokens' different ranges"):
        symbol_ranges(read_outline(masked_path), profiles)


# Ranges of budgets that follow from the profiles.


def _site(name: str, kind: str, default: int, tokens: str = "tokens") -> dict:
    suffix = "permille" if kind == "permille" else "k"
    return {
        "site": name,
        "selector": "s",
        "budget": {"kind": kind, "input": f"{name}.{suffix}", "default": default},
        "protected": 1,
        "tokens": tokens,
    }


def _sites(*records: dict) -> tuple[Site, ...]:
    return sites_from_metadata({"secateur.sites": json.dumps(records)})


def test_counts_run_from_protected_over_the_default_to_n(outline: ModelOutline) -> None:
    sites = _sites(_site("a", "count", 6), _site("b", "count", 7, "a.length"))
    found = default_shape_values(outline, sites, _spec().profiles)
    assert found["a.k"] == ShapeRange((1,), (6,), (16,))
    assert found["b.k"] == ShapeRange((1,), (6,), (16,)), "never more than the site above keeps"


def test_shares_run_over_every_permille(outline: ModelOutline) -> None:
    found = default_shape_values(outline, _sites(_site("a", "permille", 600)), _spec().profiles)
    assert found == {"a.permille": ShapeRange((1,), (600,), (1000,))}


def test_a_site_below_a_share_sees_what_the_share_keeps(outline: ModelOutline) -> None:
    sites = _sites(_site("a", "permille", 500), _site("b", "count", 8, "?"))
    found = default_shape_values(outline, sites, _spec().profiles)
    assert found["b.k"].usual == (4,), "half of the usual 8 tokens"


def test_a_share_of_too_many_tokens_is_refused(outline: ModelOutline) -> None:
    record = _site("a", "permille", 600)
    record["budget"]["input"] = None
    with pytest.raises(BadInputError, match="TopK takes at most"):
        check_build(outline, _sites(record), _spec(high=8000), RTX)


def test_a_site_whose_tokens_nobody_knows_is_refused(outline: ModelOutline) -> None:
    with pytest.raises(BadInputError, match="cannot be told"):
        default_shape_values(outline, _sites(_site("a", "count", 3, "width")), _spec().profiles)


def test_defaults_complete_a_specification_and_yield_to_given_ranges(
    outline: ModelOutline,
) -> None:
    given = complete_spec(outline, _spec(k=(2, 3, 5)), RTX)
    assert given.shape_values[K] == ShapeRange((2,), (3,), (5,))
    assert given.compute_capabilities == ("sm86",)
    derived = complete_spec(outline, replace(_spec(), shape_values={}), RTX)
    assert derived.shape_values[K] == ShapeRange((1,), (4,), (16,))


def test_ranges_of_dimensions_become_ranges_of_inputs(outline: ModelOutline) -> None:
    ranges = {"batch": (1, 8, 32), "tokens": (16, 128, 512)}
    assert profiles_from_dimensions(outline.inputs, ranges) == {
        "x": ShapeRange((1, 16, 8), (8, 128, 8), (32, 512, 8))
    }


def test_an_expression_of_dimensions_gets_its_range() -> None:
    info = TensorInfo("x", "float32", ("batch", "1 + 2*side"))
    found = profiles_from_dimensions([info], {"batch": (1, 1, 2), "side": (3, 4, 5)})
    assert found == {"x": ShapeRange((1, 7), (1, 9), (2, 11))}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"batch": (1, 2, 4)}, "'tokens' of input 'x' has no range"),
        ({"batch": (1, 2, 4), "tokens": (9, 8, 16)}, "not ordered"),
        ({"batch": (1, 2, 4), "tokens": (1, 8, 16), "width": (1, 1, 1)}, "no input has"),
    ],
)
def test_bad_ranges_of_dimensions_are_refused(
    ranges: dict, message: str, outline: ModelOutline
) -> None:
    with pytest.raises(BadInputError, match=message):
        profiles_from_dimensions(outline.inputs, ranges)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tokens", 10),
        ("1 + 2*tokens", 21),
        ("(tokens*7 + 9)//10", 7),
        ("min(tokens, 4) - max(1, 2)", 2),
        ("-tokens**2", -100),
    ],
)
def test_expressions_are_evaluated(text: str, value: int) -> None:
    assert evaluate(text, {"tokens": 10}) == value


@pytest.mark.parametrize(
    "text", ["", "width", "tokens + ", "__import__('os')", "9**9**9", "tokens//0", "1.5", "a.b"]
)
def test_anything_else_is_not_evaluated(text: str) -> None:
    assert evaluate(text, {"tokens": 10}) is None


@pytest.mark.parametrize(
    ("text", "canonical", "folder"),
    [
        ("onnxruntime", "onnxruntime", "onnxruntime"),
        ("rtx", "rtx", "rtx"),
        ("rtx:sm89, SM86", "rtx:sm86,sm89", "rtx-sm86-sm89"),
    ],
)
def test_targets_have_one_spelling(text: str, canonical: str, folder: str) -> None:
    assert str(parse_target(text)) == canonical
    assert parse_target(text).folder == folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnxruntme", "did you mean 'onnxruntime'"),
        ("rtx:sm68", "unknown compute capability 'sm68'"),
        ("rtx:sm90", "H100"),
        ("rtx:", "unknown compute capability"),
        ("rtx:sm86,sm86", "given twice"),
        ("onnxruntime:sm86", "unknown execution provider"),
        ("tensorrt:sm86", "takes no compute capabilities"),
        ("", "unknown target"),
    ],
)
def test_a_wrong_target_says_what_is_possible(text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_target(text)


def test_a_specification_survives_json() -> None:
    spec = replace(_spec(), compute_capabilities=("sm86",), timeout_s=5.0)
    assert EngineSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def _one(operator: str, outputs: list[str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], outputs)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
