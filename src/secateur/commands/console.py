"""Tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def stdout() -> Console:
    """Where results go; wide enough that a piped table is not cut."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns whose name ends in ``>`` are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.removesuffix(">"), justify="right" if column.endswith(">") else "left"
        )
    for row in rows:
        table.add_row(*(_cell(item) for item in row))
    stdout().print(table)


def print_line(text: str) -> None:
    """A line of plain text on stdout."""
    sys.stdout.write(text + "\n")


def short_path(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


class Steps:
    """Tells on stderr what is going on: a spinner, then a line with the seconds it took."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, quiet=quiet)

    @contextmanager
    def step(self, title: str) -> Generator[None]:
        """Show ``title`` while the body runs."""
        start = time.perf_counter()
        with self._console.status(f"{title} ..."):
            yield
        seconds = time.perf_counter() - start
        self._console.print(f"[green]✓[/green] {title} [dim]({seconds:.1f} s)[/dim]")

    @contextmanager
    def telling(self, logger: str) -> Generator[None]:
        """Note what a logger says, its progress included, while the body runs."""
        handler, heard = logging.Handler(logging.INFO), logging.getLogger(logger)
        handler.emit = lambda record: self.note(record.getMessage())  # type: ignore[method-assign]
        before = heard.level
        heard.addHandler(handler)
        heard.setLevel(logging.INFO)
        try:
            yield
        finally:
            heard.removeHandler(handler)
            heard.setLevel(before)

    def note(self, text: str) -> None:
        """A line worth reading between two steps."""
        self._console.print(f"  [dim]{text}[/dim]")


def _cell(item: object) -> Any:  # noqa: ANN401 (rich takes text or a renderable)
    from rich.text import Text

    return Text(f"{item:.3g}" if isinstance(item, float) else str(item))


__all__ = ["Steps", "print_json", "print_line", "print_table", "short_path", "stdout"]
