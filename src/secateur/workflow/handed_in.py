"""Signals that a selection takes as inputs of the graph, such as the embedding of a question.

A recipe's ``signals: {text_embedding: input:512}`` makes the input ``<site>.text_embedding``
(B, 512), which the dense model does not have: data gives it beside the model's own inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array
from secateur.workflow.data import Samples

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.models.reference import TokenSite
    from secateur.workflow.selecting import Select

_NEW = "input:"

Shapes = dict[str, tuple[int, ...]]


def handed_in(selections: Iterable[Select]) -> Shapes:
    """Return the inputs that selections make, with their sizes behind the batch."""
    return {
        f"{one.site}.{signal}": _sizes(signal, source)
        for one in selections
        for signal, source in one.signals.items()
        if source.startswith(_NEW)
    }


def _sizes(signal: str, source: str) -> tuple[int, ...]:
    dims = source.removeprefix(_NEW).split("x")
    if not all(dim.isdigit() and int(dim) for dim in dims):
        raise BadInputError(
            f"a new input for the signal {signal!r} needs its width",
            got=source,
            wanted=f"{_NEW}<number>, such as {_NEW}512, or {_NEW}5x37",
        )
    return tuple(map(int, dims))


def set_beside(samples: Samples, shapes: Shapes, *, where: str) -> Samples:
    """Take what selections are handed out of the model's own inputs, and put it beside them.

    Args:
        samples: with these arrays among the others; without data, random ones are made.
        shapes: see ``handed_in``.
        where: what the data is called; "" where there is none.

    Raises:
        BadInputError: the data lacks one, or it has another shape.
    """
    if not shapes:
        return samples
    rng = np.random.default_rng(0)
    own, beside = [], []
    for arrays in samples.arrays:
        made: dict[str, Array] = {}
        for name, sizes in shapes.items():
            found = arrays.get(name)
            if found is None and not where:
                found = rng.standard_normal((1, *sizes), dtype=np.float32)
            made[name] = _checked(name, found, sizes, where)
        own.append({name: array for name, array in arrays.items() if name not in shapes})
        beside.append(made)
    return replace(samples, arrays=tuple(own), beside=tuple(beside))


def _checked(name: str, array: Array | None, sizes: tuple[int, ...], where: str) -> Array:
    if array is not None and array.shape == (1, *sizes):
        return array.astype(np.float32)
    raise BadInputError(
        f"the data has no array for input {name!r}, which a selection is handed",
        where=where,
        got="nothing" if array is None else f"{list(array.shape)} a sample",
        wanted=f"{[1, *sizes]} a sample, in the .npz or from the loader",
        next_step="texts and pictures alone say nothing of it: data: {npz: ...} or {loader: ...}",
    )


def given_apart(
    tensors: Mapping[str, Tensor], sites: Sequence[TokenSite]
) -> tuple[dict[str, Tensor], tuple[TokenSite, ...]]:
    """Split a batch into the module's own inputs and what sites are handed.

    Raises:
        BadInputError: the batch lacks what a site is handed.
    """
    own, found = dict(tensors), []
    for site in sites:
        given = dict(site.given)
        for signal, source in site.given.items():
            name = f"{site.site}.{signal}"
            if not isinstance(source, str) or not source.startswith(_NEW):
                continue
            if name not in tensors:
                raise BadInputError(
                    f"the batch has no array for input {name!r}, which a selection is handed",
                    where=f"site {site.site!r}",
                    got=", ".join(tensors),
                )
            given[signal] = tensors[name]
            own.pop(name, None)
        found.append(replace(site, given=given))
    return own, tuple(found)


__all__ = ["Shapes", "given_apart", "handed_in", "set_beside"]
