"""Golden inputs and answers of the reference, so that a target can prove itself.

``goldens.npz`` holds arrays named ``<case>/<kind>/<name>``; nothing in it is pickled.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array
from secateur.runtime.compare import SelectionReference
from secateur.runtime.npz import read_npz


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One batch and what the reference answers.

    ``inputs`` are those of the model as shipped, budgets included; ``forced`` the score biases
    that make the forced twin keep the reference's tokens; ``selections`` the reference's own
    choice at each site. ``kept`` (B, K) are the positions alive at the end, -1 for none, and
    ``token_outputs`` the outputs with a row for every token of the input: both are needed
    only where an output has a row per token.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    forced: Mapping[str, Array] = field(default_factory=dict)
    selections: Mapping[str, SelectionReference] = field(default_factory=dict)
    kept: Array | None = None
    token_outputs: frozenset[str] = frozenset()


def goldens_to_bytes(cases: Iterable[GoldenCase]) -> bytes:
    """Content of ``goldens.npz``."""
    arrays = {
        f"{number}/{kind}/{name}": array
        for number, case in enumerate(cases)
        for kind, name, array in _parts(case)
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_goldens(path: Path) -> tuple[GoldenCase, ...]:
    """Cases in the order they were written; BadInputError for a file that is none."""
    cases: dict[int, dict[tuple[str, str], Array]] = {}
    try:
        for key, array in read_npz(path, what="goldens").items():
            number, kind, name = key.split("/", 2)
            cases.setdefault(int(number), {})[kind, name] = array
        return tuple(_case(cases[number]) for number in sorted(cases))
    except (ValueError, KeyError) as error:
        raise BadInputError(
            "the goldens hold arrays that belong to no case",
            where=str(path),
            got=str(error),
            next_step="build the bundle again with goldens",
        ) from error


def _parts(case: GoldenCase) -> Iterator[tuple[str, str, Array]]:
    for name, array in case.inputs.items():
        yield "input", name, array
    for name, array in case.outputs.items():
        yield "output", name, array
    for name, array in case.forced.items():
        yield "forced", name, array
    for site, selection in case.selections.items():
        yield "score", site, selection.score
        yield "index", site, selection.index
        yield "valid", site, selection.valid
    if case.kept is not None:
        yield "kept", "", case.kept
    for name in sorted(case.token_outputs):
        yield "tokens", name, np.array(True)


def _case(parts: Mapping[tuple[str, str], Array]) -> GoldenCase:
    def of(kind: str) -> dict[str, Array]:
        return {name: array for (k, name), array in parts.items() if k == kind}

    scores, indices, valid = of("score"), of("index"), of("valid")
    return GoldenCase(
        inputs=of("input"),
        outputs=of("output"),
        forced=of("forced"),
        selections={
            site: SelectionReference(scores[site], indices[site], valid[site]) for site in scores
        },
        kept=parts.get(("kept", "")),
        token_outputs=frozenset(of("tokens")),
    )


__all__ = ["GoldenCase", "goldens_to_bytes", "read_goldens"]
