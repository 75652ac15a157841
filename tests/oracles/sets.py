"""Reference vectors of published methods: where they are and which of them are checked."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One file of inputs and outputs of a method's published code."""

    path: Path
    arrays: dict[str, np.ndarray]

    def text(self, name: str) -> str:
        """The string that the array ``name`` holds."""
        return str(self.arrays[name])


Check = Callable[[Case], None]


@dataclass(frozen=True)
class Carried:
    """A set whose method the project has: its check, and cases that do not count."""

    check: Check
    left_out: dict[str, str]  # case name -> why
    is_long: bool  # too long for `make test`; `make oracles` and `make sweep` run it


def folder() -> Path:
    """``SECATEUR_ORACLES``, else the full sets beside the checkout, else the subset here.

    Raises:
        FileNotFoundError: ``SECATEUR_ORACLES`` names no folder.
    """
    if named := os.environ.get("SECATEUR_ORACLES"):
        if not Path(named).is_dir():
            raise FileNotFoundError(f"SECATEUR_ORACLES names {named}, which is no folder")
        return Path(named)
    beside = HERE.parents[2] / "shared" / "oracles"
    return beside if beside.is_dir() else HERE / "data"


def set_names(root: Path) -> tuple[str, ...]:
    """Sub-folders of ``root`` that hold cases, sorted."""
    return tuple(sorted({path.parent.name for path in root.glob("*/case*.npz")}))


def carried_sets() -> dict[str, Carried]:
    """Sets with a file in ``checks/``; the file's name is the set's name."""
    return {path.stem: _load(path) for path in sorted((HERE / "checks").glob("*.py"))}


def read(path: Path) -> Case:
    """Load a case; pickled objects in it are an error."""
    with np.load(path, allow_pickle=False) as file:
        return Case(path, {name: file[name] for name in file.files})


def closing_line(root: Path) -> str:
    """How many sets and cases are checked, and the names of the sets that are not."""
    names, carried = set_names(root), carried_sets()
    checked = [name for name in names if name in carried]
    missing = [name for name in names if name not in carried]
    cases = sum(len(list((root / name).glob("case*.npz"))) for name in checked)
    line = f"oracles: {len(checked)} sets carried ({cases} cases), {len(missing)} not carried"
    return f"{line}: {', '.join(missing)}" if missing else line


def _load(path: Path) -> Carried:
    spec = importlib.util.spec_from_file_location(f"oracle_check_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    left_out = dict(getattr(module, "LEFT_OUT", {}))
    return Carried(module.check, left_out, bool(getattr(module, "IS_LONG", False)))
