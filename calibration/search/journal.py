"""What a search has evaluated, on disk: an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secateur.errors import BadInputError

Genes = tuple[int, ...]
Values = tuple[float, ...]


class Journal:
    """Results by genes; a line of JSON each, written at once.

    A search is deterministic given its seed, so that it finds its way again by asking for the
    same genes in the same order, and what the journal holds is not computed twice.
    """

    def __init__(self, path: Path | None, subject: Mapping[str, object]) -> None:
        """Open a journal, or begin one; None keeps results in memory alone.

        Raises:
            BadInputError: the file is no journal, or of a search about something else.
        """
        self._path = path
        self._known: dict[Genes, Values] = {}
        self._facts: dict[str, Any] = {}
        text = json.dumps(subject, sort_keys=True, default=str)
        self._head = {"search": hashlib.sha256(text.encode()).hexdigest()[:16]}
        if path is None:
            return
        if path.exists():
            self._read(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._head) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._known)

    def find(self, genes: Genes) -> Values | None:
        """What these genes gave, None where they were not evaluated."""
        return self._known.get(genes)

    def record(self, genes: Genes, values: Values) -> None:
        """Keep a result, on disk before this returns."""
        self._known[genes] = values
        self._append({"genes": genes, "values": values})

    def once(self, name: str, make: Callable[[], object]) -> Any:  # noqa: ANN401 (any JSON)
        """What ``make`` returned when the search began: later measurements would not compare."""
        if name not in self._facts:
            self._facts[name] = make()
            self._append({"name": name, "value": self._facts[name]})
        return self._facts[name]

    def _append(self, record: Mapping[str, object]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            head = json.loads(lines[0])
            records = [json.loads(line) for line in lines[1:-1]]
            records += _last(lines[1:][-1:])
        except (IndexError, ValueError) as error:
            raise BadInputError(
                "the journal cannot be read", where=str(path), got=str(error)
            ) from None
        if head != self._head:
            raise BadInputError(
                "the journal is of another search",
                where=str(path),
                got=str(head.get("search") if isinstance(head, dict) else head),
                wanted=self._head["search"],
                next_step="the model, the data or the options have changed: name another file",
            )
        self._facts = {r["name"]: r["value"] for r in records if "name" in r}
        self._known = {tuple(r["genes"]): tuple(r["values"]) for r in records if "genes" in r}
        whole = [json.dumps(record) for record in (head, *records)]
        path.write_text("\n".join(whole) + "\n", encoding="utf-8")  # without a line cut short


def _last(lines: list[str]) -> list[dict[str, Any]]:
    """The last line, unless a kill cut it off."""
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return []


__all__ = ["Genes", "Journal", "Values"]
