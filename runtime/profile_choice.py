"""Which of an engine's profiles takes a call, decided before anything is copied to the GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from secateur.errors import BadInputError
from secateur.runtime.backend import Arrays, Profile, ShapeRange

Sizes: TypeAlias = Mapping[str, tuple[int, ...]]


def sizes_of(arrays: Arrays, profiles: Sequence[Profile]) -> tuple[Sizes, Sizes]:
    """Shapes of the inputs, and contents of those whose contents the profiles limit."""
    by_value = {name for profile in profiles for name in profile.values}
    values = {n: tuple(int(v) for v in a.ravel()) for n, a in arrays.items() if n in by_value}
    return {n: tuple(a.shape) for n, a in arrays.items() if n not in by_value}, values


def choose_profile(profiles: Sequence[Profile], shapes: Sizes, values: Sizes) -> int:
    """Place of the profile that takes these shapes and values and is tuned nearest to them.

    Raises BadInputError, saying for each profile what does not fit, when none does.
    """
    misfits = [next(_misfits(profile, shapes, values), "") for profile in profiles]
    fitting = [place for place, misfit in enumerate(misfits) if not misfit]
    if fitting:
        return min(fitting, key=lambda place: _distance(profiles[place], shapes))
    raise BadInputError(
        "no profile of the engine takes these inputs",
        where="\n          ".join(f"profile {i}: {text}" for i, text in enumerate(misfits)),
        got=", ".join(f"{n} {list(s)}" for n, s in {**shapes, **values}.items()),
        wanted="shapes and budgets inside one profile",
        next_step="split the batch or pad, or build with a profile for such inputs",
    )


def advice(profiles: Iterable[Profile]) -> tuple[str, ...]:
    """What would make an engine faster: ranges so wide that one tuning cannot suit all of them."""
    found = []
    for profile in profiles:
        told: set[tuple[int, int, int]] = set()
        for name, span in profile.shapes.items():
            for axis, ends in enumerate(zip(span.low, span.usual, span.high, strict=True)):
                low, _, high = ends
                if high >= _WIDE * max(low, 1) and ends not in told:
                    told.add(ends)
                    found.append(_split_advice(f"{name}, axis {axis}", ends))
    return tuple(found)


_WIDE = 32


def _split_advice(where: str, ends: tuple[int, int, int]) -> str:
    low, usual, high = ends
    middle = round(math.sqrt(max(low, 1) * high))
    return (
        f"{where} ranges over {low}..{high}, and the engine is tuned for {usual} alone: if other "
        f"sizes matter too, give two profiles, {low}..{middle} and {middle}..{high}"
    )


def _misfits(profile: Profile, shapes: Sizes, values: Sizes) -> Iterator[str]:
    for kind, ranges, given in (
        ("", profile.shapes, shapes),
        ("value of ", profile.values, values),
    ):
        for name, got in given.items():
            span = ranges.get(name)
            if span is not None and not _fits(span, got):
                yield f"{kind}{name} {list(got)} is not in {list(span.low)}..{list(span.high)}"


def _fits(span: ShapeRange, got: tuple[int, ...]) -> bool:
    return len(got) == len(span.low) and all(
        low <= size <= high for low, size, high in zip(span.low, got, span.high, strict=True)
    )


def _distance(profile: Profile, shapes: Sizes) -> float:
    """How far shapes are from what the profile is tuned for: sum of log ratios of sizes."""
    return sum(
        abs(math.log(max(size, 1) / max(usual, 1)))
        for name, got in shapes.items()
        if name in profile.shapes
        for size, usual in zip(got, profile.shapes[name].usual, strict=True)
    )


__all__ = ["Sizes", "advice", "choose_profile", "sizes_of"]
