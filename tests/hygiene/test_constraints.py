"""What is installed for development is pinned, so that a fresh machine gets the same."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# torch brings these in its CUDA build only, each at the version that torch itself asks for.
_OF_TORCH = ("nvidia-", "cuda-", "triton")


@pytest.fixture(scope="module")
def pinned(root: Path) -> dict[str, Version]:
    """Versions of constraints.txt by normalised name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


def closure(root: Path, extras: set[str]) -> set[str]:
    """Names of everything that the extras of this project need, as installed here."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = config["optional-dependencies"]
    waiting = [Requirement(r) for extra in extras for r in table[extra]]
    waiting += [Requirement(r) for r in config["dependencies"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        needed = waiting.pop()
        key = (canonicalize_name(needed.name), frozenset(needed.extras))
        if key in seen:
            continue
        seen.add(key)
        if key[0] == "secateur":
            waiting += [Requirement(r) for extra in needed.extras for r in table[extra]]
            continue
        for text in metadata.requires(needed.name) or ():
            below = Requirement(text)
            wanted = needed.extras or {""}
            if below.marker is None or any(below.marker.evaluate({"extra": e}) for e in wanted):
                waiting.append(below)
    return {name for name, _ in seen} - {"secateur"}


def test_everything_that_is_installed_for_development_is_pinned(root, pinned):
    needed = closure(root, {"dev"})
    loose = sorted(n for n in needed if n not in pinned and not n.startswith(_OF_TORCH))
    assert "torch" in needed
    assert not loose


def test_the_pins_are_what_is_installed(pinned):
    other = {
        name: (str(version), metadata.version(name))
        for name, version in pinned.items()
        if Version(metadata.version(name)).public != version.public
    }
    assert not other


def test_torch_is_the_version_that_the_project_tests_with(pinned):
    assert str(pinned["torch"]) == "2.13.0"
