"""Write down what a TensorRT bindings wheel offers: classes, members and their signatures.

    python tests/runtime/api/extract.py WHEEL... (bindings wheels of this Python, from PyPI)

The bindings load without TensorRT when its libraries are replaced by empty ones: the functions
that they take from there are called by no import. That needs a C compiler (cc), which is why the
tables are committed, one JSON file per version, and CI reads those.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
_LIBRARY = re.compile(r"NEEDED.*\[(lib(?:nv|tensorrt)[^\]]*)\]")
_FUNCTION = re.compile(r"^\s+U ([a-zA-Z]\w+)$", re.MULTILINE)

_DESCRIBE = r"""
import importlib, inspect, json, re, sys

def signatures(member):
    text = getattr(member, "__doc__", None) or ""
    found = re.findall(r"^(?:\d+\. )?(\w+\(.*\)(?: -> .*)?)$", text, re.MULTILINE)
    return [re.sub(r"[\w.]*\btensorrt(?:_rtx)?\.", "", one) for one in found] or None

def members(cls):
    kept = {}
    for name in sorted(dir(cls)):
        if name.startswith("_") and name != "__init__":
            continue
        member = inspect.getattr_static(cls, name, None)
        callable_ = callable(getattr(cls, name, None))
        kept[name] = (signatures(getattr(cls, name)) or [name + "(...)"]) if callable_ else None
    return kept

module = importlib.import_module(sys.argv[1])
table = {"__version__": sys.argv[2], "functions": {}, "classes": {}}
for name in sorted(dir(module)):
    thing = getattr(module, name)
    if name.startswith("_") or inspect.ismodule(thing):
        continue
    if inspect.isclass(thing):
        table["classes"][name] = members(thing)
    elif callable(thing):
        table["functions"][name] = signatures(thing)
print(json.dumps(table))
"""


def describe(wheel: Path) -> dict[str, object]:
    """Import the bindings of a wheel beside empty libraries, and list what is in them."""
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (binding,) = folder.glob("*/tensorrt*.so")
        _empty_libraries(binding, folder)
        done = subprocess.run(
            [sys.executable, "-c", _DESCRIBE, f"{binding.parent.name}.{binding.stem}", version],
            env={"LD_LIBRARY_PATH": name, "PYTHONPATH": name},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{wheel.name} cannot be imported:\n{done.stderr}")
        table: dict[str, object] = json.loads(done.stdout)
        return table | {"python": _defined(binding.parent / "__init__.py")}


def _defined(module: Path) -> list[str]:
    """Functions and variables that the package adds to its bindings."""
    body = ast.parse(module.read_text(encoding="utf-8")).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    return sorted([*functions, *(t.id for t in targets if isinstance(t, ast.Name))])


def _empty_libraries(binding: Path, folder: Path) -> None:
    needed = _LIBRARY.findall(_output("readelf", "-d", str(binding)))
    wanted = _FUNCTION.findall(_output("nm", "-D", "--undefined-only", str(binding)))
    source = folder / "empty.c"
    functions = [name for name in wanted if re.search(r"Infer|Nv|Plugin", name)]
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for library in needed:
        _output("cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library),
                str(source))  # fmt: skip


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(wheels: list[str]) -> None:
    for wheel in map(Path, wheels):
        table = describe(wheel)
        kind = "rtx" if "rtx" in wheel.name else "tensorrt"
        path = HERE / f"{kind}-{table['__version__']}.json"
        path.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(table['classes'])} classes")  # type: ignore[arg-type]  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
