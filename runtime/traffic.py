"""Profiles from requests as they came: shapes are recorded while a bundle runs.

A record is a text file with one JSON object a line: the shape of every input, and the value of
every budget, ``{"shapes": {"input_ids": [4, 37]}, "values": {"encoder.layer.1.k": [20]}}``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import BadInputError
from secateur.runtime.backend import Arrays, Profile, ShapeRange
from secateur.runtime.profile_choice import Sizes

MAX_PROFILES = 16


@dataclass(frozen=True, slots=True)
class Request:
    """Shapes of a request's inputs, and contents of its budgets."""

    shapes: Sizes
    values: Sizes


def record_request(file: Path, arrays: Arrays, budgets: Iterable[str]) -> None:
    """Append one request to a record; ``budgets`` are the inputs whose contents decide shapes."""
    chosen = set(budgets)
    line = {
        "shapes": {n: list(a.shape) for n, a in arrays.items() if n not in chosen},
        "values": {n: a.ravel().tolist() for n, a in arrays.items() if n in chosen},
    }
    with file.open("a", encoding="utf-8") as record:
        record.write(json.dumps(line) + "\n")


def read_traffic(file: Path) -> tuple[Request, ...]:
    """The requests of a record; BadInputError, with the line, for what is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(
            "the recorded traffic cannot be read", where=str(file), got=str(error)
        ) from error
    requests = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            requests.append(_request(line, f"{file}, line {number}"))
    if not requests:
        raise BadInputError(
            "the recorded traffic holds no request",
            where=str(file),
            next_step="python -m secateur.runtime run BUNDLE --inputs X.npz --record FILE",
        )
    return tuple(requests)


def profiles_from_traffic(requests: Sequence[Request], count: int) -> tuple[Profile, ...]:
    """At most ``count`` profiles that together take every request, tuned for the usual ones.

    Requests are divided where one dimension spans the largest ratio, at its geometric middle,
    until there are enough. Inside a profile each dimension's opt is its most frequent size.
    Ranges of budgets go from the smallest to the largest value seen.
    """
    if not 1 <= count <= MAX_PROFILES:
        raise BadInputError(
            "a strange number of profiles", got=str(count), wanted=f"1 to {MAX_PROFILES}"
        )
    _check_uniform(requests)
    groups: list[list[Request]] = [list(requests)]
    while len(groups) < count:
        widest = max(groups, key=lambda group: _widest(group)[0])
        ratio, name, axis = _widest(widest)
        if ratio <= 1.0:
            break
        groups.remove(widest)
        groups += _divided(widest, name, axis)
    made = [_profile(group) for group in groups]
    return tuple(sorted(made, key=_volume))


def _request(line: str, where: str) -> Request:
    try:
        record: Mapping[str, Any] = json.loads(line)
        return Request(_sizes(record["shapes"]), _sizes(record.get("values", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            "a line of the recorded traffic is no request",
            where=where,
            got=f"{type(error).__name__}: {error}",
            wanted='{"shapes": {"input_ids": [4, 37]}, "values": {}}',
        ) from error


def _sizes(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {str(name): tuple(int(size) for size in sizes) for name, sizes in record.items()}


def _check_uniform(requests: Sequence[Request]) -> None:
    """Every request names the same inputs, with the same number of axes."""

    def form(request: Request) -> dict[str, int]:
        return {n: len(s) for n, s in {**request.shapes, **request.values}.items()}

    first = form(requests[0])
    for number, request in enumerate(requests):
        if form(request) != first:
            raise BadInputError(
                "the recorded requests do not have the same inputs",
                where=f"request {number}",
                got=str(form(request)),
                wanted=f"axes by input {first}",
                next_step="record the requests of one model only",
            )


def _widest(group: Sequence[Request]) -> tuple[float, str, int]:
    """The largest ratio between sizes of one axis, its input and axis."""
    spans = [(1.0, "", 0)]
    for name, shape in group[0].shapes.items():
        for axis in range(len(shape)):
            sizes = [request.shapes[name][axis] for request in group]
            spans.append((max(sizes) / max(min(sizes), 1), name, axis))
    return max(spans, key=lambda span: span[0])


def _divided(group: Sequence[Request], name: str, axis: int) -> list[list[Request]]:
    sizes = [request.shapes[name][axis] for request in group]
    middle = math.sqrt(max(min(sizes), 1) * max(sizes))
    small = [request for request in group if request.shapes[name][axis] <= middle]
    return [small, [request for request in group if request.shapes[name][axis] > middle]]


def _profile(group: Sequence[Request]) -> Profile:
    return Profile(
        {name: _span([r.shapes[name] for r in group]) for name in group[0].shapes},
        {name: _span([r.values[name] for r in group]) for name in group[0].values},
    )


def _span(rows: Sequence[tuple[int, ...]]) -> ShapeRange:
    columns = list(zip(*rows, strict=True))
    usual = tuple(Counter(sorted(column)).most_common(1)[0][0] for column in columns)
    return ShapeRange(tuple(map(min, columns)), usual, tuple(map(max, columns)))


def _volume(profile: Profile) -> int:
    return sum(math.prod(span.high) for span in profile.shapes.values())


__all__ = ["MAX_PROFILES", "Request", "profiles_from_traffic", "read_traffic", "record_request"]
