"""Where two models part: the first layer whose output differs, by the user's module name.

Polygraphy runs the graphs with every value marked as an output and compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from secateur.calibration.activations import with_outputs
from secateur.errors import BadInputError, MissingDependencyError
from secateur.export.onnx_file import save
from secateur.graph_passes.names import module_path
from secateur.runtime.backend import Array, Arrays
from secateur.runtime.compare import relative_error
from secateur.workflow.module_outputs import boundaries, run_torch

if TYPE_CHECKING:
    from torch import nn

    from secateur.models.reference import TokenSite


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """One value that both models compute."""

    value: str
    """Its name in the graph."""
    module: str
    """Path of the user's module that computes it, or the node's name where none is known."""
    operator: str
    relative_error: float
    passed: bool


@dataclass(frozen=True, slots=True)
class BisectReport:
    """What was compared, in graph order."""

    checks: tuple[LayerCheck, ...]
    skipped: int
    """Values of other shapes in the two models: what was removed or selected."""
    bound: float
    advice: str

    @property
    def first_bad(self) -> LayerCheck | None:
        """The first value beyond the bound; None when all agree."""
        return next((check for check in self.checks if not check.passed), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: verdict, advice and the checks up to the first bad one."""
        bad = self.first_bad
        return {
            "first_bad": None if bad is None else bad.module,
            "value": None if bad is None else bad.value,
            "operator": None if bad is None else bad.operator,
            "relative_error": None if bad is None else bad.relative_error,
            "bound": self.bound,
            "compared": len(self.checks),
            "skipped": self.skipped,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class BisectOptions:
    """How strictly, and on which tokens, two models are compared."""

    bound: float = 1e-4
    """Relative error, ``max|a-b| / max|b|``, that a value may have."""
    sites: tuple[TokenSite, ...] = ()
    """Token selections of the other model, which then is its forced twin."""
    feeds: Mapping[str, dict[str, Array]] | None = None
    """Budget inputs by site, see ``workflow.golden.budget_feeds``."""
    restore: tuple[str, ...] = ()
    """Modules behind which tokens that left are put back."""


def bisect(
    reference: nn.Module | ir.Model, other: ir.Model, inputs: Arrays, options: BisectOptions
) -> BisectReport:
    """Find the first value of ``other`` that differs from the reference's.

    Args:
        reference: the original module, or a graph whose values have the same names.
        other: the graph under suspicion.
        inputs: one batch by input name.
        options: bound and token selections.

    Raises:
        BadInputError: the two share no value that could be compared.
        MissingDependencyError: Polygraphy is not installed.
    """
    kept: tuple[Array, ...] = ()
    if isinstance(reference, ir.Model):
        names = [n for n in _values(other) if n in set(_values(reference))]
        wanted, fed = _run(reference, names, inputs), dict(inputs)
    else:
        found = boundaries(other)
        seen = run_torch(reference, inputs, options.sites, options.feeds or {}, options.restore)
        names = [name for name, path in found.items() if path in seen.modules]
        wanted = {name: seen.modules[found[name]] for name in names}
        fed, kept = seen.inputs, seen.kept
    got = _run(other, names, fed)
    pairs = {n: pair for n in names if (pair := _aligned(got[n], wanted[n], kept)) is not None}
    if not pairs:
        raise BadInputError(
            "the two models have no value in common",
            next_step="compare a model with its own export, or two graphs made from one",
        )
    checks = tuple(_checks(other, pairs, options.bound))
    report = BisectReport(checks, len(names) - len(pairs), options.bound, "")
    bad = report.first_bad
    if bad is None:
        return report
    return BisectReport(
        checks, report.skipped, options.bound, _advice(bad, other, *pairs[bad.value])
    )


def _values(model: ir.Model) -> list[str]:
    """Names of floating-point values that nodes compute, in graph order."""
    floating = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
    return [
        value.name
        for node in model.graph
        for value in node.outputs
        if value.name and (value.dtype is None or value.dtype in floating)
    ]


def _run(model: ir.Model, names: Sequence[str], inputs: Arrays) -> dict[str, Array]:
    """Compute the named values with Polygraphy's ONNX Runtime runner, unoptimised."""
    if not names:
        return {}
    with _polygraphy() as (comparator, runner), TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "marked.onnx"
        save(with_outputs(model, names), path)
        taken = {value.name for value in model.graph.inputs}
        feed = {name: array for name, array in inputs.items() if name in taken}
        results = comparator.run([runner(lambda: _session(path), name="graph")], data_loader=[feed])
        return {name: np.asarray(results["graph"][0][name]) for name in names}


def _session(path: Path) -> Any:  # noqa: ANN401 (an optional library's type)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def _polygraphy() -> Iterator[tuple[Any, Any]]:
    """Yield Polygraphy's Comparator and ONNX Runtime runner, without its log."""
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner
        from polygraphy.comparator import Comparator
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise MissingDependencyError(
            "bisecting needs Polygraphy", next_step="pip install 'secateur[build]'"
        ) from error
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield Comparator, OnnxrtRunner


def _aligned(got: Array, wanted: Array, kept: Sequence[Array]) -> tuple[Array, Array] | None:
    """Bring both to the rows of kept tokens; None where the shapes do not match."""
    if got.shape == wanted.shape:
        return got, wanted
    for positions in kept:
        if got.shape[:2] == positions.shape and got.shape[2:] == wanted.shape[2:]:
            is_kept = positions >= 0
            return got[is_kept], wanted[np.nonzero(is_kept)[0], positions[is_kept]]
    return None


def _checks(
    model: ir.Model, pairs: Mapping[str, tuple[Array, Array]], bound: float
) -> Iterator[LayerCheck]:
    """Compare with Polygraphy, each value against its own bound."""
    verdicts = _compare(pairs, bound)
    for node in model.graph:
        for value in node.outputs:
            name = value.name or ""
            if name in pairs:
                yield LayerCheck(
                    value=name,
                    module=module_path(node) or node.name or name,
                    operator=node.op_type,
                    relative_error=relative_error(*pairs[name]),
                    passed=verdicts[name],
                )


def _compare(pairs: Mapping[str, tuple[Array, Array]], bound: float) -> dict[str, bool]:
    from polygraphy.comparator import RunResults, SimpleCompareFunc

    results = RunResults()
    for side, name in enumerate(("other", "reference")):
        results.add(
            [{n: pair[side].astype(np.float64) for n, pair in pairs.items()}], runner_name=name
        )
    finite = {n: np.abs(wanted[np.isfinite(wanted)]) for n, (_, wanted) in pairs.items()}
    compare = SimpleCompareFunc(
        atol={n: bound * float(x.max(initial=0.0)) for n, x in finite.items()},
        rtol=0.0,
        check_error_stat="max",
        infinities_compare_equal=True,
    )
    with _polygraphy() as (comparator, _):
        accuracy = comparator.compare_accuracy(results, compare_func=compare)
    compared = next(iter(accuracy[0].values()))[0]
    return {name: bool(compared[name]) for name in pairs}


def _advice(bad: LayerCheck, model: ir.Model, got: Array, wanted: Array) -> str:
    """Say what to try for a value that went wrong."""
    node = next(n for n in model.graph if any(v.name == bad.value for v in n.outputs))
    name = node.name or bad.value
    if not np.isfinite(got).all() and np.isfinite(wanted).all():
        low = any(v.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16} for v in node.outputs)
        where = f"keep node {name!r} in float32" if low else f"look for overflow before {name!r}"
        return f"{bad.module} computes NaN or infinities: {where}; largest input of its kind first"
    if node.outputs[0].dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}:
        return f"{bad.module} loses precision: exclude node {name!r} from the lower precision"
    weights = [v.name for v in node.inputs if v is not None and v.const_value is not None]
    if weights:
        return (
            f"everything before {bad.module} agrees: compare the weight {weights[0]!r} of node "
            f"{name!r} with the module's"
        )
    return (
        f"everything before {bad.module} agrees: look at the attributes and inputs of node {name!r}"
    )


__all__ = ["BisectOptions", "BisectReport", "LayerCheck", "bisect"]
