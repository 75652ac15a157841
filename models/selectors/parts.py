"""What several selectors compute: which tokens are patches, grids, and loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from secateur.errors import BadInputError

State = tuple[Tensor, ...]


def patches(valid: Tensor, protected: int) -> Tensor:
    """(B, N) bool -> (B, N) bool: valid tokens behind the first ``protected`` valid ones."""
    return valid & (valid.cumsum(dim=1) > protected)


def ordinals(patch: Tensor) -> Tensor:
    """(B, N) bool -> (B, N) int64: 0 for a sample's first patch, 1 for its second."""
    return patch.cumsum(dim=1) - 1


def cosines(rows: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N) float32: cosine of every pair; 0 with a row of zeros."""
    wide = rows.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    unit = wide / length.clamp(min=torch.finfo(torch.float32).tiny)
    product: Tensor = unit @ unit.transpose(1, 2)
    return product


def grid_width(tokens: int, given: int, *, method: str) -> int:
    """Return the number of patches in a row of the grid.

    Args:
        tokens: patches of a sample.
        given: the width that the user gave; 0 for a square grid.
        method: name for the message.

    Raises:
        BadInputError: no width is given and the patches fill no square, or the width is
            negative or does not divide their number.
    """
    width = given or math.isqrt(tokens)
    if width > 0 and (tokens % width == 0 if given else width * width == tokens):
        return width
    raise BadInputError(
        f"the patches fill no {'grid of that width' if given else 'square grid'}",
        where=f"selector {method!r}",
        got=f"{tokens} patches" + (f", grid_width {given}" if given else ""),
        wanted="height x width patches behind the protected tokens",
        next_step="give the option grid_width, and fix the number of tokens of the input",
    )


def repeat_while(proceed: Callable[..., Tensor], body: Callable[..., State], state: State) -> State:
    """Run ``state = body(*state)`` as long as ``proceed(*state)`` is true.

    Both may read other tensors too. In an exported graph this is one Loop, so that nothing
    fixes how often it runs.
    """
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.while_loop import while_loop

        made: State = while_loop(proceed, body, state)  # type: ignore[no-untyped-call]
        return made
    while bool(proceed(*state)):
        state = body(*state)
    return state


__all__ = ["cosines", "grid_width", "ordinals", "patches", "repeat_while"]
