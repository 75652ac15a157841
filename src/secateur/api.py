"""The public functions, each a few lines over the workflow that does the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from secateur.workflow.selecting import Select

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from secateur.graph_passes.groups import Analysis
    from secateur.graph_passes.plan import Plan
    from secateur.recipe import PrecisionType
    from secateur.runtime.backend import Arrays
    from secateur.runtime.bench import BenchRow
    from secateur.runtime.bundle import Bundle
    from secateur.runtime.session import BundleRun
    from secateur.units import Aggregate, Normalise, Scope, Structure
    from secateur.workflow.parity import Options, ParityReport
    from secateur.workflow.results import Proof, Results

Ranges = Mapping[str, tuple[int, int, int]]
"""(min, opt, max) by name of a dimension."""


class Spread(TypedDict, total=False):
    """How what goes is spread over the layers."""

    scope: Scope
    """Rank within each layer, or over all layers together; or first share out what goes: by how
    far each layer turns its tokens, by an evolutionary search, or by a structure of FLAP."""
    structure: Structure
    """Of FLAP: ``UL-UM``, ``UL-MM``, ``AL-MM`` or ``AL-AM``."""
    remove_heads: int
    """Heads of the whole model that go, with ``UL-MM`` and ``AL-MM``."""
    round_to: int
    """Kept units of a layer are a multiple of this."""
    at_least: int
    """Every layer keeps this many; without it a ratio that would empty a layer is refused."""
    normalise: Normalise
    """By what the scores of a layer are divided before all layers are ranked together."""
    limits: Mapping[str, float]
    """Largest share that may go, by name of a group or pattern; 0 leaves it whole."""
    aggregate: Aggregate
    """How the scores of a unit in each weight of its group become one."""
    allow_inexact: bool
    """Also cut what a norm is taken over; the result is renormalised, not equal."""


def from_torch(
    net: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: dict[str, dict[int, str]],
    *,
    opset: int = 20,
    for_training: bool = False,
) -> ir.Model:
    """Export a module and compare it with ONNX Runtime at two other shapes.

    Args:
        net: its forward takes the names in ``inputs`` and returns tensors.
        inputs: example inputs by argument name.
        dynamic: axes that vary, ``{"input_ids": {0: "batch", 1: "tokens"}}``.
        opset: of the result, 18 to 24.
        for_training: keep batch norms and zero biases, for a model that ``to_torch`` will train.

    Raises:
        BadInputError: inputs that do not fit, or a declared dimension that the model fixes.
        ParityError: ONNX Runtime and PyTorch disagree.
    """
    from secateur.export import torch_export

    return torch_export.from_torch(net, inputs, dynamic, opset=opset, for_training=for_training)


def from_onnx(path: str | Path) -> ir.Model:
    """Open an ONNX file; BadInputError for a file that is none or cannot be trusted."""
    from secateur.export import onnx_file

    return onnx_file.from_onnx(path)


def to_torch(model: ir.Model) -> nn.Module:
    """Turn a model, pruned or not, into a module with trainable parameters.

    Parameters have the names and shapes of the module that was exported. For training from
    scratch, or with batch norms, export with ``from_torch(..., for_training=True)``.

    Raises:
        PreconditionError: an op that cannot be run with torch, named with its node.
    """
    from secateur.export import to_torch as graph_module

    return graph_module.to_torch(model)


def analyse(
    model: ir.Model,
    *,
    allow_outputs: Sequence[str] = (),
    allow_ids: Mapping[str, int] | None = None,
) -> Analysis:
    """Find what can be removed from a model, and what cannot and why.

    Args:
        model: stays as it is.
        allow_outputs: names of outputs whose shape a removal may change.
        allow_ids: names of inputs that give ids of rows which may go (a vocabulary), each with
            the id that is read in place of one whose row is gone.

    Raises:
        BadInputError: the graph contradicts itself, or has no such output, input or id.
    """
    from secateur.graph_passes import groups

    return groups.analyse(model, allow_outputs=allow_outputs, allow_ids=allow_ids or {})


def plan(
    groups: Analysis,
    what: str,
    *,
    ratio: float,
    importance: str = "l2",
    data: Iterable[Arrays] = (),
    **spread: Unpack[Spread],
) -> Plan:
    """Choose which units go.

    Args:
        groups: what ``analyse`` returned.
        what: a role: ``heads``, ``query_heads``, ``head_width``, ``ffn``, ``channels``,
            ``experts``, ``outputs`` (those that ``analyse`` was told of), ``blocks``, or
            ``residual``, whose removal is renormalised.
        ratio: share of the units that goes, in (0, 1).
        importance: the criterion that ranks them; ``secateur methods`` lists them.
        data: batches, for criteria that look at activations.
        **spread: ``scope``, ``round_to``, ``at_least``, ``normalise``, ``limits``,
            ``aggregate``, ``allow_inexact``.

    Raises:
        BadInputError: no such units, an unknown criterion, a ratio outside (0, 1) or one that
            removes nothing or a whole group.
    """
    from secateur.calibration import planning
    from secateur.calibration.allocation import Allocation
    from secateur.calibration.importance import Scoring

    inexact = spread.pop("allow_inexact", False)
    scoring = Scoring(spread.pop("aggregate", "sum"))
    allocation = Allocation(ratio, **spread)  # type: ignore[misc] # the other keys are gone
    ranking = planning.Ranking(importance, data, scoring=scoring)
    return planning.plan(groups, what, allocation, ranking, allow_inexact=inexact)


def remove(model: ir.Model, plan: Plan, *, data: Sequence[Arrays] = ()) -> ir.Model:
    """Remove what a plan leaves out, and prove the result; the input stays as it is.

    Args:
        model: the model that the plan was made for.
        plan: kept units by group.
        data: batches for the proof; without any, made up from the inputs' types.

    Raises:
        BadInputError: a plan for another model.
        ParityError: the smaller model is not the whole one with the removed units neutral.
    """
    from secateur.workflow.pruning import prune_graph

    return prune_graph(model, (), plan=plan, batches=data).model


def prove(
    original: ir.Model, removed: ir.Model, plan: Plan, data: Sequence[Arrays] = ()
) -> tuple[Proof, ...]:
    """Compare a removal with masking; nothing is raised, ask each ``proof.passed``."""
    from secateur.workflow.random_inputs import made_up_batches
    from secateur.workflow.removal_proof import removal_proof

    return removal_proof(original, removed, plan, data or made_up_batches(original))


def select(
    model: ir.Model, selections: Sequence[Select] = (), *, restore: Sequence[str] = ()
) -> ir.Model:
    """Let a model drop tokens at the given sites; the input stays as it is.

    A model that calls ``secateur.models.select_tokens`` has its own sites: give none.

    Args:
        model: the dense model.
        selections: one per site.
        restore: values or modules behind the sites at which all tokens are put back, dropped
            ones as they left: for a grid that follows, as in segmentation.

    Raises:
        BadInputError: no attention, an unknown site or selector.
        PreconditionError: a node behind a cut that tokens cannot be taken from.
    """
    from secateur.workflow.selecting import select_tokens

    return select_tokens(model, selections, restore=restore)


def lower(
    model: ir.Model,
    precision: PrecisionType = "fp16",
    *,
    keep: Sequence[str] = (),
    data: Iterable[Arrays] = (),
) -> ir.Model:
    """Let a model compute in half precision, as casts and weights in its graph; the input stays.

    Inputs and outputs stay float32; so do softmax, norms, token selection, and what would
    overflow. Remove and select first. A model that selects in its own forward gets its selection
    here.

    Args:
        model: computes in float32.
        precision: ``fp16`` or ``bf16``; ``fp32`` returns the model as it is.
        keep: modules or nodes that stay in float32, by name or pattern (``encoder.layer.3*``).
        data: batches whose largest values say what would overflow; without any, made up from
            the inputs' types.

    Raises:
        BadInputError: another precision, a model that has been lowered already, a pattern that
            fits nothing, or nothing that can be lowered.
    """
    from secateur.workflow.precision import lower_model

    return lower_model(model, precision, keep, tuple(data))


def build(
    model: ir.Model,
    targets: Sequence[str],
    profile: Ranges,
    *,
    path: str | Path = "build/bundle",
    dense: ir.Model | None = None,
) -> Bundle:
    """Build engines for a model and write a bundle in one step.

    Args:
        model: as it is shipped.
        targets: such as ``onnxruntime`` and ``rtx:sm86``.
        profile: (min, opt, max) of every dynamic dimension, by name.
        path: folder or .zip of the bundle.
        dense: the model before anything was pruned, where ``parity`` and ``bench`` should
            have it.

    Raises:
        BadInputError: what the model and the targets do not fit.
        BuildError: a builder refused or died; nothing was written.
    """
    from secateur.runtime.bundle import open_bundle
    from secateur.workflow.building import bundle_model

    bundle_model(model, Path(path), targets, profile, dense=dense)
    return open_bundle(path)


def parity(
    reference: nn.Module | ir.Model,
    bundle: Bundle | str | Path,
    data: Iterable[Arrays],
    *,
    options: Options | None = None,
) -> ParityReport:
    """Compare a bundle on ONNX Runtime with the model that it came from, in four parts.

    Args:
        reference: the original module, or the original graph.
        bundle: what ``build`` or ``deploy`` wrote.
        data: batches by input name.
        options: bounds and tasks; None takes those of float32 and no task.

    Raises:
        BadInputError: a bundle that removed units and does not hold its dense model. A
            mismatch is not an error here: ask ``report.passed``.
    """
    from secateur.workflow.answers import check_bundle

    return check_bundle(reference, bundle, data, options)


def session(
    bundle: Bundle | str | Path, target: str = "onnxruntime"
) -> AbstractContextManager[BundleRun]:
    """Open a bundle; inside, ``run(inputs, keep={"encoder.layer.2": 0.5})``."""
    from secateur.runtime.session import open_session

    return open_session(bundle, target)


def bench(
    bundle: Bundle | str | Path, *, batches: Sequence[int] = (1, 8), tokens: int = 128
) -> tuple[BenchRow, ...]:
    """Time a bundle's model against its dense one, in turns, in fresh processes.

    Raises:
        BadInputError: the bundle does not hold its dense model.
    """
    from secateur.recipe import Bench
    from secateur.workflow.timing import time_bundle

    return time_bundle(bundle, Bench(batches=tuple(batches), tokens=tokens))


def deploy(recipe: str | Path) -> Results:
    """Do everything a recipe says, as the command does; what was found.

    Raises:
        BadInputError: something in the recipe that cannot be used.
        ParityError: a proof or a comparison failed; no bundle is written.
        BuildError: a builder refused.
    """
    from secateur.workflow.deploy import Silent
    from secateur.workflow.deploy import deploy as deploy_recipe
    from secateur.workflow.recipe_file import load_recipe

    path = Path(recipe)
    return deploy_recipe(load_recipe(path), path.read_text(encoding="utf-8"), progress=Silent())


__all__ = [
    "Select",
    "analyse",
    "bench",
    "build",
    "deploy",
    "from_onnx",
    "from_torch",
    "lower",
    "parity",
    "plan",
    "prove",
    "remove",
    "select",
    "session",
    "to_torch",
]
