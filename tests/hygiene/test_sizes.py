"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast

MAX_LINES_OF_A_FILE = 500
MAX_LINES_OF_A_FUNCTION = 60

# The zoo is data: one small model per architecture, copied as one file.
_LONG_ON_PURPOSE = {"tests/zoo/zoo.py"}


# The docstring of a command is its help page, with a paragraph for each option.
_HELP_PAGES = "src/secateur/commands/"


def long_functions(text: str, *, docstrings: bool = True) -> list[str]:
    """Functions of a module that have more than the allowed lines, decorators aside."""
    sizes = {
        (node.name, node.lineno): node.end_lineno
        - node.lineno
        + 1
        - (0 if docstrings else docstring_lines(node))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    return [
        f"{name} ({size} lines)"
        for (name, _), size in sizes.items()
        if size > MAX_LINES_OF_A_FUNCTION
    ]


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines that the docstring takes."""
    first = node.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0


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
        for found in long_functions(
            path.read_text(encoding="utf-8"),
            docstrings=not str(path.relative_to(root)).startswith(_HELP_PAGES),
        )
    ]
    assert not long


def test_a_function_of_61_lines_is_found():
    assert long_functions("def f():\n" + "    x = 1\n" * 60) == ["f (61 lines)"]
    assert long_functions("def f():\n" + "    x = 1\n" * 59) == []


def test_the_docstring_of_a_command_does_not_count():
    text = 'def f():\n    """A\n\n    b\n    """\n' + "    x = 1\n" * 58
    assert long_functions(text) == ["f (63 lines)"]
    assert long_functions(text, docstrings=False) == []
