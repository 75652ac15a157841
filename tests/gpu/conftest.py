"""Tests that need a CUDA device; without one they are skipped, and the summary says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runtime import conftest as small

from secateur.errors import MissingDependencyError
from secateur.runtime import cuda_driver
from secateur.runtime.build import BuildOptions, build_target
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.tensorrt.api import load

# The bundles of the runtime's tests.
bundle_path, proven_path, tokens = small.bundle_path, small.proven_path, small.tokens
selecting_path, forced_path = small.selecting_path, small.forced_path
dense_path, goldens, spec = small.dense_path, small.goldens, small.spec

LIBRARIES = ("tensorrt", "rtx")


def missing(backend: str) -> str:
    """Why a backend cannot run here; "" where it can."""
    try:
        cuda_driver.check_device()
        load(backend)
    except MissingDependencyError as error:
        return f"{error.what} ({error.got})"
    return ""


@pytest.fixture(params=LIBRARIES)
def backend(request) -> str:
    """Each of the two libraries that is here, with a device."""
    if why := missing(request.param):
        pytest.skip(f"{request.param}: {why}")
    return str(request.param)


@pytest.fixture
def built(backend: str, proven_path: Path) -> Callable[[], tuple[Path, str]]:
    """A bundle with an engine for the device, and its target."""

    def build() -> tuple[Path, str]:
        with revised_bundle(proven_path) as draft:
            build_target(draft, backend, BuildOptions("disabled", forced=True))
        return proven_path, backend

    return build
