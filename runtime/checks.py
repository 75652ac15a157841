"""What is wrong with a build before it starts, said in the words of the user's model.

Builders find some of these late, some only as a warning, some at run time. *Source of the
limits: measurements with TensorRT-RTX 1.7.1; the TopK limit is also in NVIDIA's operator
reference for TopK.*
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from secateur.errors import BadInputError
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.expressions import evaluate
from secateur.runtime.onnx_outline import ModelOutline, NodeOutline
from secateur.runtime.sites import Site
from secateur.runtime.targets import Target

MAX_TOP_K = 3840
_PER_MILLE = 1000
_ENDS = ("min", "opt", "max")

# Operators that TensorRT-RTX 1.7 lacks whatever their inputs, and what to use instead.
UNSUPPORTED_BY_RTX = {
    "NonZero": "select with TopK and gather: a graph for RTX has no data-dependent size",
    "Compress": "select with TopK and gather",
    "Unique": "compute it outside the graph",
    "DynamicQuantizeLinear": "quantise with fixed scales (QuantizeLinear, DequantizeLinear)",
    "MatMulInteger": "use QuantizeLinear and DequantizeLinear around a MatMul",
    "QLinearMatMul": "use QuantizeLinear and DequantizeLinear around a MatMul",
    "BiasGelu": "build from the graph before ONNX Runtime's optimiser fused it",
    "FastGelu": "build from the graph before ONNX Runtime's optimiser fused it",
    "SkipLayerNormalization": "build from the graph before ONNX Runtime's optimiser fused it",
}


def check_build(
    outline: ModelOutline, sites: Iterable[Site], spec: EngineSpec, target: Target
) -> None:
    """Raise BadInputError for the first thing that the target's builder would stumble on."""
    for name, span in (*spec.profiles.items(), *spec.shape_values.items()):
        span.check(name)
    _check_names(outline, spec)
    check_profiles(outline, spec)
    _check_shape_values(tuple(sites), outline, spec)
    if target.backend == "rtx":
        _check_operators(outline)
        _check_capabilities(outline, target)


def default_shape_values(
    outline: ModelOutline, sites: Iterable[Site], profiles: Mapping[str, ShapeRange]
) -> dict[str, ShapeRange]:
    """Ranges for the budget inputs that follow from the profiles.

    A count runs from the protected tokens over the site's default to the largest N, and the
    usual one never grows from site to site; a share runs from 1 to 1000 permille.
    """
    found: dict[str, ShapeRange] = {}
    symbols = symbol_ranges(outline, profiles)
    upstream: tuple[int, ...] | None = None
    for site in sites:
        tokens = tokens_at(site, symbols, upstream)
        usual = min(max(site.budget.default, site.protected), tokens[1])
        if site.budget.input and site.budget.kind == "permille":
            found[site.budget.input] = ShapeRange((1,), (site.budget.default,), (_PER_MILLE,))
        elif site.budget.input:
            low = min(max(1, site.protected), usual)
            found[site.budget.input] = ShapeRange((low,), (usual,), (tokens[2],))
        upstream = kept_at(site, tokens, found)
    return found


def symbol_ranges(
    outline: ModelOutline, profiles: Mapping[str, ShapeRange]
) -> dict[str, tuple[int, int, int]]:
    """Smallest, usual and largest size of every named dimension; names must agree."""
    found: dict[str, tuple[int, int, int]] = {}
    origin: dict[str, str] = {}
    for info in outline.inputs:
        span = profiles.get(info.name)
        if span is None or len(span.low) != len(info.shape):
            continue
        ends = zip(info.shape, span.low, span.usual, span.high, strict=True)
        for size, low, usual, high in ends:
            if not isinstance(size, str) or not size or info.optional:
                continue
            first = found.setdefault(size, (low, usual, high))
            if first != (low, usual, high):
                raise BadInputError(
                    f"two profiles give dimension {size!r} different ranges",
                    where=f"inputs {origin[size]!r} and {info.name!r}",
                    got=f"{first} and {(low, usual, high)}",
                    wanted="one range (min, opt, max) for one dimension",
                )
            origin.setdefault(size, info.name)
    return found


def tokens_at(
    site: Site, symbols: Mapping[str, tuple[int, int, int]], upstream: tuple[int, ...] | None
) -> tuple[int, ...]:
    """N at a site at the three ends of the profile.

    Below another site it is at most what that one keeps; the recorded expression decides
    where it can be evaluated with the input dimensions alone.
    """
    sizes = [
        evaluate(site.tokens, {name: ends[end] for name, ends in symbols.items()})
        for end in range(len(_ENDS))
    ]
    known = [size for size in sizes if size is not None]
    if len(known) == len(_ENDS):
        return tuple(min(n, k) for n, k in zip(known, upstream or known, strict=True))
    if upstream is not None:
        return upstream
    raise BadInputError(
        f"the number of tokens at site {site.name!r} cannot be told from the profiles",
        got=f"N = {site.tokens!r}; ranges for {', '.join(symbols) or 'no dimension'}",
        wanted="a range for every dimension in that expression",
        next_step="give a profile for every dynamic input",
    )


def kept_at(
    site: Site, tokens: tuple[int, ...], shape_values: Mapping[str, ShapeRange]
) -> tuple[int, ...]:
    """K of a site at the three ends of the profile, after the clamp to N."""
    default = (site.budget.default,)
    span = shape_values.get(site.budget.input, ShapeRange(default, default, default))
    amounts = (span.low[0], span.usual[0], span.high[0])
    if site.budget.kind == "permille":
        wanted = [-(-n * a // _PER_MILLE) for n, a in zip(tokens, amounts, strict=True)]
    else:
        wanted = list(amounts)
    return tuple(
        max(min(k, n), min(site.protected, n)) for k, n in zip(wanted, tokens, strict=True)
    )


def _check_names(outline: ModelOutline, spec: EngineSpec) -> None:
    known = {info.name for info in outline.inputs}
    for kind, names in (("profile", spec.profiles), ("range of values", spec.shape_values)):
        for name in names:
            if name not in known:
                raise BadInputError(
                    f"there is a {kind} for {name!r}, but the model has no such input",
                    wanted="one of " + ", ".join(sorted(known)),
                )


def check_profiles(outline: ModelOutline, spec: EngineSpec) -> None:
    """Every dynamic input has a range of its rank that holds its static sizes."""
    for info in outline.inputs:
        dynamic = any(isinstance(size, str) for size in info.shape)
        span = spec.profiles.get(info.name)
        if span is None:
            if dynamic and not info.optional:
                raise BadInputError(
                    f"input {info.name!r} has a dynamic shape and no range for it",
                    got=info.describe(),
                    wanted="min, opt and max shape",
                    next_step=f"profile: {{{info.name}: [min, opt, max]}}, opt being what you "
                    "run most often",
                )
            continue
        for end, shape in zip(_ENDS, (span.low, span.usual, span.high), strict=True):
            fits = len(shape) == len(info.shape) and all(
                isinstance(size, str) or size == got
                for size, got in zip(info.shape, shape, strict=True)
            )
            if not fits:
                raise BadInputError(
                    f"the {end} shape of input {info.name!r} does not fit the model",
                    got=str(list(shape)),
                    wanted=info.describe(),
                )


def _check_shape_values(sites: tuple[Site, ...], outline: ModelOutline, spec: EngineSpec) -> None:
    """K <= N and K <= 3840 at every site, for every budget that the profile allows."""
    symbols = symbol_ranges(outline, spec.profiles)
    upstream: tuple[int, ...] | None = None
    for site in sites:
        tokens = tokens_at(site, symbols, upstream)
        span = spec.shape_values.get(site.budget.input) if site.budget.input else None
        if site.budget.input and span is None:
            raise BadInputError(
                f"the budget of site {site.name!r} has no range of values",
                where=f"input {site.budget.input!r}",
                next_step="give (min, opt, max), or take checks.default_shape_values",
            )
        if site.budget.kind != "permille":
            _check_count(site, tokens, span)
        upstream = kept_at(site, tokens, spec.shape_values)
        if upstream[2] > MAX_TOP_K:
            raise BadInputError(
                f"site {site.name!r} may keep {upstream[2]} tokens; TopK takes at most {MAX_TOP_K}",
                where=f"profile max N = {tokens[2]}",
                wanted=f"K <= {MAX_TOP_K}",
                next_step="lower the largest N of the profile or the largest budget",
            )


def _check_count(site: Site, tokens: tuple[int, ...], span: ShapeRange | None) -> None:
    counts = (span.low[0], span.usual[0], span.high[0]) if span else (site.budget.default,) * 3
    for end in (1, 2):
        if counts[end] > tokens[end]:
            raise BadInputError(
                f"site {site.name!r} is to keep more tokens than it has",
                where=f"profile {_ENDS[end]}",
                got=f"K = {counts[end]}",
                wanted=f"K <= N = {tokens[end]}",
                next_step="lower the budget, or raise the profile's number of tokens",
            )


def _check_operators(outline: ModelOutline) -> None:
    for node in outline.nodes:
        if node.operator in UNSUPPORTED_BY_RTX:
            raise BadInputError(
                f"TensorRT-RTX has no {node.operator}",
                where=describe(node),
                next_step=UNSUPPORTED_BY_RTX[node.operator],
            )


def _check_capabilities(outline: ModelOutline, target: Target) -> None:
    """SM75 has no fp32 matrix product; one such target fails the whole list."""
    if "sm75" not in target.capabilities:
        return
    for node in outline.nodes:
        if node.operator in {"MatMul", "Gemm"} and "float32" in _operand_dtypes(node, outline):
            raise BadInputError(
                "sm75 (Turing) cannot multiply fp32 matrices under TensorRT-RTX",
                where=describe(node),
                got=str(target),
                wanted="fp16 weights, or targets from sm80 on",
                next_step="set precision: fp16, or leave sm75 out",
            )


def _operand_dtypes(node: NodeOutline, outline: ModelOutline) -> set[str]:
    dtypes = {outline.constants[name] for name in node.inputs if name in outline.constants}
    inputs = {info.name: info.dtype for info in outline.inputs}
    return dtypes | {inputs[name] for name in node.inputs if name in inputs}


def describe(node: NodeOutline) -> str:
    """A node as a user knows it: name, operator and module."""
    text = f"node {node.name or node.outputs[0]!r} ({node.operator})"
    return f"{text} of module {node.module}" if node.module else text


__all__ = [
    "MAX_TOP_K",
    "UNSUPPORTED_BY_RTX",
    "check_build",
    "check_profiles",
    "default_shape_values",
    "describe",
    "kept_at",
    "symbol_ranges",
    "tokens_at",
]
