"""Half of everything that can go goes, and the rest is compared with the masked model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from heads import heads_of
from samples import random_like

from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

Arrays = dict[str, np.ndarray]

INPUT_SETS = 3
_HEADS = ("heads", "query_heads")


@dataclass(frozen=True)
class Cut:
    """A model before and after, with the dense twin that says what is right."""

    model: ir.Model
    analysis: Analysis
    plan: Plan
    small: ir.Model
    twin: ir.Model


def half_of_everything(analysis: Analysis, seed: int, *, renormalise: bool) -> Plan:
    """Keep a random half, rounded up, of every group that can lose units.

    Groups that a norm is taken over are cut with ``renormalise``, where a model has no
    others, and where they are the only heads (OLMoE's q/k norm goes over all of them); their
    twin takes the norm over the kept units.
    """
    groups = groups_to_cut(analysis, renormalise=renormalise)
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        kept = rng.permutation(group.size)[: (group.size + 1) // 2]
        kept.sort()
        keep[group.name] = tuple(kept.tolist())
    return make_plan(analysis, keep, allow_inexact=not all(group.exact for group in groups))


def groups_to_cut(analysis: Analysis, *, renormalise: bool) -> list[Group]:
    """Return the groups that ``half_of_everything`` halves."""
    able = [g for g in analysis.groups if g.weights and not g.frozen and g.size > 1]
    exact = [group for group in able if group.exact]
    if not any(group.role in _HEADS for group in exact):
        exact = [group for group in able if group.exact or group.role == "heads"]
    return able if renormalise or not exact else exact


def cut_in_half(model: ir.Model, seed: int, *, renormalise: bool) -> tuple[Cut, float]:
    """Analyse, plan and remove; the seconds of these three, without the twin."""
    started = time.perf_counter()
    analysis = analyse(model)
    plan = half_of_everything(analysis, seed, renormalise=renormalise)
    small = remove(model, plan)
    seconds = time.perf_counter() - started
    return Cut(model, analysis, plan, small, mask(model, plan)), seconds


def refusals(cut: Cut) -> list[dict[str, str]]:
    """Every group that stays whole, with the first reason why."""
    return [
        {"group": group.name, "reason": reason, "node": node}
        for group in cut.analysis.groups
        if group.weights and group.size > 1 and group.name not in cut.plan.keep
        for reason, node in [_why(group)]
    ]


def _why(group: Group) -> tuple[str, str]:
    if group.frozen:
        return group.frozen[0].text, group.frozen[0].node
    return "a norm is taken over it: the rest would be renormalised", ""


def parameters(model: ir.Model) -> int:
    """Elements of all floating-point initialisers."""
    sizes = (
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )
    return int(sum(sizes))


def facts_of(cut: Cut) -> dict[str, Any]:
    """What was found and cut, as it goes into the row of the table."""
    heads = heads_of(cut.analysis, cut.plan)
    return {
        "groups": len(cut.analysis.groups),
        "groups_cut": len(cut.plan.keep),
        "renormalised": any(not cut.analysis.group(name).exact for name in cut.plan.keep),
        "sites": heads.sites,
        "heads_found": heads.found,
        "heads_removed": heads.removed,
        "query_heads_found": heads.queries_found,
        "query_heads_removed": heads.queries_removed,
        "parameters_left": round(parameters(cut.small) / parameters(cut.model), 4),
        "refusals": refusals(cut),
    }


def export_error(model: ir.Model, example: Arrays, wanted: np.ndarray, folder: Path) -> float:
    """Largest relative difference of the exported model from what the module gave."""
    return _relative_error(_session(model, folder / "dense.onnx")(example)[0], wanted)


def compare(cut: Cut, example: Arrays, folder: Path, seed: int) -> dict[str, float]:
    """Run removed, masked and whole model on random inputs; each file must be valid ONNX.

    ``max_rel_error`` is the largest max|removed - masked| / max|masked| over outputs and
    inputs. ``effect`` is the same between whole and masked: a proof without one proves nothing.
    """
    models = {"removed": cut.small, "masked": cut.twin, "whole": cut.model}
    runs = [_session(model, folder / f"{name}.onnx") for name, model in models.items()]
    rng = np.random.default_rng(seed)
    errors, effects = [0.0], [0.0]
    for _ in range(INPUT_SETS):
        feeds = random_like(example, rng)
        for removed, masked, whole in zip(*(run(feeds) for run in runs), strict=True):
            errors.append(_relative_error(removed, masked))
            effects.append(_relative_error(whole, masked))
    return {"max_rel_error": float(np.max(errors)), "effect": float(np.max(effects))}


def as_module(cut: Cut, example: Arrays, folder: Path) -> dict[str, Any]:
    """The removed model as an nn.Module beside ONNX Runtime on the example inputs.

    ``module_error`` is the largest relative difference, None where ``to_torch`` refuses the
    model; ``module_refused`` then says why.
    """
    import torch

    from secateur.errors import SecateurError
    from secateur.export.to_torch import to_torch
    from secateur.export.verify import flatten_outputs

    wanted = _session(cut.small, folder / "removed.onnx")(example)
    try:
        module = to_torch(cut.small)
    except SecateurError as refused:
        return {"module_error": None, "module_refused": str(refused)}
    names = [str(value.name) for value in cut.small.graph.inputs]
    with torch.no_grad():
        outputs = module(**{name: torch.as_tensor(example[name]) for name in names})
    pairs = zip(flatten_outputs(outputs).values(), wanted, strict=True)
    return {"module_error": max(_relative_error(got.numpy(), want) for got, want in pairs)}


def _relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    if not np.all(np.isfinite(wanted)):
        return float("nan")
    scale = float(np.max(np.abs(wanted))) or 1.0
    return float(np.max(np.abs(got - wanted))) / scale


def _session(model: ir.Model, path: Path) -> Any:
    """Write, check and open a model; ``run(arrays)`` gives its outputs."""
    import onnxruntime as ort

    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, {name: arrays[name] for name in names})
