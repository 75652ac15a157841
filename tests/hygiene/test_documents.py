"""What the documents say works: links lead somewhere, commands exist, how-to pages run.

A fenced block marked ``sh`` or ``python`` on a how-to page is executed, page after page in the
order of the index. A block marked ``console`` shows a session; its commands must exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="session")
def pages(root: Path) -> dict[str, str]:
    """Text of every document, by its path."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/**/*.md")]
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in found}


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """(language, body) of the fenced blocks of a page in any of the languages."""
    return [(kind, body) for kind, body in _FENCE.findall(text) if kind in languages]


def commands(text: str) -> list[list[str]]:
    """Words of every command line in the shell blocks of a page, comments left out."""
    lines: list[str] = []
    for kind, body in blocks(text, "sh", "console"):
        joined = body.replace("\\\n", " ").splitlines()
        if kind == "console":
            joined = [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
        lines += joined
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def how_to_pages(root: Path) -> list[Path]:
    """The how-to pages, in the order of the index: a page may use files of an earlier one."""
    index = root / "docs/README.md"
    links = _LINK.findall(index.read_text(encoding="utf-8"))
    return [index.parent / link for link in links if link.startswith("how-to/")]


def test_every_link_leads_to_a_file(root, pages):
    broken = [
        f"{page}: {link}"
        for page, text in pages.items()
        for link in _LINK.findall(text)
        if "://" not in link
        and not link.startswith("#")
        and not ((root / page).parent / link.split("#")[0]).exists()
    ]
    assert not broken


def test_every_page_of_the_documentation_is_in_its_index(root):
    index = (root / "docs/README.md").read_text(encoding="utf-8")
    listed = set(_LINK.findall(index))
    written = {str(p.relative_to(root / "docs")) for p in (root / "docs").rglob("*.md")}
    assert written - {"README.md"} <= listed


def test_every_make_target_that_is_named_exists(root, pages):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    named = {
        word
        for text in pages.values()
        for words in commands(text)
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word
    }
    assert named <= targets


def test_every_command_that_is_shown_is_understood(pages):
    """Each is parsed, options and all, by the command line itself; nothing is run."""
    from secateur.cli import COMMANDS

    shown = {
        (page, *words[1:])
        for page, text in pages.items()
        for words in commands(text)
        if words[0] == "secateur" and "--help" not in words
    }
    unknown = [words for words in shown if words[1] not in COMMANDS or not _parses(words[1:])]
    assert shown
    assert not unknown


def _parses(words: tuple[str, ...]) -> bool:
    from cyclopts import App, CycloptsError

    from secateur.cli import COMMANDS

    app = App(name="secateur")
    app.command(f"secateur.commands.{COMMANDS[words[0]].function}", name=words[0])
    try:
        app.parse_args(list(words), exit_on_error=False, print_error=False)
    except CycloptsError:
        return False
    return True


@pytest.mark.parametrize("words", [("schema", "--no-such-option"), ("methods", "--jsn")])
def test_a_wrong_option_would_be_found(words):
    assert not _parses(words)


@pytest.fixture(scope="module")
def workspace(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder beside which the examples lie, as in a checkout."""
    folder = tmp_path_factory.mktemp("how-to")
    (folder / "examples").symlink_to(root / "examples")
    return folder


def _execute(kind: str, body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [sys.executable, "-c"]
    return subprocess.run(
        [*program, body],
        cwd=folder,
        env={**os.environ, "PATH": binaries},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.documents
def test_how_to_pages_run_from_top_to_bottom(root, workspace):
    for page in how_to_pages(root):
        for kind, body in blocks(page.read_text(encoding="utf-8"), "sh", "python"):
            done = _execute(kind, body, workspace)
            assert done.returncode == 0, f"{page.name}\n{body}\n{done.stdout}\n{done.stderr}"
