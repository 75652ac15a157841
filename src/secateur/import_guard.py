"""Keeps the top-level folders from being imported under their bare names."""

from __future__ import annotations


def guard_import_name(name: str, wanted: str) -> None:
    """Raise unless the package is imported as ``wanted``.

    Inside the checkout ``import export`` would find the folder and load a second
    copy of every module beside ``secateur.export``.
    """
    if name != wanted:
        raise ImportError(f"import {wanted!r}, not {name!r}")


__all__ = ["guard_import_name"]
