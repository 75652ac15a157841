"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def made(root: Path) -> dict[str, str]:
    """The pages as docs/make_reference.py makes them now."""
    spec = importlib.util.spec_from_file_location("reference", root / "docs/make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize("name", ["recipe.md", "cli.md", "python.md"])
def test_the_page_is_up_to_date(root, made, name):
    written = (root / "docs/reference" / name).read_text(encoding="utf-8")
    assert written == made[name], "run: python docs/make_reference.py"
