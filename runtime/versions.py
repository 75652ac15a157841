"""Which backends are installed, in which version, and whether a bundle fits them.

Reads package metadata only: nothing heavy is imported before a bundle is known to fit.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass

from secateur.errors import BadInputError, MissingDependencyError


@dataclass(frozen=True, slots=True)
class Library:
    """The library behind a backend: its module, the distributions that bring it, how to get it."""

    title: str
    module: str
    distributions: tuple[str, ...]
    install: str


LIBRARIES: dict[str, Library] = {
    "onnxruntime": Library(
        "ONNX Runtime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install onnxruntime  (with CUDA: pip install onnxruntime-gpu)",
    ),
    "tensorrt": Library(
        "TensorRT",
        "tensorrt",
        ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        "on Jetson it comes with JetPack (apt install python3-libnvinfer; a venv needs "
        "--system-site-packages); on a server: pip install tensorrt",
    ),
    "rtx": Library(
        "TensorRT-RTX",
        "tensorrt_rtx",
        ("tensorrt_rtx_cu13", "tensorrt_rtx_cu13_bindings", "tensorrt-rtx"),
        "pip install tensorrt_rtx_cu13",
    ),
}

# What a bundle for ONNX Runtime asks of it, unless it says otherwise.
ONNXRUNTIME_REQUIREMENT = ">=1.23"


def missing(backend: str, why: str) -> MissingDependencyError:
    """The error for a backend whose library cannot be imported."""
    library = LIBRARIES[backend]
    return MissingDependencyError(
        f"{library.title} is not installed",
        where=f"import {library.module}",
        got=why,
        next_step=library.install,
    )


def installed_version(backend: str) -> str:
    """Version of the backend's library from package metadata.

    "" when the module is there without metadata (system packages); MissingDependencyError
    when there is no module either.
    """
    library = LIBRARIES[backend]
    for distribution in library.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        found = importlib.util.find_spec(library.module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise missing(backend, f"no module {library.module}")
    return ""


def same_series(version: str) -> str:
    """The requirement that major and minor version stay: ``1.7.1.116`` gives ``==1.7``."""
    return "==" + ".".join(version.split(".")[:2])


def check_requirement(backend: str, requirement: str, *, where: str) -> None:
    """Raise unless the installed library fits ``>=X.Y`` or ``==X.Y``.

    BadInputError for another version, MissingDependencyError for no library.
    """
    version = installed_version(backend)
    if version and not satisfies(version, requirement):
        library = LIBRARIES[backend]
        raise BadInputError(
            f"the bundle does not fit the installed {library.title}",
            where=where,
            got=version,
            wanted=requirement,
            next_step=f"build for this version here (python -m secateur.runtime build), or "
            f'pip install "{library.distributions[0]}{_pip_requirement(requirement)}"',
        )


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version fits ``>=X.Y`` or ``==X.Y`` (which X.Y.anything does)."""
    match = re.fullmatch(r"(>=|==)(\d+(?:\.\d+)*)", requirement)
    if match is None:
        raise BadInputError(
            "a version requirement cannot be read", got=repr(requirement), wanted=">=X.Y or ==X.Y"
        )
    wanted = _numbers(match[2])
    got = _numbers(version)[: len(wanted)]
    return got == wanted if match[1] == "==" else got >= wanted


def _pip_requirement(requirement: str) -> str:
    return f"{requirement}.*" if requirement.startswith("==") else requirement


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


__all__ = [
    "LIBRARIES",
    "ONNXRUNTIME_REQUIREMENT",
    "Library",
    "check_requirement",
    "installed_version",
    "missing",
    "same_series",
    "satisfies",
]
