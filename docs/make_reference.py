"""Write the pages of docs/reference that the code itself can tell: recipe, commands, Python.

Run it after a change of either; a test compares the pages with what this makes.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import secateur
from secateur.cli import COMMANDS
from secateur.recipe import json_schema

_INTRODUCTION = """\
# Recipe keys

A recipe is a YAML file. An unknown key is an error that names the nearest known one. Relative
paths count from the folder of the recipe. `secateur schema` prints the same as a JSON schema, for
editors. This page is written by `python docs/make_reference.py`.
"""


_COMMANDS = """\
# Commands

Results go to stdout, progress to stderr; `--json` prints a document for machines. Exit codes: 0 ok,
1 parity or a target missed, 2 bad input, 3 a missing dependency, 4 a failed build. This page is
written by `python docs/make_reference.py`.
"""

_PYTHON = """\
# Python

`import secateur as sc` loads nothing heavy; each name below is looked up when it is first used. The
calls are those of the commands, one step at a time: export or open a model, see what can go,
remove, select, lower, build, compare. Models are `onnx_ir.Model` objects. This page is written by
`python docs/make_reference.py`.
"""


def pages() -> dict[str, str]:
    """Text of each page by its file name."""
    return {"recipe.md": recipe_page(), "cli.md": command_page(), "python.md": python_page()}


def python_page() -> str:
    """Signature and docstring of every public name, in the order of a deployment."""
    names = sorted(secateur.__all__, key=lambda name: (_line(name), name))
    return "\n".join([_PYTHON, *(_public(name) for name in names)])


def _line(name: str) -> int:
    """Where a function stands in its file; what is no function comes first."""
    found = getattr(secateur, name)
    return inspect.getsourcelines(found)[1] if inspect.isfunction(found) else 0


def _public(name: str) -> str:
    found = getattr(secateur, name)
    text = _spelt(name, inspect.signature(found))
    doc = inspect.getdoc(found) or ""
    return f"## {name}\n\n```python\n{text}\n```\n\n{_sections(doc)}\n"


def _spelt(name: str, signature: inspect.Signature) -> str:
    """One argument a line where the whole does not fit in one."""
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    arguments = [_argument(parameter) for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        arguments.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = signature.return_annotation
    after = ")" if returned in {None, "None"} else f") -> {returned}"
    line = f"{name}({', '.join(arguments)}{after}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), after])


def _argument(parameter: inspect.Parameter) -> str:
    star = "**" if parameter.kind == inspect.Parameter.VAR_KEYWORD else ""
    text = f"{star}{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    made = repr(parameter.default) == "<factory>"
    return text + (" = {}" if made else f" = {parameter.default!r}")


_WIDTH = 88


def _sections(doc: str) -> str:
    """The docstring, with a list item for each argument and each error."""
    lines = []
    for line in doc.replace("``", "`").splitlines():
        if line in {"Args:", "Raises:", "Returns:"}:
            lines += [f"{line}", ""]
        elif line.startswith("    ") and not line.startswith("     "):
            lines.append(re.sub(r"^    ([*\w]+):", r"* `\1`:", line))
        elif line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def command_page() -> str:
    """The help of every command, as the command line prints it."""
    sections = [f"## {name}\n\n```text\n{_help(name)}\n```\n" for name in COMMANDS]
    return "\n".join([_COMMANDS, *sections])


def _help(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "secateur", command, "--help"],
        env={**os.environ, "COLUMNS": "96", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def recipe_page() -> str:
    """Every key of a recipe."""
    schema = json_schema()
    parts = {"": schema} | dict(schema["$defs"])
    sections = [_section(name, part) for name, part in parts.items()]
    return "\n".join([_INTRODUCTION, *sections])


def _section(name: str, part: dict[str, Any]) -> str:
    title = f"## {name}" if name else "## At the top"
    required = set(part.get("required", ()))
    rows = [_row(key, entry, key in required) for key, entry in part["properties"].items()]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([title, "", _plain(part.get("description", "")), "", *head, *rows, ""])


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _row(key: str, entry: dict[str, Any], required: bool) -> str:
    meaning = _plain(entry.get("description", "")).replace("|", "\\|")
    default = "required" if required else _default(entry)
    return f"| `{key}` | {_kind(entry)} | {default} | {meaning} |".replace("  ", " ")


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default")
    if value is None or isinstance(value, dict) or value in ([], ""):
        return ""
    return f"`{value}`"


def _kind(entry: dict[str, Any]) -> str:
    if "$ref" in entry:
        name = entry["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if kinds := entry.get("anyOf", entry.get("oneOf")):
        return " or ".join(_kind(one) for one in kinds if one.get("type") != "null")
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if entry.get("type") == "array":
        items = entry.get("items")
        return f"list of {_kind(items)}" if items else "list"
    return str(entry.get("type", "any")) + _bounds(entry)


def _bounds(entry: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    return "".join(f" {sign} {entry[key]:g}" for key, sign in signs.items() if key in entry)


if __name__ == "__main__":
    for name, text in pages().items():
        Path(__file__).with_name("reference").joinpath(name).write_text(text, "utf-8")
