"""Reading and writing by position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call, Integers


def _from_start(positions: Tensor, size: int) -> Tensor:
    """Positions may be counted from the end, which gather and scatter of torch do not know."""
    return torch.where(positions < 0, positions + size, positions)


@TORCH_OPS.register("Gather")
def gather(call: Call) -> Tensor:
    """(A, N, B), positions (...) -> (A, ..., B); positions in a table of weights start at 0."""
    x, positions = call.tensor(0), call.inputs[1]
    axis = call.get_int("axis", 0) % x.dim()
    if isinstance(positions, Integers):
        size = x.shape[axis]
        known = [p + size if p < 0 else p for p in positions.values]
        if positions.is_scalar:
            return x.select(axis, known[0])
        return x.index_select(axis, Integers(tuple(known)).tensor(x.device))
    index = call.tensor(1).long()
    if axis == 0 and x.dim() == 2 and call.is_stored(0):
        return F.embedding(index, x)
    flat = x.index_select(axis, _from_start(index, x.shape[axis]).reshape(-1))
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@TORCH_OPS.register("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """(...), positions (...) -> the positions' shape."""
    x = call.tensor(0)
    axis = call.get_int("axis", 0) % x.dim()
    return x.gather(axis, _from_start(call.tensor(1).long(), x.shape[axis]))


def _index(x: Tensor, positions: Tensor, batch_dims: int) -> tuple[Tensor, ...]:
    """Split (..., R) positions into one index per axis, behind those of the batch axes."""
    own = list(positions.long().unbind(-1))
    shape = positions.shape[:-1]
    batch = [
        torch.arange(x.shape[axis], device=x.device).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
        for axis in range(batch_dims)
    ]
    return (*batch, *own)


@TORCH_OPS.register("GatherND")
def gather_nd(call: Call) -> Tensor:
    """(B, ...), positions (B, ..., R) -> (B, ..., the axes behind the R indexed ones)."""
    x = call.tensor(0)
    return x[_index(x, call.tensor(1), call.get_int("batch_dims", 0))]


@TORCH_OPS.register("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """(...), positions (..., R), updates -> (...)."""
    kind = call.get_str("reduction", "none")
    if kind not in {"none", "add"}:
        raise call.refuse(f"reduction {kind!r}")
    x, updates = call.tensor(0), call.tensor(2)
    return x.index_put(_index(x, call.tensor(1), 0), updates, accumulate=kind == "add")


_SCATTERS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@TORCH_OPS.register("ScatterElements")
def scatter_elements(call: Call) -> Tensor:
    """(...), positions (...), updates (...) -> (...)."""
    x, updates, kind = call.tensor(0), call.tensor(2), call.get_str("reduction", "none")
    axis = call.get_int("axis", 0) % x.dim()
    index = _from_start(call.tensor(1).long(), x.shape[axis])
    if kind == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _SCATTERS[kind])


@TORCH_OPS.register("OneHot")
def one_hot(call: Call) -> Tensor:
    """(...), depth, values (off, on) -> (..., depth) with the new axis at ``axis``."""
    positions, values = call.tensor(0).long(), call.tensor(2)
    depth = call.ints(1)[0]
    rank = positions.dim() + 1
    axis = call.get_int("axis", -1) % rank
    classes = torch.arange(depth, device=positions.device)
    classes = classes.reshape([-1 if i == axis else 1 for i in range(rank)])
    return torch.where(
        _from_start(positions, depth).unsqueeze(axis) == classes, values[1], values[0]
    )


@TORCH_OPS.register("NonZero")
def non_zero(call: Call) -> Tensor:
    """(...) -> int64 (rank, n)."""
    return call.tensor(0).nonzero().T
