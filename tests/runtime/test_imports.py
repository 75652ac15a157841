"""A target machine has NumPy and a backend; a missing backend names its install command."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import secateur.runtime
from secateur.errors import BadInputError, MissingDependencyError
from secateur.runtime import versions

MODULES = sorted(module.name for module in pkgutil.iter_modules(secateur.runtime.__path__))

# Put at the head of a child's program: makes a library really impossible to import there.
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_no_module_of_the_runtime_imports_anything_heavy() -> None:
    heavy = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx",
             "pydantic", "yaml", "rich", "cyclopts", "polygraphy", "transformers"}  # fmt: skip
    names = [f"secateur.runtime.{name}" for name in MODULES if name != "__main__"]
    program = (
        "import importlib, sys\n"
        f"for name in {[*names, 'secateur.runtime.__main__']!r}: importlib.import_module(name)\n"
        f"print(sorted({heavy!r} & {{m.partition('.')[0] for m in sys.modules}}))"
    )
    done = _run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert len(names) > 15, "the list of modules was found"


def test_the_runtime_works_where_only_numpy_and_onnxruntime_can_be_imported(
    bundle_path: Path,
) -> None:
    blocked = {"torch", "onnx", "onnx_ir", "onnxscript", "tensorrt_rtx", "pydantic", "yaml", "rich"}
    program = (
        BLOCK.format(blocked=blocked)
        + """
import numpy as np
from secateur.runtime.session import open_session
with open_session(sys.argv[1]) as run:
    print(run({"x": np.zeros((2, 6, 8), np.float32)})["y"].shape)
"""
    )
    done = _run(program, bundle_path)
    assert done.stdout.strip() == "(2, 4, 8)", done.stderr


@pytest.mark.parametrize(
    ("library", "command", "install"),
    [
        ("onnxruntime", ["run", "{bundle}", "--inputs", "{inputs}"], "pip install onnxruntime"),
        ("tensorrt_rtx", ["build", "{bundle}", "--target", "rtx:sm86"], "tensorrt_rtx_cu13"),
        ("tensorrt", ["build", "{bundle}", "--target", "tensorrt"], "JetPack"),
    ],
)
def test_a_missing_library_names_its_install_command_and_exits_with_3(
    library: str, command: list[str], install: str, bundle_path: Path, tmp_path: Path
) -> None:
    # A site file on the path reaches the build's child process too.
    (tmp_path / "site").mkdir()
    block = BLOCK.format(blocked={library})
    (tmp_path / "site" / "sitecustomize.py").write_text(block)
    inputs = _save_inputs(tmp_path)
    arguments = [part.format(bundle=bundle_path, inputs=inputs) for part in command]
    done = subprocess.run(
        [sys.executable, "-m", "secateur.runtime", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )
    assert done.returncode == 3, done.stderr
    assert install in done.stderr


def test_a_library_without_module_and_metadata_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = versions.Library("Ghost", "no_such_module", ("no-such-package",), "pip install ghost")
    monkeypatch.setitem(versions.LIBRARIES, "ghost", ghost)
    with pytest.raises(MissingDependencyError, match="pip install ghost"):
        versions.installed_version("ghost")


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("1.23", ">=1.23", True),
        ("1.31.1", ">=1.23", True),
        ("1.9.0", ">=1.23", False),
        ("2.0", ">=1.23", True),
        ("1.7.1.116", "==1.7", True),
        ("1.8.0", "==1.7", False),
        ("1.70", "==1.7", False),
    ],
)
def test_versions_are_compared_by_number(version: str, requirement: str, fits: bool) -> None:
    assert versions.satisfies(version, requirement) is fits


def test_a_requirement_that_is_none_is_refused() -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        versions.satisfies("1.0", "about 1")


def _save_inputs(folder: Path) -> Path:
    import numpy as np

    path = folder / "inputs.npz"
    np.savez(path, x=np.zeros((2, 6, 8), np.float32))
    return path
