"""What a reference says about one batch: outputs, and at every site scores and kept tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays
from secateur.runtime.compare import SelectionReference
from secateur.workflow.handed_in import given_apart

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from secateur.models.reference import ReferenceRun, TokenSite

FORCED_SCORE = 1e9
"""Added to the score of forced tokens: above every score, below float32's coarse range."""


@dataclass(frozen=True, slots=True)
class GoldenSite:
    """One site of one batch, in the positions of the model's input."""

    score: Array
    """(B, N) float, -inf on tokens that could not be kept."""
    eligible: Array
    """(B, N) bool."""
    kept: Array
    """(B, K) int64, ascending, -1 behind a sample's count."""
    protected: int
    """Leading tokens that are kept whatever their score."""
    feeds: dict[str, Array] = field(default_factory=dict)
    """Input that sets the budget, for graphs that take it at run time."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One batch and the reference's answer."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    sites: dict[str, GoldenSite]

    def forced_inputs(self) -> dict[str, Array]:
        """Inputs for the forced twin: the batch, budgets, and a score bias per site."""
        fed = dict(self.inputs)
        for name, site, before in self._chain():
            fed |= site.feeds
            fed[f"{name}.score_bias"] = np.where(
                _members(before, site.kept), FORCED_SCORE, 0
            ).astype(np.float32)
        return fed

    def free_inputs(self) -> dict[str, Array]:
        """Inputs for the model as shipped: the batch and the budgets."""
        return {k: v for site in self.sites.values() for k, v in site.feeds.items()} | self.inputs

    def selections(self) -> Iterator[tuple[str, SelectionReference]]:
        """Yield each site's scores and kept tokens in the positions of that site."""
        for name, site, before in self._chain():
            safe = np.maximum(before, 0)
            valid = np.take_along_axis(site.eligible, safe, 1) & (before >= site.protected)
            yield (
                name,
                SelectionReference(
                    score=np.take_along_axis(site.score, safe, 1),
                    index=_positions(_members(before, site.kept)),
                    valid=valid,
                ),
            )

    def kept(self) -> Array | None:
        """(B, K) positions alive at the end, -1 for none; None without a site."""
        return list(self.sites.values())[-1].kept if self.sites else None

    def _chain(self) -> Iterator[tuple[str, GoldenSite, Array]]:
        """Yield name, site, and the (B, N) positions that reach it, -1 for none."""
        before: Array | None = None
        for name, site in self.sites.items():
            if before is None:
                before = np.broadcast_to(np.arange(site.score.shape[1]), site.score.shape)
            yield name, site, before
            before = site.kept


def token_sites(model: ir.Model, amounts: Mapping[str, int]) -> tuple[TokenSite, ...]:
    """Return what the model records of its selections, for the reference.

    Args:
        model: a selecting model; removals that it records are taken out of the signals.
        amounts: budgets by site, other than the recorded ones.
    """
    from secateur.models.reference import TokenSite

    return tuple(
        TokenSite(
            site=record["site"],
            selector=record["selector"],
            kind=record["budget"].get("unit", record["budget"]["kind"]),
            amount=amounts.get(record["site"], record["budget"]["default"]),
            protected=record["protected"],
            heads=_left(model, record["site"], "heads"),
            queries=_left(model, record["site"], "query_heads"),
            options=record.get("options", {}),
            cut="" if record.get("cut", "block") in ("block", "attention") else record["cut"],
            given=record.get("signals", {}),
            among=record.get("among", ""),
            leaves=record.get("leaves", ""),
            close_gaps=record.get("close_gaps", False),
        )
        for record in site_records(model)
    )


def put_back_at(model: ir.Model) -> tuple[str, ...]:
    """Return where the model puts tokens back that left."""
    names: list[str] = json.loads(model.metadata_props.get("secateur.restore", "[]"))
    return tuple(names)


def _left(model: ir.Model, site: str, role: str) -> tuple[int, ...]:
    """Units of a role that removals left at a site, as positions in the dense model."""
    left: tuple[int, ...] = ()
    for removal in json.loads(model.metadata_props.get("secateur.removals", "[]")):
        for cut in removal.values():
            same = cut["layer"] == site or f".{cut['layer']}".endswith(f".{site}")
            if cut["role"] == role and same:
                left = tuple(left[i] for i in cut["kept"]) if left else tuple(cut["kept"])
    return left


def site_records(model: ir.Model) -> list[dict[str, Any]]:
    """Return the records of the model's token selections, in the order of the sites."""
    records: list[dict[str, Any]] = json.loads(model.metadata_props.get("secateur.sites", "[]"))
    return records


def budget_feeds(model: ir.Model, amounts: Mapping[str, int]) -> dict[str, dict[str, Array]]:
    """Return, by site, the budget input and its value; {} for a budget inside the graph."""
    feeds: dict[str, dict[str, Array]] = {}
    for record in site_records(model):
        name, budget = record["site"], record["budget"]
        amount = np.array([amounts.get(name, budget["default"])], np.int64)
        feeds[name] = {budget["input"]: amount} if budget.get("input") else {}
    return feeds


def default_budgets(model: ir.Model) -> dict[str, Array]:
    """Return every budget input of the graph with its default."""
    return {k: v for feeds in budget_feeds(model, {}).values() for k, v in feeds.items()}


def golden_from_torch(
    net: nn.Module,
    batch: Arrays,
    sites: Sequence[TokenSite],
    *,
    feeds: Mapping[str, dict[str, Array]] | None = None,
    restore: Sequence[str] = (),
) -> Golden:
    """Run the PyTorch reference on one batch of arrays."""
    import torch

    from secateur.models.reference import run

    tensors = {name: torch.from_numpy(np.asarray(x)) for name, x in batch.items()}
    own, given = given_apart(tensors, sites)
    result = run(net, own, given, restore=restore)
    return golden(batch, result, sites, feeds or {})


def golden(
    batch: Arrays,
    result: ReferenceRun,
    sites: Sequence[TokenSite],
    feeds: Mapping[str, dict[str, Array]],
) -> Golden:
    """Turn a reference's tensors into arrays."""
    return Golden(
        inputs=dict(batch),
        outputs={name: x.detach().numpy() for name, x in result.outputs.items()},
        sites={
            site.site: GoldenSite(
                score=result.sites[site.site].score.numpy(),
                eligible=result.sites[site.site].eligible.numpy(),
                kept=result.sites[site.site].kept.numpy(),
                protected=site.protected,
                feeds=dict(feeds.get(site.site, {})),
            )
            for site in sites
        },
    )


def renamed(goldens: Iterable[Golden], names: Sequence[str]) -> Iterator[Golden]:
    """Give the outputs the graph's names, by position where the names differ."""
    for one in goldens:
        if set(one.outputs) >= set(names):
            yield Golden(one.inputs, {n: one.outputs[n] for n in names}, one.sites)
            continue
        if len(one.outputs) != len(names):
            raise BadInputError(
                "the reference and the graph return different numbers of outputs",
                got=", ".join(one.outputs),
                wanted=", ".join(names),
            )
        outputs = dict(zip(names, one.outputs.values(), strict=True))
        yield Golden(one.inputs, outputs, one.sites)


def _members(before: Array, kept: Array) -> Array:
    """(B, N) positions that reach a site, (B, K) kept ones -> (B, N) bool."""
    found: Array = (before[:, :, None] == kept[:, None, :]).any(axis=2) & (before >= 0)
    return found


def _positions(members: Array) -> Array:
    """(B, N) bool -> (B, K) ascending positions, -1 behind a sample's count."""
    n_tokens = members.shape[1]
    position = np.where(members, np.arange(n_tokens), n_tokens)
    kept = np.sort(position, axis=1)[:, : int(members.sum(axis=1).max(initial=0))]
    return np.where(kept == n_tokens, -1, kept).astype(np.int64)


__all__ = [
    "Golden",
    "GoldenSite",
    "budget_feeds",
    "default_budgets",
    "golden",
    "golden_from_torch",
    "put_back_at",
    "renamed",
    "site_records",
    "token_sites",
]
