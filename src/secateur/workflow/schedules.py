"""Token keep schedules as a search sees them: genes, selections, agreement and expected time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import onnx_ir as ir

from secateur.calibration.search.journal import Genes
from secateur.calibration.search.layer_times import LayerTimes
from secateur.calibration.search.pareto import Space
from secateur.export.onnx_file import save
from secateur.graph_passes.attention import find_sites
from secateur.recipe import Selection
from secateur.runtime.backend import Array, Arrays, Run
from secateur.runtime.backends.onnxruntime import OnnxRuntime
from secateur.workflow.selecting import Select, select_tokens

KEEP = (1000, 900, 800, 700, 600, 500, 400, 300)
"""Permille of the valid tokens that a site keeps, by level; the first one is no site at all."""
_NEARLY_ALL = 0.999
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of selection that the sites of a schedule share."""

    by: str
    cut: str


@dataclass(frozen=True, slots=True)
class Schedules:
    """All schedules over some sites: gene 0 is the variant, then a level of ``KEEP`` a site."""

    variants: tuple[Variant, ...]
    sites: tuple[str, ...]
    protected: int = 1

    @property
    def space(self) -> Space:
        """What a search may choose from."""
        return Space((len(self.variants), *(len(KEEP) for _ in self.sites)))

    def variant(self, genes: Genes) -> Variant:
        """The kind of selection."""
        return self.variants[genes[0]]

    def permille(self, genes: Genes) -> dict[str, int]:
        """What each site keeps."""
        return {site: KEEP[level] for site, level in zip(self.sites, genes[1:], strict=True)}

    def selections(self, genes: Genes) -> tuple[Select, ...]:
        """The sites of a schedule that drop anything."""
        variant = self.variant(genes)
        return tuple(
            Select(site, variant.by, share / 1000, self.protected, cut=variant.cut)
            for site, share in self.permille(genes).items()
            if share < KEEP[0]
        )

    def everywhere(self, variant: Variant) -> tuple[Select, ...]:
        """A selection at every site; what each keeps is an input."""
        return tuple(
            Select(site, variant.by, _NEARLY_ALL, self.protected, cut=variant.cut)
            for site in self.sites
        )


class Questions(Protocol):
    """Batches, and what the dense model says to each."""

    @property
    def batches(self) -> Sequence[Arrays]:
        """Inputs."""

    @property
    def wanted(self) -> Sequence[Array]:
        """The dense model's output for each batch."""

    @property
    def output(self) -> str:
        """Name of that output."""


@dataclass(slots=True)
class Judge(AbstractContextManager["Judge"]):
    """Runs any schedule without building its graph: one graph per variant has every site."""

    model: ir.Model
    schedules: Schedules
    answered: Questions
    folder: Path
    layers: tuple[str, ...] = field(init=False)
    """Names of the attention blocks, in order."""
    _runs: dict[Variant, Run] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.layers = tuple(site.name for site in find_sites(self.model))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every session."""
        self._stack.close()

    def judge(self, genes: Genes, times: LayerTimes) -> tuple[float, float]:
        """Expected milliseconds a batch, and one minus the mean cosine to the dense model."""
        run = self._run(self.schedules.variant(genes))
        permille = self.schedules.permille(genes)
        feeds = {f"{site}.permille": np.array([k], np.int64) for site, k in permille.items()}
        costs, losses = [], []
        for batch, wanted in zip(self.answered.batches, self.answered.wanted, strict=True):
            seen = run({**batch, **feeds})
            losses.append(distances(seen[self.answered.output], wanted))
            costs.append(self._expected(genes, batch, seen, times))
        return float(np.mean(costs)), float(np.concatenate(losses).mean())

    def _expected(
        self, genes: Genes, batch: Arrays, seen: Mapping[str, Array], times: LayerTimes
    ) -> float:
        first = next(array for array in batch.values() if array.ndim > 1)
        rows, tokens = first.shape[:2]
        early = self.schedules.variant(genes).cut == "attention"
        permille, counts, sites = self.schedules.permille(genes), [], []
        for layer in self.layers:
            before = tokens
            if permille.get(layer, KEEP[0]) < KEEP[0]:
                tokens = seen[f"{layer}.kept"].shape[1]
                sites.append(rows * before)
            counts.append((rows * before, rows * (tokens if early else before)))
        return times.schedule(counts, sites, genes[0])

    def _run(self, variant: Variant) -> Run:
        if variant not in self._runs:
            model = select_tokens(self.model, self.schedules.everywhere(variant))
            path = self.folder / f"{variant.by.replace(':', '_')}_{variant.cut}.onnx"
            save(model, path)
            session = OnnxRuntime(optimisation="extended").session(path)
            self._runs[variant] = self._stack.enter_context(session)
        return self._runs[variant]


def distances(got: Array, wanted: Array) -> Array:
    """One minus the cosine of each sample's output, (B,)."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (got, wanted))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    apart: Array = 1 - (a * b).sum(axis=1) / np.maximum(lengths, _TINY)
    return apart


def selects(selections: Sequence[Selection]) -> tuple[Select, ...]:
    """The selections of a recipe."""
    return tuple(Select(**one.model_dump()) for one in selections)


def recipe_lines(selections: Sequence[Select]) -> str:
    """A schedule as it stands in a recipe."""
    lines = ["select:"]
    for one in selections:
        lines += [f"  - site: {one.site}", f"    by: {one.by}", f"    keep: {one.keep}"]
        lines += [f"    cut: {one.cut}"] if one.cut != "block" else []
    return "\n".join(lines) + "\n" if selections else "select: []\n"


__all__ = [
    "KEEP",
    "Judge",
    "Questions",
    "Schedules",
    "Variant",
    "distances",
    "recipe_lines",
    "selects",
]
