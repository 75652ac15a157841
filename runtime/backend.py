"""What a backend is: it builds an engine from an ONNX file, and opens one to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.registry import Registry

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Run: TypeAlias = Callable[[Arrays], dict[str, Array]]
Engine: TypeAlias = bytes | Path

DEFAULT_WORKSPACE_BYTES = 4 << 30
DEFAULT_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Smallest, usual and largest shape of an input, or contents of a shape input.

    The three have one rank; every entry of ``low`` is at most that of ``usual``, and that
    at most that of ``high``. Engines are tuned for ``usual``.
    """

    low: tuple[int, ...]
    usual: tuple[int, ...]
    high: tuple[int, ...]

    @staticmethod
    def fixed(*sizes: int) -> ShapeRange:
        """The range that holds exactly one shape."""
        return ShapeRange(sizes, sizes, sizes)

    def check(self, name: str) -> None:
        """Raise BadInputError, naming the input, unless low <= usual <= high entry by entry."""
        got = f"min {self.low}, opt {self.usual}, max {self.high}"
        if not len(self.low) == len(self.usual) == len(self.high):
            raise BadInputError(
                "the three shapes of a profile differ in rank",
                where=f"profile of input {name!r}",
                got=got,
                wanted="min, opt and max of one rank",
            )
        for axis, (low, usual, high) in enumerate(
            zip(self.low, self.usual, self.high, strict=True)
        ):
            if not 0 <= low <= usual <= high:
                raise BadInputError(
                    "a profile is not ordered",
                    where=f"profile of input {name!r}, entry {axis}",
                    got=got,
                    wanted=f"0 <= min <= opt <= max, here {low}, {usual}, {high}",
                    next_step="opt is the size that you run most often; put it between the others",
                )


@dataclass(frozen=True, slots=True)
class Profile:
    """One set of ranges that an engine is tuned for: of shapes, and of budgets' contents."""

    shapes: Mapping[str, ShapeRange]
    values: Mapping[str, ShapeRange] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that ``from_json`` reads."""
        return {"shapes": _ranges_to_json(self.shapes), "values": _ranges_to_json(self.values)}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Profile:
        """The profile that ``to_json`` wrote."""
        return Profile(_ranges_from_json(record["shapes"]), _ranges_from_json(record["values"]))


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine must accept, and where it must run.

    ``profiles`` gives the range of shapes of every input with a dynamic axis;
    ``shape_values`` the range of the contents of every input that decides a shape (k, permille).
    They are the first profile; ``more`` are those after it, each with ranges of its own.
    """

    profiles: Mapping[str, ShapeRange] = field(default_factory=dict)
    shape_values: Mapping[str, ShapeRange] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    decomposable_attention: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S
    more: tuple[Profile, ...] = ()

    def each(self) -> tuple[EngineSpec, ...]:
        """For each profile the specification with that profile alone, in order."""
        others = (
            replace(self, profiles=one.shapes, shape_values=one.values, more=())
            for one in self.more
        )
        return replace(self, more=()), *others

    def with_each(self, specs: Sequence[EngineSpec]) -> EngineSpec:
        """The specification with the profiles of others, each of which has one; undoes ``each``."""
        more = tuple(Profile(one.profiles, one.shape_values) for one in specs[1:])
        first = specs[0]
        return replace(self, profiles=first.profiles, shape_values=first.shape_values, more=more)

    @property
    def all_profiles(self) -> tuple[Profile, ...]:
        """Every profile, in the engine's order."""
        return Profile(self.profiles, self.shape_values), *self.more

    def to_json(self) -> dict[str, Any]:
        """The JSON object that ``from_json`` reads."""
        return {
            "more_profiles": [one.to_json() for one in self.more],
            "profiles": _ranges_to_json(self.profiles),
            "shape_values": _ranges_to_json(self.shape_values),
            "compute_capabilities": list(self.compute_capabilities),
            "workspace_bytes": self.workspace_bytes,
            "decomposable_attention": self.decomposable_attention,
            "timeout_s": self.timeout_s,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> EngineSpec:
        """The specification that ``to_json`` wrote; an absent field has its default."""
        return EngineSpec(
            profiles=_ranges_from_json(record.get("profiles", {})),
            shape_values=_ranges_from_json(record.get("shape_values", {})),
            compute_capabilities=tuple(record.get("compute_capabilities", ())),
            workspace_bytes=int(record.get("workspace_bytes", DEFAULT_WORKSPACE_BYTES)),
            decomposable_attention=bool(record.get("decomposable_attention", True)),
            timeout_s=float(record.get("timeout_s", DEFAULT_TIMEOUT_S)),
            more=tuple(Profile.from_json(one) for one in record.get("more_profiles", ())),
        )


@dataclass(frozen=True, slots=True)
class Built:
    """An engine and its side-car: what it accepts and what it was made from and with."""

    engine: bytes
    record: Mapping[str, Any]


class Backend(Protocol):
    """Builds and opens engines. ``build`` may run anywhere that the target's library does."""

    def build(self, onnx_path: Path, spec: EngineSpec) -> bytes:
        """The engine for the ONNX file; BuildError when the library refuses it."""
        ...

    def session(self, engine: Engine) -> AbstractContextManager[Run]:
        """Open an engine (bytes or a file); inside, call it with arrays by input name."""
        ...


# Entries are classes: call one, with its options, to get a backend.
BACKENDS: Registry[Callable[..., Backend]] = Registry("backend")


def _ranges_to_json(ranges: Mapping[str, ShapeRange]) -> dict[str, list[list[int]]]:
    return {name: [list(r.low), list(r.usual), list(r.high)] for name, r in ranges.items()}


def _ranges_from_json(record: Mapping[str, Any]) -> dict[str, ShapeRange]:
    return {
        name: ShapeRange(tuple(low), tuple(usual), tuple(high))
        for name, (low, usual, high) in record.items()
    }


__all__ = [
    "BACKENDS",
    "DEFAULT_TIMEOUT_S",
    "DEFAULT_WORKSPACE_BYTES",
    "Array",
    "Arrays",
    "Backend",
    "Built",
    "Engine",
    "EngineSpec",
    "Profile",
    "Run",
    "ShapeRange",
]
