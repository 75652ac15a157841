"""Half precision as a step: observe ranges, lower, refuse what a target lacks, explain."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from secateur.calibration.ranges import largest_magnitudes
from secateur.errors import BadInputError, ParityError
from secateur.export.onnx_file import from_onnx, save
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.lowering import has_markers
from secateur.graph_passes.names import module_path, node_name
from secateur.graph_passes.precision.decisions import Precision
from secateur.graph_passes.precision.lower import (
    PRECISION_KEY,
    lower_precision,
    precision_record,
)
from secateur.graph_passes.precision.rounded import rounded_twin
from secateur.recipe import DTYPES
from secateur.recipe import Precision as Settings
from secateur.runtime.backend import Arrays
from secateur.runtime.bundle import is_bundle
from secateur.runtime.compare import TOLERANCES
from secateur.runtime.datatypes import WITHOUT_CPU_KERNELS
from secateur.runtime.onnx_outline import read_outline
from secateur.workflow.bisect import BisectOptions, bisect
from secateur.workflow.golden import default_budgets, site_records
from secateur.workflow.random_inputs import made_up_batches
from secateur.workflow.selecting import select_tokens

logger = logging.getLogger(__name__)

_MOST_EXCLUSIONS = 4


@dataclass(frozen=True, slots=True)
class Lowering:
    """The type that a model computes in, and what stays out of it.

    ``dtype`` is a value of ``recipe.DTYPES``; ``keep`` are patterns of modules or nodes.
    """

    dtype: str = "float32"
    keep: tuple[str, ...] = ()

    @staticmethod
    def of(settings: Settings) -> Lowering:
        """What a recipe, or the options of a command, ask for."""
        return Lowering(DTYPES[settings.type], settings.keep)

    @property
    def is_half(self) -> bool:
        """Whether anything is to be done."""
        return self.dtype != "float32"


def lower(model: ir.Model, lowering: Lowering, batches: Sequence[Arrays]) -> ir.Model:
    """Return the model in the wanted precision; what overflows on the batches stays float32.

    Raises:
        BadInputError: ``keep`` fits nothing, or nothing can be lowered.
    """
    if not lowering.is_half:
        return model
    budgets = default_budgets(model)
    ranges = largest_magnitudes(model, [{**batch, **budgets} for batch in batches])
    dtype = ir.DataType[lowering.dtype.upper()]
    return lower_precision(model, Precision(dtype, lowering.keep, ranges))


def lower_model(
    model: ir.Model, precision: str, keep: Sequence[str], batches: Sequence[Arrays]
) -> ir.Model:
    """``lower`` for a model in any state: its own selection is made first.

    Without batches, ranges are those of made-up inputs.

    Raises:
        BadInputError: also for a precision that is none of ``recipe.DTYPES``.
    """
    dtypes: Mapping[str, str] = {str(name): dtype for name, dtype in DTYPES.items()}
    if precision not in dtypes:
        raise BadInputError(
            "there is no such precision", got=repr(precision), wanted="one of " + ", ".join(dtypes)
        )
    lowering = Lowering(dtypes[precision], tuple(keep))
    if not lowering.is_half:
        return model
    graph = select_tokens(model, ()) if has_markers(model) else model
    return lower(graph, lowering, batches or made_up_batches(graph))


def dtype_of(model: Path) -> str:
    """The half-precision type that a file says it was lowered to, else ``float32``."""
    record = json.loads(read_outline(model).metadata.get(PRECISION_KEY, "{}"))
    return str(record.get("dtype", "float32"))


@contextmanager
def rounded(model: Path) -> Iterator[Path]:
    """Yield the file of a lowered model's float32 twin, which rounds where a GPU does.

    ONNX Runtime's CPU computes float16 in float32 and joins the casts, so that what overflows
    on a GPU does not there; it must run the twin without graph optimisation.
    """
    with TemporaryDirectory(prefix="secateur-") as folder:
        yield save(rounded_twin(from_onnx(model)), Path(folder) / model.name)[0]


@contextmanager
def runnable(model: Path) -> Iterator[Path]:
    """Yield a file that ONNX Runtime's CPU can run for a model: itself, or its rounded twin."""
    if runs_on_cpu(model):
        yield model
        return
    with rounded(model) as twin:
        yield twin


def runs_on_cpu(model: Path) -> bool:
    """Whether ONNX Runtime's CPU computes in the type of a model."""
    return dtype_of(model) not in WITHOUT_CPU_KERNELS


@contextmanager
def lowered_file(model: Path, lowering: Lowering) -> Iterator[Path]:
    """Yield the file of an .onnx model in the wanted precision; itself where that is float32.

    Ranges are those of made-up inputs: a file brings no data.

    Raises:
        BadInputError: a bundle, or a model that is lowered already.
    """
    if not lowering.is_half:
        yield model
        return
    if is_bundle(model):
        raise BadInputError(
            "the model of a bundle has its precision already",
            where=str(model),
            next_step="name another precision in the recipe, or build from the .onnx file",
        )
    graph = from_onnx(model)
    graph = select_tokens(graph, ()) if has_markers(graph) else graph
    with TemporaryDirectory(prefix="secateur-") as folder:
        made = lower(graph, lowering, made_up_batches(graph))
        logger.info("%s", in_words(made))
        yield save(made, Path(folder) / model.name)[0]


def in_words(model: ir.Model) -> str:
    """How much of a lowered model computes in half precision, and why the rest does not."""
    record = precision_record(model)
    reasons = ", ".join(f"{count} {reason}" for reason, count in record["float32"].items())
    return f"{record['nodes']} nodes compute in {record['dtype']}; in float32: {reasons or 'none'}"


@dataclass(frozen=True, slots=True)
class Suspects:
    """Which layers spoil a lowered model."""

    first: str
    """Module path (or node) of the first layer beyond its bound."""
    exclude: tuple[str, ...]
    """What to put into ``keep``."""
    is_enough: bool
    """Whether the model is within its bounds with that."""


def suspects(
    exact: ir.Model, lowering: Lowering, inputs: Arrays, *, batches: Sequence[Arrays]
) -> Suspects | None:
    """Find the first layer that half precision spoils, and what to keep in float32.

    Args:
        exact: the float32 model.
        lowering: how it was lowered.
        inputs: one batch by input name; of a selecting model those of its forced twin.
        batches: that the ranges were observed on.

    Returns:
        None where every layer is within the bound. Else modules are excluded one by one, as
        they are found, until nothing is beyond it or four of them are excluded.
    """
    reference, options = _forced(exact), BisectOptions(bound=TOLERANCES[lowering.dtype].value)
    layers = {v.name: module_path(n) or node_name(n) for n in reference.graph for v in n.outputs}
    first, exclude = "", list[str]()
    while True:
        tried = replace(lowering, keep=(*lowering.keep, *exclude))
        twin = rounded_twin(_forced(lower(exact, tried, batches)))
        report = bisect(reference, twin, inputs, options)
        bad = report.first_bad
        layer = "" if bad is None else layers[bad.value]
        if not layer or layer in exclude or len(exclude) == _MOST_EXCLUSIONS:
            break
        first = first or layer
        exclude.append(layer)
    return Suspects(first, tuple(exclude), is_enough=not layer) if exclude else None


def explained(error: ParityError, found: Suspects | None) -> ParityError:
    """The same failure, with the first bad layer and what to exclude."""
    if found is None:
        return error
    names = ", ".join(found.exclude)
    then = "with that it is within its bounds" if found.is_enough else "more may have to follow"
    return ParityError(
        error.what,
        where=f"first bad layer {found.first}; {error.where}".removesuffix("; "),
        got=error.got,
        wanted=error.wanted,
        next_step=f"keep in float32 (precision: keep): {names}; {then}",
    )


def _forced(model: ir.Model) -> ir.Model:
    return force(model) if site_records(model) else model


__all__ = [
    "Lowering",
    "Suspects",
    "dtype_of",
    "explained",
    "in_words",
    "lower",
    "lower_model",
    "lowered_file",
    "rounded",
    "runnable",
    "runs_on_cpu",
    "suspects",
]
