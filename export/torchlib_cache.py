"""Compile onnxscript's operator library once a process instead of once an export."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator

_MODULE = "torch.onnx._internal._lazy_import"
_NAME = "get_torchlib_ops"


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Let ``torch.onnx.export`` find the library compiled inside this block.

    torch 2.13 with onnxscript 0.7.2 parses the same 500 functions from source in every export,
    which is half the time of exporting a selector. A torch that keeps them elsewhere exports
    as it always did.
    """
    holder = _holder()
    functions = getattr(holder, _NAME, None)
    if functions is None:
        yield
        return
    setattr(holder, _NAME, functools.partial(_compiled, functions))
    try:
        yield
    finally:
        setattr(holder, _NAME, functions)


def _holder() -> object | None:
    try:
        return getattr(importlib.import_module(_MODULE), "onnxscript_apis", None)
    except ImportError:
        return None


@functools.cache
def _compiled(functions: Callable[[], list[object]]) -> list[object]:
    return functions()


__all__ = ["compiled_once"]
