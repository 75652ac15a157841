"""Nothing that was committed points at one machine or at one package index."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

_MACHINE_PATHS = re.compile(r"(?<![\w.$}/])/(?:work|root|tmp|opt|home/\w+|Users/\w+)(?:/|\b)")
_INDEX_HOSTS = re.compile(r"--(?:extra-)?index-url|--find-links|https?://[\w.]*(?:pypi|whl)[\w./]*")
_ITSELF = "tests/hygiene/test_committed_text.py"
_TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".j2", ".css", ".sh", ""}


@pytest.fixture(scope="module")
def committed(root: Path) -> dict[str, str]:
    """Text of every file that git would hand out, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = [root / name for name in listed]
    texts = [p for p in paths if p.is_file() and not p.is_symlink() and p.suffix in _TEXT]
    names = {str(p.relative_to(root)): p for p in texts}
    return {n: p.read_text(encoding="utf-8") for n, p in names.items() if n != _ITSELF}


def _lines_with(pattern: re.Pattern[str], committed: dict[str, str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in committed.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine_is_committed(committed):
    assert not _lines_with(_MACHINE_PATHS, committed)


def test_no_package_index_is_committed(committed):
    assert not _lines_with(_INDEX_HOSTS, committed)


@pytest.mark.parametrize("line", ["path = '/work/main/x'", "cd /tmp", "/root/.cache"])
def test_a_machine_path_would_be_found(line):
    assert _MACHINE_PATHS.search(line)


@pytest.mark.parametrize(
    "line", ["a/b/work/c", "tmp_path / 'x'", "tests/root", "https://x.org/opt"]
)
def test_an_ordinary_path_is_left_alone(line):
    assert not _MACHINE_PATHS.search(line)
