"""What the hygiene tests look at: the source tree, found once."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

_FOLDERS = {
    "secateur": "src/secateur",
    "secateur.export": "export",
    "secateur.graph_passes": "graph_passes",
    "secateur.runtime": "runtime",
    "secateur.calibration": "calibration",
    "secateur.models": "models",
}


@dataclass(frozen=True)
class Source:
    """One Python file of the library, under the name it is imported by."""

    module: str
    path: Path
    tree: ast.Module


def _module_name(package: str, folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((package, *parts)).removesuffix(".__init__")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sources(root: Path) -> tuple[Source, ...]:
    """Every file of the installed library; links into the other folders are not followed."""
    found = []
    for package, relative in _FOLDERS.items():
        folder = root / relative
        for path in sorted(folder.rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                found.append(Source(_module_name(package, folder, path), path, tree))
    return tuple(found)


@pytest.fixture(scope="session")
def python_files(root: Path) -> tuple[Path, ...]:
    """Every Python file that we wrote: the library, tests, examples, benchmarks."""
    folders = [*_FOLDERS.values(), "tests", "examples", "benchmarks"]
    return tuple(
        path
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents)
    )
