"""What is wrong with a build before it starts, said in the words of the user's model.

Builders find some of these late, some only as a warning, some at run time. *Source of the
limits: measurements with TensorRT-RTX 1.7.1; the TopK limit is also in NVIDIA's operator
reference for TopK.*
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from secateur.errors import BadInputError
from secateur.runtime.backend import EngineSpec, ShapeRange
from secateur.runtime.budgets import Ends, along, symbol_ranges
from secateur.runtime.datatypes import check_types
from secateur.runtime.onnx_outline import ModelOutline, NodeOutline
from secateur.runtime.sites import Site
from secateur.runtime.targets import Target

MAX_TOP_K = 3840
MAX_AXES = 8
MAX_ELEMENTS = 2**31 - 1
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
    sites = tuple(sites)
    for number, one in enumerate(spec.each()):
        with naming_profile(number, of=spec):
            _check_profile(outline, sites, one)
    check_types(outline, target)
    if target.backend == "rtx":
        _check_operators(outline)
        _check_capabilities(outline, target)


@contextmanager
def naming_profile(number: int, *, of: EngineSpec) -> Generator[None]:
    """Where there are several profiles, an error inside says which one it is about."""
    try:
        yield
    except BadInputError as error:
        if not of.more:
            raise
        place = f"profile {number} of {1 + len(of.more)}"
        raise BadInputError(
            error.what,
            where=f"{place}: {error.where}" if error.where else place,
            got=error.got,
            wanted=error.wanted,
            next_step=error.next_step,
        ) from error


def _check_profile(outline: ModelOutline, sites: tuple[Site, ...], one: EngineSpec) -> None:
    for name, span in (*one.profiles.items(), *one.shape_values.items()):
        span.check(name)
    _check_names(outline, one)
    check_profiles(outline, one)
    for name, span in one.profiles.items():
        _check_size(name, span)
    _check_shape_values(sites, outline, one)


def _check_size(name: str, span: ShapeRange) -> None:
    """TensorRT's tensors have at most 8 axes and fewer than 2^31 elements."""
    if len(span.high) > MAX_AXES:
        raise BadInputError(
            f"input {name!r} has too many axes",
            got=str(len(span.high)),
            wanted=f"at most {MAX_AXES}",
        )
    if math.prod(span.high) > MAX_ELEMENTS:
        raise BadInputError(
            f"input {name!r} may have too many elements",
            got=f"{list(span.high)}, {math.prod(span.high)} elements",
            wanted=f"at most {MAX_ELEMENTS}",
            next_step="lower the largest batch or length of the profile",
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
    for site in sites:
        if site.budget.input and site.budget.input not in spec.shape_values:
            raise BadInputError(
                f"the budget of site {site.name!r} has no range of values",
                where=f"input {site.budget.input!r}",
                next_step="give (min, opt, max), or take budgets.default_shape_values",
            )
        if site.budget.input:
            _check_amounts(site, spec.shape_values[site.budget.input])
    symbols = symbol_ranges(outline, spec.profiles)
    for stop in along(sites, symbols, spec.shape_values):
        if stop.site.budget.kind != "permille":
            _check_count(stop.site, stop.tokens, spec.shape_values.get(stop.site.budget.input))
        if stop.kept[2] > MAX_TOP_K:
            raise BadInputError(
                f"site {stop.site.name!r} may keep {stop.kept[2]} tokens; "
                f"TopK takes at most {MAX_TOP_K}",
                where=f"profile max N = {stop.tokens[2]}",
                wanted=f"K <= {MAX_TOP_K}",
                next_step="lower the largest N of the profile or the largest budget",
            )


def _check_amounts(site: Site, span: ShapeRange) -> None:
    """A budget is one number: a count of at least 1, or 1 to 1000 permille."""
    highest = _PER_MILLE if site.budget.kind == "permille" else span.high[0] if span.high else 0
    if len(span.low) != 1 or span.low[0] < 1 or span.high[0] > highest:
        raise BadInputError(
            f"the range of the budget of site {site.name!r} cannot be",
            where=f"input {site.budget.input!r}",
            got=f"min {span.low}, opt {span.usual}, max {span.high}",
            wanted="one number each, 1 to 1000 permille"
            if site.budget.kind == "permille"
            else "one number each, at least 1",
        )


def _check_count(site: Site, tokens: Ends, span: ShapeRange | None) -> None:
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
    "MAX_AXES",
    "MAX_ELEMENTS",
    "MAX_TOP_K",
    "UNSUPPORTED_BY_RTX",
    "check_build",
    "check_profiles",
    "describe",
    "naming_profile",
]
