"""A selector as a small ONNX graph: signals in, ``score`` (B, N) out.

Only the score is traced. Top-k, padding, protected tokens and the gather belong to the pass
that splices this graph into a model, so that every selector gets them in the same way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.export.torch_export import from_torch
from secateur.models.selectors import SIGNALS, Selector, resolve_selector

SELECTOR_KEY = "secateur.selector"

_TRACED = {"batch": 2, "tokens": 5}
_FLOATS = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Signature:
    """What a selector graph depends on: the sizes and the type at the site, and the opset."""

    heads: int
    head_dim: int
    width: int
    dtype: ir.DataType = ir.DataType.FLOAT
    opset: int = 20


def trace(spec: str, signature: Signature) -> ir.Model:
    """Return the graph of a selector; inputs are named as its signals, in their order.

    The tracing is done once per selector and signature; every call gets a copy of its own.

    Args:
        spec: name of a selector, or ``package.module:function``.
        signature: heads, widths, floating type of the signals, and opset of the host.

    Raises:
        BadInputError: unknown selector, or one whose result is not a float32 (B, N) that
            follows both dimensions.
        ParityError: ONNX Runtime and PyTorch disagree about its scores.
    """
    return _traced(spec, signature).clone()


@functools.lru_cache(maxsize=64)
def _traced(spec: str, signature: Signature) -> ir.Model:
    selector = resolve_selector(spec)
    inputs = {name: _example(name, signature) for name in selector.signals}
    net = _Score(selector)
    _check_score(selector, net(**inputs)["score"])
    dynamic = {
        name: {axis: dim for axis, dim in enumerate(SIGNALS[name]) if dim in _TRACED}
        for name in selector.signals
    }
    model = from_torch(net, inputs, dynamic, opset=signature.opset)
    _check_graph(selector, model)
    model.metadata_props[SELECTOR_KEY] = spec
    return model


class _Score(nn.Module):
    """A selector as a module whose forward has the selector's own signature."""

    def __init__(self, selector: Selector) -> None:
        super().__init__()

        @functools.wraps(selector.score)
        def forward(**signals: Tensor) -> dict[str, Tensor]:
            return {"score": selector.score(**signals)}

        self.forward = forward


def _example(name: str, signature: Signature) -> Tensor:
    sizes = {
        **_TRACED,
        "heads": signature.heads,
        "head_dim": signature.head_dim,
        "width": signature.width,
    }
    shape = [sizes[dim] for dim in SIGNALS[name]]
    if name == "valid":
        return torch.ones(shape, dtype=torch.bool)
    if signature.dtype not in _FLOATS:
        raise BadInputError(
            "a selector cannot read this type",
            got=signature.dtype.name,
            wanted=", ".join(dtype.name for dtype in _FLOATS),
        )
    seeded = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=seeded)
    if name in {"class_row", "column_mean"}:
        values = values.softmax(dim=-1)
    return values.to(_FLOATS[signature.dtype])


def _check_score(selector: Selector, score: object) -> None:
    wanted = tuple(_TRACED.values())
    if (
        not isinstance(score, Tensor)
        or score.dtype != torch.float32
        or tuple(score.shape) != wanted
    ):
        got = (
            f"{score.dtype} {list(score.shape)}"
            if isinstance(score, Tensor)
            else type(score).__name__
        )
        raise BadInputError(
            f"selector {selector.name!r} does not give one score per token",
            got=f"{got} for batch and tokens {list(wanted)}",
            wanted="float32 (batch, tokens)",
            next_step="reduce every other axis, and end with .float()",
        )
    if bool(score.isnan().any()):
        raise BadInputError(
            f"selector {selector.name!r} gives NaN", got="NaN on finite signals", wanted="numbers"
        )


def _check_graph(selector: Selector, model: ir.Model) -> None:
    """Assert that the score follows both dimensions by name and that no signal was lost."""
    shape = model.graph.outputs[0].shape
    dims = [str(dim) for dim in shape] if shape is not None else []
    if dims != list(_TRACED):
        raise BadInputError(
            f"the scores of selector {selector.name!r} do not follow its signals",
            got=f"[{', '.join(dims)}]",
            wanted=f"[{', '.join(_TRACED)}]",
            next_step="compute sizes from tensor shapes",
        )
    names = tuple(str(value.name) for value in model.graph.inputs)
    if names != selector.signals:
        raise BadInputError(
            f"selector {selector.name!r} lost signals while tracing",
            got=", ".join(names),
            wanted=", ".join(selector.signals),
        )


__all__ = ["SELECTOR_KEY", "Signature", "trace"]
