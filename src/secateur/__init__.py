"""Prune heads, channels and tokens of a trained model and ship it as ONNX and TensorRT.

Every public name is looked up when it is first used: ``import secateur`` loads nothing else,
so that a target machine pays for ``secateur.runtime`` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.api import (
        Select,
        analyse,
        bench,
        build,
        deploy,
        from_onnx,
        from_torch,
        lower,
        parity,
        plan,
        prove,
        remove,
        select,
        session,
        to_torch,
    )

__all__ = [
    "Select",
    "analyse",
    "bench",
    "build",
    "deploy",
    "from_onnx",
    "from_torch",
    "lower",
    "parity",
    "plan",
    "prove",
    "remove",
    "select",
    "session",
    "to_torch",
]


def __getattr__(name: str) -> object:
    """Load the public functions when one of them is asked for (PEP 562)."""
    if name in __all__:
        from secateur import api

        return getattr(api, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("secateur")
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
