"""Removal as one step: plan, cut, prove, and say what went where."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from secateur.calibration.allocation import Allocation
from secateur.calibration.compensation import compensate
from secateur.calibration.importance import Scoring
from secateur.calibration.planning import Ranking, combine
from secateur.calibration.planning import plan as make_plan
from secateur.calibration.search.evolution import Evolution
from secateur.errors import BadInputError, ParityError
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.plan import Plan
from secateur.graph_passes.removal import remove
from secateur.recipe import Removal
from secateur.runtime.backend import Arrays
from secateur.workflow.random_inputs import calibration_batches, made_up_batches
from secateur.workflow.removal_proof import removal_proof
from secateur.workflow.results import LayerRemoval, Proof

logger = logging.getLogger(__name__)

_WITHOUT_DATA = frozenset({"obspa"})
"""Criteria that random inputs serve, run through the whole network."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """A smaller model, what was removed from the dense one, and the proof."""

    model: ir.Model
    plan: Plan
    removed: tuple[LayerRemoval, ...]
    proofs: tuple[Proof, ...]
    fitted: ir.Model | None = None
    """The dense model with weights that make up for what goes, where any were fitted."""

    @property
    def proof_records(self) -> list[dict[str, Any]]:
        """Plain JSON types."""
        return [asdict(proof) | {"passed": proof.passed} for proof in self.proofs]


def prune_graph(
    model: ir.Model,
    removals: Sequence[Removal],
    *,
    plan: Plan | None = None,
    batches: Sequence[Arrays] = (),
    plan_only: bool = False,
) -> Pruned:
    """Remove what ``removals`` ask for, or what ``plan`` says, and prove it.

    Args:
        model: stays as it is.
        removals: ratio, criterion and scope by kind of unit.
        plan: to apply instead of making one.
        batches: the user's inputs, for criteria that read data and for the proof; without
            any the proof takes inputs made up from the signature.
        plan_only: return the model whole, with the plan.

    Raises:
        BadInputError: nothing to remove, a plan for another model, an unknown criterion.
        ParityError: the proof fails.
    """
    outputs = plan.allow_outputs if plan else allowed_outputs(removals)
    ids = plan.allow_ids if plan else allowed_ids(removals)
    analysis = analyse(model, allow_outputs=outputs, allow_ids=ids)
    made = plan or make_plan_for(analysis, removals, batches)
    removed = _removed(analysis, made)
    if plan_only:
        return Pruned(model, made, removed, ())
    small = remove(model, made)
    return Pruned(small, made, removed, _prove(model, small, made, batches))


@dataclass(frozen=True, slots=True)
class Fitting:
    """What is known from training, and how weights make up for what goes."""

    arrays: Arrays = field(default_factory=dict)
    """By parameter name: gradients, ``NAME@fisher``, ..."""
    compensate: str = "none"


def prune_and_fit(
    model: ir.Model,
    removals: Sequence[Removal],
    fitting: Fitting,
    *,
    plan: Plan | None = None,
    batches: Sequence[Arrays] = (),
) -> Pruned:
    """Remove, and let the weights that read what goes make up for it.

    The weights are fitted in the dense model, from which the units are then removed and the
    removal proved as any other.

    Args:
        model: stays as it is.
        removals: ratio, criterion and scope by kind of unit.
        fitting: arrays for criteria, and the compensation.
        plan: to apply instead of making one.
        batches: the user's inputs; without any, compensation takes random ones.

    Raises:
        BadInputError: as ``prune_graph``, and an unknown compensation or unfit data.
        ParityError: the proof fails.
    """
    made = plan or plan_for(model, removals, batches, fitting.arrays)
    if fitting.compensate == "none":
        return prune_graph(model, (), plan=made, batches=batches)
    data = batches or calibration_batches(model)
    fitted = compensate(model, made, data, method=fitting.compensate)
    return replace(prune_graph(fitted, (), plan=made, batches=batches), fitted=fitted)


def plan_for(
    model: ir.Model, removals: Sequence[Removal], batches: Sequence[Arrays], arrays: Arrays
) -> Plan:
    """The plan alone; BadInputError as ``make_plan_for``."""
    analysis = analyse(
        model, allow_outputs=allowed_outputs(removals), allow_ids=allowed_ids(removals)
    )
    return make_plan_for(analysis, removals, batches, arrays)


def make_plan_for(
    analysis: Analysis,
    removals: Sequence[Removal],
    batches: Sequence[Arrays],
    arrays: Arrays | None = None,
) -> Plan:
    """One plan for all removals of a recipe.

    Raises:
        BadInputError: no removal, a role that the model does not have, an unknown criterion.
    """
    if not removals:
        raise BadInputError("nothing is to be removed", wanted="a removal, or a plan file")
    plans = [_plan_one(analysis, removal, batches, arrays or {}) for removal in removals]
    return combine(analysis, plans)


def _plan_one(
    analysis: Analysis, removal: Removal, batches: Sequence[Arrays], arrays: Arrays
) -> Plan:
    allocation = Allocation(
        ratio=removal.ratio,
        scope=removal.scope,
        round_to=removal.round_to,
        at_least=removal.at_least,
        normalise=removal.normalise,
        limits=removal.limits,
        search=Evolution(journal=removal.journal, progress=logger.info),
        structure=removal.structure,
        remove_heads=removal.remove_heads,
    )
    if not batches and removal.importance in _WITHOUT_DATA:
        batches = calibration_batches(analysis.model)
    scoring = Scoring(removal.aggregate)
    ranking = Ranking(removal.importance, batches, scoring=scoring, arrays=arrays)
    inexact = removal.allow_inexact
    return make_plan(analysis, removal.what, allocation, ranking, allow_inexact=inexact)


def allowed_outputs(removals: Sequence[Removal]) -> tuple[str, ...]:
    """Outputs whose shape any of the removals may change."""
    return tuple(dict.fromkeys(name for removal in removals for name in removal.allow_outputs))


def allowed_ids(removals: Sequence[Removal]) -> dict[str, int]:
    """Inputs that give ids of rows which any of the removals may remove, with their stand-ins.

    Raises:
        BadInputError: two removals name different ids for one input.
    """
    found: dict[str, int] = {}
    for name, stand_in in (pair for removal in removals for pair in removal.allow_ids.items()):
        if found.setdefault(name, stand_in) != stand_in:
            raise BadInputError(
                f"two ids stand in for those of {name!r} that lost their rows",
                where="allow_ids",
                got=f"{found[name]} and {stand_in}",
            )
    return found


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        BadInputError: no such file, or not a plan.
    """
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"), where=str(path))
    except OSError as error:
        raise BadInputError("the plan cannot be read", where=str(path), got=str(error)) from None


def recorded_plan(model: ir.Model) -> Plan | None:
    """The removal that a model records, as a plan for its dense model; None without one.

    Raises:
        BadInputError: units were removed in several steps, which one plan cannot say.
    """
    records: list[dict[str, dict[str, Any]]] = json.loads(
        model.metadata_props.get("secateur.removals", "[]")
    )
    names = [name for record in records for name in record]
    if len(set(names)) < len(names):
        raise BadInputError(
            "units of one group were removed in several steps",
            got=f"{len(records)} removals",
            next_step="combine the plans and remove in one step",
        )
    found = {name: r for record in records for name, r in record.items()}
    if not found:
        return None
    return Plan(
        {name: tuple(r["kept"]) for name, r in found.items() if r["role"] != "block"},
        allow_inexact=not all(r.get("exact", True) for r in found.values()),
        allow_outputs=tuple(
            dict.fromkeys(output for r in found.values() for output in r.get("outputs", ()))
        ),
        allow_ids={name: i for r in found.values() for name, i in r.get("ids", {}).items()},
        blocks=tuple(name for name, r in found.items() if r["role"] == "block"),
    )


def _removed(analysis: Analysis, plan: Plan) -> tuple[LayerRemoval, ...]:
    found = [(analysis.group(name), kept) for name, kept in plan.keep.items()]
    units = tuple(
        LayerRemoval(group.layer, group.role, group.size, tuple(sorted(kept)))
        for group, kept in sorted(found, key=lambda pair: analysis.groups.index(pair[0]))
        if len(kept) < group.size
    )
    return units + tuple(LayerRemoval(block, "blocks", 1, ()) for block in plan.blocks)


def _prove(
    dense: ir.Model, small: ir.Model, plan: Plan, batches: Sequence[Arrays]
) -> tuple[Proof, ...]:
    """Raise ParityError unless the removal equals the masking, on data and on random inputs."""
    proofs = removal_proof(dense, small, plan, batches or made_up_batches(dense))
    if not batches:
        proofs = tuple(
            replace(proof, inputs="made up") if proof.inputs == "user" else proof
            for proof in proofs
        )
    failed = [proof for proof in proofs if not proof.passed]
    if not failed:
        return proofs
    raise ParityError(
        "the smaller model is not the dense one with the removed units neutral",
        where=f"output {failed[0].output!r} on {failed[0].inputs} inputs",
        got=f"relative error {failed[0].relative_error:.3g}",
        wanted=f"at most {failed[0].bound:.3g}",
        next_step="this is a defect of secateur, or the model computes NaN or infinities here",
    )


__all__ = [
    "Fitting",
    "Pruned",
    "allowed_ids",
    "allowed_outputs",
    "make_plan_for",
    "plan_for",
    "prune_and_fit",
    "prune_graph",
    "read_plan",
    "recorded_plan",
]
