"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast

MAX_LINES_OF_A_FILE = 500
MAX_LINES_OF_A_FUNCTION = 60

# The zoo is data: one small model per architecture, copied as one file.
_LONG_ON_PURPOSE = {"tests/zoo/zoo.py"}


def long_functions(text: str) -> list[str]:
    """Functions of a module that have more than the allowed lines, decorators aside."""
    return [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > MAX_LINES_OF_A_FUNCTION
    ]


def test_no_file_is_longer_than_500_lines(python_files, root):
    long = [
        f"{path.relative_to(root)}: {lines} lines"
        for path in python_files
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES_OF_A_FILE
        and str(path.relative_to(root)) not in _LONG_ON_PURPOSE
    ]
    assert not long


def test_no_function_is_longer_than_60_lines(python_files, root):
    long = [
        f"{path.relative_to(root)}: {found}"
        for path in python_files
        if str(path.relative_to(root)) not in _LONG_ON_PURPOSE
        for found in long_functions(path.read_text(encoding="utf-8"))
    ]
    assert not long


def test_a_function_of_61_lines_is_found():
    assert long_functions("def f():\n" + "    x = 1\n" * 60) == ["f (61 lines)"]
    assert long_functions("def f():\n" + "    x = 1\n" * 59) == []
