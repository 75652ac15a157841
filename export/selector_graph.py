"""A selector as a small ONNX graph: signals in, ``score`` (B, N) out.

Only what the method computes is traced. Top-k, padding, protected tokens and the gather belong
to the pass that splices this graph into a model, so that every selector gets them in the same
way. Methods that decide the number kept, carry scores on or merge have more outputs.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.export.torch_export import from_torch
from secateur.models.selectors import Merge, Selection, Selector, resolve_selector
from secateur.models.selectors.core import Option

SELECTOR_KEY = "secateur.selector"
OPTIONS_KEY = "secateur.selector.options"
ORDER_KEY = "secateur.selector.order"
PROTECTED_KEY = "secateur.selector.protected"
ON_GRID_KEY = "secateur.selector.on_grid"

_TRACED = {"batch": 2, "tokens": 24, "kept": 8, "layers": 3}
_OTHER = 5
"""Size of axes that only a method knows, such as classes."""

_FLOATS = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
_ROWS = frozenset({"class_row", "class_rows", "last_row", "column_mean", "column_means", "full"})
_MERGE_INPUTS = ("index", "valid_kept")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a selector graph depends on: the sizes and the type at the site, and the opset.

    Attributes:
        heads: H of the keys and values.
        head_dim: Dh.
        width: D.
        dtype: Floating type of the signals.
        opset: ai.onnx version of the host.
        tokens: N where it is the same for every input: methods that need to know it while
            tracing (a grid) then work; None where it varies.
        query_heads: H of the queries; 0 for as many as ``heads``.
        protected: Leading tokens that always stay.
    """

    heads: int
    head_dim: int
    width: int
    dtype: ir.DataType = ir.DataType.FLOAT
    opset: int = 20
    tokens: int | None = None
    query_heads: int = 0
    protected: int = 1


def trace(spec: str, signature: Signature, options: Mapping[str, Option] | None = None) -> ir.Model:
    """Return the graph of a selector.

    Its inputs are the signals by name, then ``count`` (B,) if the method reads it, then, where
    tokens are merged, ``index`` (B, K) and ``valid_kept`` (B, K). Its outputs are ``score``
    (B, N), and where the method has them ``count_kept`` (B,), ``state`` (B, N), ``weights``
    (B, K', N) and ``valid_merged`` (B, K'). The tracing is done once per selector, options and
    signature; every call gets a copy of its own.

    Args:
        spec: name of a selector, or ``package.module:function``.
        signature: sizes and types at the site.
        options: options of the method that are not left at their default.

    Raises:
        BadInputError: unknown selector or option, or a method whose result is not a float32
            (B, N) that follows both dimensions.
        ParityError: ONNX Runtime and PyTorch disagree about its results.
    """
    return _traced(spec, signature, tuple(sorted((options or {}).items()))).clone()


@functools.lru_cache(maxsize=256)
def _traced(spec: str, signature: Signature, options: tuple[tuple[str, Option], ...]) -> ir.Model:
    selector = resolve_selector(spec, dict(options))
    axes = _input_axes(selector)
    sizes = _sizes(signature)
    inputs = {name: _example(name, axes[name], sizes, signature.dtype) for name in axes}
    net = _Module(selector, tuple(inputs), signature.protected)
    found = net(**inputs)
    _check_results(selector, found, inputs)
    fixed = {"heads", "query_heads", "head_dim", "width"}
    if signature.tokens is not None:
        fixed.add("tokens")
    dynamic = {
        name: {axis: dim for axis, dim in enumerate(dims) if dim not in fixed}
        for name, dims in axes.items()
    }
    torch.compiler.reset()  # a loop traced for another signature would bring its guards along
    model = from_torch(net, inputs, dynamic, opset=signature.opset)
    _check_graph(selector, model, tuple(inputs))
    model.metadata_props[SELECTOR_KEY] = spec
    model.metadata_props[OPTIONS_KEY] = json.dumps(dict(selector.options), sort_keys=True)
    model.metadata_props[ORDER_KEY] = net.order
    if selector.reads_protected:
        model.metadata_props[PROTECTED_KEY] = str(signature.protected)
    if selector.on_grid:
        model.metadata_props[ON_GRID_KEY] = "1"
    return model


def _input_axes(selector: Selector) -> dict[str, tuple[str, ...]]:
    """Return the axes of every input of the graph, in their order."""
    axes = {name: selector.axes(name) for name in selector.signals}
    if selector.reads_count:
        axes["count"] = ("batch",)
    if selector.combine is not None:
        reads = inspect.signature(selector.combine).parameters
        axes |= {name: ("batch", "kept") for name in _MERGE_INPUTS if name in reads}
    return axes


def _sizes(signature: Signature) -> dict[str, int]:
    tokens = signature.tokens or _TRACED["tokens"]
    return {
        **_TRACED,
        "tokens": tokens,
        "kept": min(_TRACED["kept"], tokens),
        "heads": signature.heads,
        "query_heads": signature.query_heads or signature.heads,
        "head_dim": signature.head_dim,
        "width": signature.width,
    }


class _Module(nn.Module):
    """A selector as a module whose forward has the names of the graph's inputs."""

    def __init__(self, selector: Selector, names: tuple[str, ...], protected: int) -> None:
        super().__init__()
        self.order = "spatial"
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

        def forward(**given: Tensor) -> dict[str, Tensor]:
            batch = next(iter(given.values())).shape[0]
            count = given.get("count", torch.zeros(batch, dtype=torch.int64))
            made = selector.decide(given, count, protected)
            self.order = made.order
            found = _selected(made)
            if selector.combine is not None:
                index, valid = (given.get(name, count) for name in _MERGE_INPUTS)
                found |= _merged(selector.merge(given, index, valid, protected))
            return found

        parameters = [inspect.Parameter(name, kind) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def _selected(made: Selection) -> dict[str, Tensor]:
    found = {"score": made.score}
    if made.count is not None:
        found["count_kept"] = made.count
    if made.state is not None:
        found["state"] = made.state
    return found


def _merged(made: Merge) -> dict[str, Tensor]:
    found = {"weights": made.weights}
    if made.valid is not None:
        found["valid_merged"] = made.valid
    return found


def _example(
    name: str, dims: tuple[str, ...], sizes: Mapping[str, int], dtype: ir.DataType
) -> Tensor:
    shape = [sizes.get(dim, _OTHER) for dim in dims]
    if name in {"valid", "valid_kept"}:
        return torch.ones(shape, dtype=torch.bool)
    if name == "count":
        return torch.full(shape, sizes["kept"], dtype=torch.int64)
    if name == "index":  # small numbers, so that they exist at the sizes of the checks
        return torch.arange(shape[1]).expand(shape).contiguous()
    if dtype not in _FLOATS:
        raise BadInputError(
            "a selector cannot read this type",
            got=dtype.name,
            wanted=", ".join(known.name for known in _FLOATS),
        )
    seeded = torch.Generator().manual_seed(sum(map(ord, name)))
    values = torch.randn(shape, generator=seeded)
    if name in _ROWS:
        values = values.softmax(dim=-1)
    return values.to(_FLOATS[dtype])


_RESULTS = {
    "score": ((torch.float32,), ("batch", "tokens")),
    "count_kept": ((torch.int64,), ("batch",)),
    "state": ((torch.float32,), ("batch", "tokens")),
}
"""Types and axes of what a selector may return; ``weights`` have an axis of their own."""


def _check_results(
    selector: Selector, found: Mapping[str, object], inputs: Mapping[str, Tensor]
) -> None:
    batch, tokens = _batch_and_tokens(selector, inputs)
    known = {"batch": batch, "tokens": tokens}
    for name, result in found.items():
        if name not in _RESULTS:
            continue
        dtypes, axes = _RESULTS[name]
        shape = tuple(known[axis] for axis in axes)
        right = isinstance(result, Tensor) and result.dtype in dtypes
        if not isinstance(result, Tensor) or not right or tuple(result.shape) != shape:
            raise _wrong_result(selector, name, result, shape)
        if result.is_floating_point() and bool(result.isnan().any()):
            raise BadInputError(
                f"selector {selector.name!r} gives NaN",
                got="NaN on finite signals",
                wanted="numbers",
            )


def _wrong_result(
    selector: Selector, name: str, result: object, shape: tuple[int, ...]
) -> BadInputError:
    got = type(result).__name__
    if isinstance(result, Tensor):
        got = f"{result.dtype} {list(result.shape)}"
    what = "one score per token" if name == "score" else f"{name} as it must be"
    dtype, axes = _RESULTS[name][0][0], ", ".join(_RESULTS[name][1])
    return BadInputError(
        f"selector {selector.name!r} does not give {what}",
        got=f"{got} where {list(shape)} are the sizes of ({axes})",
        wanted=f"{str(dtype).removeprefix('torch.')} ({axes})",
        next_step="reduce every other axis, and end with .float()" if name == "score" else "",
    )


def _batch_and_tokens(selector: Selector, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    for name in selector.signals:
        dims = selector.axes(name)
        if "tokens" in dims:
            return inputs[name].shape[0], inputs[name].shape[dims.index("tokens")]
    raise BadInputError(
        f"selector {selector.name!r} reads no signal that has tokens",
        got=", ".join(selector.signals),
        next_step="read `valid`, which every site can give",
    )


def _check_graph(selector: Selector, model: ir.Model, names: tuple[str, ...]) -> None:
    """Assert that the score follows both dimensions by name and that no signal was lost."""
    shape = model.graph.outputs[0].shape
    dims = [str(dim) for dim in shape] if shape is not None else []
    wanted = ["batch", "tokens"]
    if dims != wanted and not (len(dims) == 2 and dims[0] == "batch" and dims[1].isdigit()):
        raise BadInputError(
            f"the scores of selector {selector.name!r} do not follow its signals",
            got=f"[{', '.join(dims)}]",
            wanted=f"[{', '.join(wanted)}]",
            next_step="compute sizes from tensor shapes",
        )
    kept = tuple(str(value.name) for value in model.graph.inputs)
    if kept != names:
        raise BadInputError(
            f"selector {selector.name!r} lost signals while tracing",
            got=", ".join(kept),
            wanted=", ".join(names),
        )


__all__ = [
    "ON_GRID_KEY",
    "OPTIONS_KEY",
    "ORDER_KEY",
    "PROTECTED_KEY",
    "SELECTOR_KEY",
    "Signature",
    "trace",
]
