"""Which layer of a bundle's model differs first from the model that it was made of."""

from __future__ import annotations

from secateur.errors import BadInputError
from secateur.export.onnx_file import from_onnx
from secateur.export.source import load
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan
from secateur.runtime.bundle import DENSE_NAME, FORCED_NAME, GOLDENS_NAME, Bundle
from secateur.runtime.goldens import read_goldens
from secateur.workflow.bisect import BisectOptions, BisectReport, bisect
from secateur.workflow.golden import budget_feeds, put_back_at, token_sites
from secateur.workflow.removal_proof import removed_units

PLAN_NAME = "plan.json"


def bisect_bundle(bundle: Bundle) -> BisectReport:
    """Compare layer by layer with the original module, else with the dense graph, masked.

    Raises:
        BadInputError: a bundle without goldens or without its dense model; one that selects
            tokens and whose original module cannot be loaded.
    """
    dense = from_onnx(bundle.file(DENSE_NAME))
    plan = _plan(bundle)
    inputs = read_goldens(bundle.file(GOLDENS_NAME))[0].inputs
    selects = FORCED_NAME in bundle
    other = from_onnx(bundle.file(FORCED_NAME) if selects else bundle.model)
    shipped = from_onnx(bundle.model)
    budgets = {n for site in budget_feeds(shipped, {}).values() for n in site}
    fed = {name: array for name, array in inputs.items() if name not in budgets}
    spec = str(bundle.manifest.facts.get("source", ""))
    net = load(spec).net if selects and spec else None
    if net is None:
        if selects:
            raise BadInputError(
                "a model that selects tokens is compared with the module that it came from",
                where=str(bundle.path),
                got=f"source {spec!r}",
                next_step="run it where the source of the recipe is at hand",
            )
        reference = dense if plan is None else mask(dense, plan)
        return bisect(reference, other, fed, BisectOptions())
    from secateur.models.reference import neutralised

    module = net.eval() if plan is None else neutralised(net.eval(), removed_units(dense, plan))
    options = BisectOptions(
        sites=token_sites(shipped, {}),
        feeds=budget_feeds(shipped, {}),
        restore=put_back_at(shipped),
    )
    return bisect(module, other, fed, options)


def _plan(bundle: Bundle) -> Plan | None:
    if PLAN_NAME not in bundle:
        return None
    return Plan.from_json(bundle.file(PLAN_NAME).read_text(encoding="utf-8"), where=PLAN_NAME)


__all__ = ["PLAN_NAME", "bisect_bundle"]
