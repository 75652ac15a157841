"""Every error a user can meet, with the exit code that the command line gives it."""

from __future__ import annotations

from typing import ClassVar


class SecateurError(Exception):
    """What went wrong, where, what was got and wanted, and what to do next.

    The parts are kept apart so that the command line, a report and a test can
    show or check each of them; ``str(error)`` joins them in that order.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        got: str = "",
        wanted: str = "",
        next_step: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.wanted = wanted
        self.next_step = next_step
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where:  {self.where}")
        if self.got:
            parts.append(f"  got:    {self.got}")
        if self.wanted:
            parts.append(f"  wanted: {self.wanted}")
        if self.next_step:
            parts.append(f"  next:   {self.next_step}")
        return "\n".join(parts)


class BadInputError(SecateurError):
    """A file, a recipe, an argument or an array that cannot be used."""


class PreconditionError(SecateurError):
    """A pass refuses a model; the message names the node and the reason."""


class ParityError(SecateurError):
    """Two results that had to agree do not, or a target was missed."""

    exit_code: ClassVar[int] = 1


class MissingDependencyError(SecateurError):
    """An optional package is not installed; ``next_step`` is the install command."""

    exit_code: ClassVar[int] = 3


class BuildError(SecateurError):
    """A backend refused a graph or its builder died."""

    exit_code: ClassVar[int] = 4


__all__ = [
    "BadInputError",
    "BuildError",
    "MissingDependencyError",
    "ParityError",
    "PreconditionError",
    "SecateurError",
]
