"""Every call of TensorRT that the runtime makes exists in every version that it is made for.

The tables in ``api`` were taken from the published bindings (``api/extract.py``). A name that a
version lacks may be used only behind ``hasattr`` or ``getattr`` with a default.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secateur import runtime

FOLDER = Path(runtime.__file__).resolve().parent
TABLES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent / "api").glob("*.json"))
}
CLASSES = {
    "attention": "IAttention",
    "attention_input": "IAttentionInputLayer",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "tensor": "ITensor",
    "timing_cache": "ITimingCache",
}
"""What a variable of this name, with or without underscore, holds in the backend's files."""


@dataclass(frozen=True)
class Use:
    """A name of the library that a function uses; ``n_arguments`` None where it is not called."""

    owner: str
    member: str
    n_arguments: int | None
    where: str
    is_probed: bool
    gates: frozenset[str]
    """Names without which the function returns or raises before it comes here."""

    def __str__(self) -> str:
        return f"{self.owner}.{self.member} at {self.where}"


def _files() -> list[Path]:
    return sorted((FOLDER / "tensorrt").glob("*.py"))


def uses(path: Path) -> list[Use]:
    """Every use in a file, once per line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [use for function in functions for use in _uses(function, path.name)]


def _uses(function: ast.FunctionDef, file: str) -> Iterator[Use]:
    probed = {name for node in ast.walk(function) if (name := _probed(node))}
    gates = frozenset(
        _probed(node.test.operand)
        for node in function.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.UnaryOp)
        and isinstance(node.body[-1], ast.Return | ast.Raise)
    )
    calls = {node.func: node for node in ast.walk(function) if isinstance(node, ast.Call)}
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute) or not (owner := _owner(node.value)):
            continue
        call = calls.get(node)
        n_arguments = len(call.args) + len(call.keywords) if call else None
        is_probed = bool({node.attr, owner} & probed)
        yield Use(owner, node.attr, n_arguments, f"{file}:{node.lineno}", is_probed, gates - {""})


def _probed(node: ast.AST) -> str:
    """The name that ``hasattr`` or ``getattr`` asks for; "" for any other expression."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"hasattr", "getattr"}:
        name = node.args[1]
        return str(name.value) if isinstance(name, ast.Constant) else ""
    return ""


def _owner(value: ast.expr) -> str:
    """Class of the library that an expression holds; "" for what is not the library's."""
    if isinstance(value, ast.Name) and value.id == "trt":
        return "trt"
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name | ast.Attribute):
        if _owner(value.value) == "trt" or value.attr == "_trt":
            return "trt" if value.attr == "_trt" else value.attr
        return CLASSES.get(value.attr.lstrip("_"), "")
    return CLASSES.get(value.id.lstrip("_"), "") if isinstance(value, ast.Name) else ""


def problem(use: Use, table: dict) -> str:
    """Why a use does not work in one version; "" where it does."""
    classes = table["classes"]
    if use.owner == "trt":
        known = {*classes, *table["functions"], *table["python"]}
        return "" if use.member in known else "no such name"
    if use.owner not in classes:
        return "no such class"
    members = classes[use.owner]
    if use.member.startswith("__"):
        return ""
    if use.member not in members:
        return "no such member"
    signatures = members[use.member]
    if signatures is None:
        return "is no function" if use.n_arguments is not None else ""
    if use.n_arguments is None or any(_fits(text, use.n_arguments) for text in signatures):
        return ""
    return f"{use.n_arguments} arguments do not fit {signatures}"


def reached(use: Use, table: dict) -> bool:
    """Whether a version comes to a use: it has every name that the function asks for first."""
    known = {*table["classes"], *(m for members in table["classes"].values() for m in members)}
    return use.gates <= known


def _fits(signature: str, n_arguments: int) -> bool:
    """Whether a signature as pybind11 prints it takes so many arguments."""
    inside = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", signature))
    inside = inside[inside.index("(") + 1 : inside.rindex(")", 0, (inside + " ->").index(" ->"))]
    parameters = [part for part in inside.split(", ") if part and not part.startswith("self")]
    if "*args" in inside or inside == "...":
        return len(parameters) > 2
    required = [part for part in parameters if "=" not in part]
    return len(required) <= n_arguments <= len(parameters)


USES = [use for path in _files() for use in uses(path)]


def test_the_tables_are_those_of_the_versions_that_are_supported():
    assert list(TABLES) == [
        "rtx-1.7.1.116",
        "tensorrt-10.13.3.9",
        "tensorrt-10.3.0",
        "tensorrt-11.4.0.106",
    ]


@pytest.mark.parametrize("version", TABLES)
def test_what_is_used_without_a_probe_is_in_every_version(version):
    table = TABLES[version]
    certain = [use for use in USES if not use.is_probed and reached(use, table)]
    assert not [f"{use}: {why}" for use in certain if (why := problem(use, table))]


def test_what_is_probed_is_in_some_version():
    probed = [use for use in USES if use.is_probed]
    assert probed
    assert not [str(use) for use in probed if all(problem(use, table) for table in TABLES.values())]


def test_enough_of_the_library_is_seen():
    seen = {use.owner for use in USES}
    assert {"Builder", "OnnxParser", "IOptimizationProfile", "Runtime", "ICudaEngine"} <= seen
    assert len(USES) > 50


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "no such member"),
        ("context.execute_async_v2(stream)", "no such member"),
        ("profile.set_shape(name, low)", "2 arguments"),
        ("trt.IInt8EntropyCalibrator2()", "no such name"),
    ],
)
def test_a_call_that_version_11_lacks_is_found(line, why):
    function = ast.parse(f"def f():\n    {line}").body[0]
    assert isinstance(function, ast.FunctionDef)
    problems = [problem(use, TABLES["tensorrt-11.4.0.106"]) for use in _uses(function, "f.py")]
    assert any(why in text for text in problems), problems


@pytest.mark.parametrize("version", TABLES)
def test_the_logger_takes_the_arguments_that_the_library_gives(version):
    (log,) = [
        node
        for path in _files()
        for cls in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(cls, ast.ClassDef) and "trt.ILogger" in map(ast.unparse, cls.bases)
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and node.name == "log"
    ]
    (signature,) = TABLES[version]["classes"]["ILogger"]["log"]
    assert _fits(signature, len(log.args.args) - 1)
