"""A named table of things of one kind: op rules, selectors, criteria, backends."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from secateur.errors import BadInputError

T = TypeVar("T")
Registered = TypeVar("Registered")


class Registry(Mapping[str, T], Generic[T]):
    """Names to entries, in the order of registration; a name is given once."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[Registered], Registered]:
        """Enter the decorated thing under each of the names."""

        def enter(entry: Registered) -> Registered:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self._kind} {name!r} is registered twice")
                self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        close = difflib.get_close_matches(name, self._entries, n=1)
        raise BadInputError(
            f"unknown {self._kind} {name!r}",
            wanted="one of " + ", ".join(sorted(self._entries)),
            next_step=f"did you mean {close[0]!r}?" if close else "",
        )

    def find(self, name: str) -> T | None:
        """Return the entry of that name, None where there is none."""
        return self._entries.get(name)

    def table(self) -> dict[str, T]:
        """Return the entries themselves, for a loop that looks thousands up; not to be changed."""
        return self._entries

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


__all__ = ["Registry"]
