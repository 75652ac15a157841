"""How good a model is after units were removed, for every importance and compensation.

Run: python benchmarks/structural_quality.py [cnn vit lm minilm], then with --page for the plot
and the tables of docs/calibration.md. Nothing is fine-tuned. Random units are the control, the
median of several draws; ``obspa (noise)`` and ``obspa (blobs)`` are OBSPA without data: they see
made-up inputs only, also where what went is made up for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from quality_models import CASES, Batch, Case
from quality_page import write_page

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.compensation import Remembered, compensate
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.prunenet_training import Training, train_policy
from secateur.calibration.importance.shrp_training import Training as Routing
from secateur.calibration.importance.shrp_training import train_routers
from secateur.calibration.planning import removable
from secateur.errors import SecateurError
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove
from secateur.workflow.counting import parameter_count

RESULTS = Path(__file__).resolve().parent / "results"
RATIOS = (0.25, 0.5, 0.7)
TRAINED = (
    *("taylor", "taylor_joint", "taylor_samples", "snip", "grasp", "fisher"),
    *("loraprune", "gaprune", "relevance", "relevance_samples"),
)
"""Criteria that look at what comes from training."""
IMPORTANCE = (
    *("random", "l1", "l2", "group_norm", "lamp", "fpgm", "bn_scale", "synflow", "prunenet"),
    *("apoz", "hrank", "output_norm", "top1_usage", "shrp", "spatten", "easyep"),
    *("wanda", "cfsp", "flap", "flap_ifv", "flap_wifn", "obd", "obs", "tyr", *TRAINED),
    *("obspa", "obspa (noise)", "obspa (blobs)"),
)
COMPENSATION = ("none", "bias", "obspa_sweep", "obspa", "tyr", "least_squares")
ONLY = {"shrp": "heads"}
"""Criteria that rank units of one role; the others stay whole, so that more parameters are left."""
DRAWS = 3
"""Seeds of the control."""

Row = dict[str, Any]


def main() -> None:
    """Measure the cases, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--importance", nargs="*", default=list(IMPORTANCE))
    parser.add_argument("--compensation", nargs="*", default=list(COMPENSATION))
    parser.add_argument("--ratios", nargs="*", type=float, default=list(RATIOS))
    parser.add_argument("--add", action="store_true", help="keep what was measured of others")
    parser.add_argument("--page", action="store_true", help="draw and write what the results hold")
    options = parser.parse_args()
    if options.page:
        write_page(RESULTS)
        return
    torch.set_num_threads(1)  # what is trained is the same network on any number of cores
    for name in options.cases:
        start = time.perf_counter()
        path = RESULTS / f"structural_quality_{name}.json"
        bench = Bench.of(CASES[name](), options)
        known: Row = {"case": name, **bench.head(), "seconds": 0, "rows": []}
        if options.add:
            known = _known(path, known["dense"], options)
        before = known["seconds"]
        for row in bench.rows():
            known["rows"].append(row)
            known["seconds"] = before + round(time.perf_counter() - start)
            print(row, flush=True)
            _write(path, known)


def _known(path: Path, dense: float, options: argparse.Namespace) -> Row:
    """What was measured of the same model, without the cells that are measured now."""
    known: Row = json.loads(path.read_text(encoding="utf-8"))
    if known["dense"] != dense:
        raise SystemExit(f"the model is another one: {known['dense']} then, {dense} now")
    known["rows"] = [
        row
        for row in known["rows"]
        if row["importance"] not in options.importance
        or row.get("compensation", options.compensation[0]) not in options.compensation
        or row.get("ratio", options.ratios[0]) not in options.ratios
    ]
    return known


def _write(path: Path, record: Row) -> None:
    """One row a line: a run that is stopped keeps what it found."""
    head = json.dumps({key: value for key, value in record.items() if key != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in sorted(record["rows"], key=_place))
    path.write_text(head.removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def _place(row: Row) -> tuple[int, float, int]:
    """Where a row stands in the file."""
    how = COMPENSATION.index(row["compensation"]) if "compensation" in row else -1
    return IMPORTANCE.index(row["importance"]), row.get("ratio", 0.0), how


@dataclass(frozen=True)
class Bench:
    """One model, whose units are ranked and removed in every way."""

    case: Case
    options: argparse.Namespace
    analysis: Analysis
    parameters: int
    known: dict[str, Remembered] = field(default_factory=dict)
    """Sums of what weights read, by the kind of made-up data."""

    @staticmethod
    def of(case: Case, options: argparse.Namespace) -> Bench:
        """Analyse the model once."""
        return Bench(case, options, analyse(case.model), parameter_count(case.model))

    def head(self) -> Row:
        """What every row is compared with."""
        return {
            "model": self.case.name,
            "measure": self.case.measure,
            "higher_is_better": self.case.higher_is_better,
            "removed": list(self.case.roles),
            "parameters": self.parameters,
            "dense": round(self.case.quality(self.case.model), 5),
        }

    def rows(self) -> Iterator[Row]:
        """One row per importance, compensation and ratio; what is refused says why."""
        for importance in self.options.importance:
            name, _, made_up = importance.removesuffix(")").partition(" (")
            if made_up and made_up not in self.case.made_up:
                continue
            data = self.case.made_up[made_up] if made_up else self.case.calibration
            known = self.known.setdefault(made_up, Remembered(data))
            draws = DRAWS if importance == "random" else 1
            try:
                scores = [self._scores(name, data, seed) for seed in range(draws)]
            except SecateurError as error:
                yield {"importance": importance, "refused": str(error.what)}
                continue
            for ratio in self.options.ratios:
                for how in self.options.compensation:
                    yield self._row(scores, importance, (ratio, how), known)

    def _scores(self, name: str, data: list[Batch], seed: int) -> list[dict[str, Any]]:
        found = []
        for role in self.case.roles:
            if role != ONLY.get(name, role) and ONLY[name] in self.case.roles:
                continue
            groups = removable(self.analysis, role)
            given = self.case.arrays() if name in TRAINED else {}
            if name == "prunenet":  # one policy for all groups of a role
                given = given | train_policy(groups, Training(ratio=0.5))
            if name == "shrp":
                given = given | train_routers(self.analysis, groups, data, Routing())
            context = Context(self.analysis, groups, data, seed=seed, arrays=given)
            found.append(rank(name, context))
        return found

    def _row(
        self,
        draws: list[list[dict[str, Any]]],
        importance: str,
        cell: tuple[float, str],
        data: Remembered,
    ) -> Row:
        ratio, how = cell
        row: Row = {"importance": importance, "compensation": how, "ratio": ratio}
        try:
            models = [self._cut(scores, ratio, how, data) for scores in draws]
        except SecateurError as error:
            return row | {"refused": str(error.what)}
        quality = [self.case.quality(model) for model in models]
        left = parameter_count(models[0]) / self.parameters
        return row | {
            "parameters_left": round(left, 4),
            "quality": round(statistics.median(quality), 5),
        }

    def _cut(
        self, scores: list[dict[str, Any]], ratio: float, how: str, data: Remembered
    ) -> ir.Model:
        keep = {
            name: units
            for one in scores
            for name, units in allocate(one, Allocation(ratio, at_least=1)).items()
        }
        plan = make_plan(self.analysis, keep)
        model = self.case.model
        return remove(model if how == "none" else compensate(model, plan, data, method=how), plan)


if __name__ == "__main__":
    main()
