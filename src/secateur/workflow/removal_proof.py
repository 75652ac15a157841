"""Proof of a removal: the smaller graph equals the whole one with the removed units neutral."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from secateur.calibration.activations import inputs_of
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes import indices, leaves
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.names import parameter_name
from secateur.graph_passes.plan import Plan
from secateur.runtime.backend import Array, Arrays
from secateur.runtime.compare import relative_error
from secateur.workflow.model_session import open_model
from secateur.workflow.results import Proof

if TYPE_CHECKING:
    from secateur.models.reference import Removed

BOUND = 1e-5
"""Relative error that float32 rounding of another summation order stays below."""


def removal_proof(
    original: ir.Model, removed: ir.Model, plan: Plan, inputs: Sequence[Arrays]
) -> tuple[Proof, ...]:
    """Hold a removal against the masked original, on the user's inputs and on random ones.

    Args:
        original: the model before the removal.
        removed: what ``graph_passes.removal.remove`` made of it.
        plan: the plan that was applied.
        inputs: batches by input name; the random ones take their shapes.

    Returns:
        One proof per kind of inputs and output, its worst batch. Nothing is raised for a
        mismatch: ask ``proof.passed``.
    """
    if not inputs:
        raise BadInputError("a removal is proved on inputs", wanted="at least one batch")
    twin = mask(original, plan)
    user = [inputs_of(batch) for batch in inputs]
    random = [random_like(batch, seed) for seed, batch in enumerate(user)]
    kinds: dict[str, Sequence[Arrays]] = {"user": user, "random": random}
    wanted = {kind: list(_outputs(twin, batches)) for kind, batches in kinds.items()}
    got = {kind: list(_outputs(removed, batches)) for kind, batches in kinds.items()}
    return tuple(
        Proof(
            kind,
            name,
            max(
                relative_error(g[name], w[name])
                for g, w in zip(got[kind], wanted[kind], strict=True)
            ),
            BOUND,
        )
        for kind in kinds
        for name in wanted[kind][0]
    )


def _outputs(model: ir.Model, batches: Iterable[Arrays]) -> Iterator[dict[str, Array]]:
    with open_model(model) as run:
        for batch in batches:
            yield run(batch)


def random_like(example: Arrays, seed: int) -> dict[str, Array]:
    """Draw inputs of the same names, shapes and dtypes.

    Floats are normal. Integers are drawn from the example's values, so that they stay valid
    indices. A padding mask (0 and 1, (B, N)) keeps its first token and a random length.
    """
    rng = np.random.default_rng(seed)
    return {name: _random_array(np.asarray(array), rng) for name, array in example.items()}


def _random_array(example: Array, rng: np.random.Generator) -> Array:
    if example.dtype.kind == "f":
        return rng.standard_normal(example.shape).astype(example.dtype)
    if (
        example.ndim == 2
        and example.size
        and np.isin(example, (0, 1)).all()
        and example[:, 0].all()
    ):
        length = rng.integers(1, example.shape[1] + 1, size=(len(example), 1))
        return (np.arange(example.shape[1]) < length).astype(example.dtype)
    return rng.choice(example.ravel(), size=example.shape)


def removed_units(model: ir.Model, plan: Plan) -> tuple[Removed, ...]:
    """Name what a plan removes for the PyTorch reference: the consuming weight and the units.

    Raises:
        PreconditionError: a group that no weight consumes in equal, contiguous shares, such
            as the width of a head, which is combined between two activations; a whole block,
            a shorter output, or a renormalised cut, which no weight of zero can stand for.
    """
    analysis = analyse(model, allow_outputs=plan.allow_outputs, allow_ids=plan.allow_ids)
    beyond = [f"the block {name}" for name in plan.blocks]
    groups = [analysis.group(name) for name in plan.keep]
    beyond += [g.name for g in groups if not g.exact or g.role in {"outputs", "vocabulary"}]
    if beyond:
        raise PreconditionError(
            f"the PyTorch module cannot be masked to be without {beyond[0]}",
            next_step="write the model with `secateur export` and start from that .onnx file",
        )
    found = []
    for name, kept in plan.keep.items():
        group = analysis.group(name)
        consumers = list(_consumers(analysis, group))
        if not consumers:
            raise PreconditionError(
                f"no weight consumes {name}", next_step="compare with the masked ONNX graph"
            )
        found += [_removed(parameter, kept, group.size) for parameter in consumers]
    return tuple(found)


def _removed(parameter: str, kept: Sequence[int], units: int) -> Removed:
    from secateur.models.reference import Removed

    return Removed(parameter, tuple(kept), units)


def _consumers(analysis: Analysis, group: Group) -> Iterator[str]:
    """Torch names of the weights that sum over the group's units."""
    for fold in analysis.axes.folds:
        for port in fold.ports:
            value = fold.node.inputs[port.slot] if port.slot >= 0 else None
            if value is None or value.const_value is None:
                continue
            expr = analysis.axes.at(fold.node, port.slot)[port.axis]
            if group.atom not in leaves(expr):
                continue
            width = len(indices(expr, {}))
            first = indices(expr, {group.atom: np.arange(1)})
            if not np.array_equal(first, np.arange(width // group.size)):
                raise PreconditionError(
                    f"{group.name} is not a contiguous part of its consumer's input",
                    where=value.name or "",
                )
            yield parameter_name(analysis.model, value.name or "")


__all__ = ["BOUND", "random_like", "removal_proof", "removed_units"]
