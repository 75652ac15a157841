"""What is installed, and under which names."""

from __future__ import annotations

import builtins
import importlib
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

_BARE_FOLDERS = ("calibration", "export", "graph_passes", "models", "runtime")
_HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "matplotlib"}


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_package_list_is_the_tree(root, sources):
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {s.module for s in sources if s.path.name == "__init__.py"}
    assert set(config["tool"]["setuptools"]["packages"]) == packages


def test_every_folder_with_code_is_a_package(sources):
    without = {s.path.parent for s in sources if not (s.path.parent / "__init__.py").is_file()}
    assert not without


@pytest.mark.parametrize("folder", _BARE_FOLDERS)
@pytest.mark.parametrize("options", [(), ("-S",)], ids=["installed", "not installed"])
def test_a_folder_cannot_be_imported_under_its_bare_name(root, folder, options):
    done = _run(sys.executable, *options, "-c", f"import {folder}", cwd=root)
    assert done.returncode == 1
    assert f"import 'secateur.{folder}', not '{folder}'" in done.stderr


def test_no_public_name_hides_a_package_or_a_builtin(sources):
    namespace = importlib.import_module("secateur")
    modules = {s.module.removeprefix("secateur.").split(".")[0] for s in sources}
    taken = modules | set(dir(builtins))
    assert namespace.__all__
    assert not [name for name in namespace.__all__ if name in taken and name != "__version__"]


def test_every_public_name_is_there():
    namespace = importlib.import_module("secateur")
    assert not [name for name in namespace.__all__ if not hasattr(namespace, name)]


def test_import_of_the_namespace_loads_numpy_at_most():
    program = f"import sys, secateur, secateur.runtime\nprint(sorted({_HEAVY} & set(sys.modules)))"
    done = _run(sys.executable, "-c", program, cwd=Path(sys.prefix))
    assert done.stdout.strip() == "[]", done.stderr


def test_help_loads_no_model_library():
    program = (
        "import sys\n"
        "from secateur.cli import main\n"
        "sys.argv = ['secateur', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({_HEAVY} & set(sys.modules)))"
    )
    done = _run(sys.executable, "-c", program, cwd=Path(sys.prefix))
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy, so that nothing left in ``build`` gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    listed = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root)
    for name in filter(None, listed.stdout.split("\0")):
        origin, target = root / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            target.symlink_to(origin.readlink())
        elif origin.is_file() and not name.startswith(("tests/", "docs/", "examples/")):
            target.write_bytes(origin.read_bytes())
    done = _run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, copy, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("secateur-*.whl"))


@pytest.mark.slow
def test_wheel_holds_the_namespace_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"secateur", next(top for top in tops if top.endswith(".dist-info"))}


@pytest.mark.slow
def test_wheel_holds_every_module_once(wheel, sources):
    names = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py")]
    expected = {
        s.module.replace(".", "/") + ("/__init__.py" if s.path.name == "__init__.py" else ".py")
        for s in sources
    }
    assert sorted(names) == sorted(expected)


@pytest.mark.slow
def test_bare_install_runs_the_runtime(wheel, tmp_path):
    """A venv with our wheel and NumPy alone, as on a target machine."""
    import numpy

    _run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    found = _run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path)
    site = Path(found.stdout.strip())
    zipfile.ZipFile(wheel).extractall(site)
    origin = Path(numpy.__file__).parent
    for folder in (origin, *origin.parent.glob("numpy.libs")):
        (site / folder.name).symlink_to(folder)
    assert _run(python, "-c", "import torch", cwd=tmp_path).returncode == 1
    done = _run(python, "-m", "secateur.runtime", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("build", "run", "parity", "bench"))
