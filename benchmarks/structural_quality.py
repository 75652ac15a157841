"""How good a model is after units were removed, for every importance and compensation.

Run: python benchmarks/structural_quality.py [cnn vit lm minilm] [--plot]
Nothing is fine-tuned; random units are the control. ``obspa (made up)`` sees random inputs only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from quality_models import CASES, Case

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.compensation import compensate
from secateur.calibration.importance import Context, rank
from secateur.calibration.planning import removable
from secateur.errors import SecateurError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove
from secateur.workflow.counting import parameter_count

RESULTS = Path(__file__).resolve().parent / "results"
RATIOS = (0.25, 0.5, 0.7)
IMPORTANCE = ("random", "l1", "l2", "lamp", "fpgm", "bn_scale", "apoz", "output_norm", "spatten",
              "wanda", "cfsp", "flap", "obd", "obs", "tyr", "obspa")  # fmt: skip
COMPENSATION = ("none", "bias", "obspa_sweep", "obspa", "least_squares")
MADE_UP = "obspa (made up)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--importance", nargs="*", default=[*IMPORTANCE, MADE_UP])
    parser.add_argument("--compensation", nargs="*", default=list(COMPENSATION))
    parser.add_argument("--ratios", nargs="*", type=float, default=list(RATIOS))
    parser.add_argument("--plot", action="store_true", help="draw what the results hold")
    options = parser.parse_args()
    if options.plot:
        plot()
        return
    for name in options.cases:
        start = time.perf_counter()
        rows = list(measure(CASES[name](), options))
        record = {"case": name, "seconds": round(time.perf_counter() - start), "rows": rows}
        path = RESULTS / f"structural_quality_{name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(summary(rows))


def measure(case: Case, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield one row per importance, compensation and ratio; refused criteria say why."""
    dense = {"model": case.name, "measure": case.measure}
    yield dense | {"importance": "dense", "ratio": 0.0, "quality": case.quality(case.model)}
    analysis = analyse(case.model)
    whole = parameter_count(case.model)
    for importance in options.importance:
        made_up = importance == MADE_UP
        data = case.made_up if made_up else case.calibration
        try:
            scores = [
                rank(importance.partition(" ")[0], Context(analysis, groups, data))
                for role in case.roles
                if (groups := removable(analysis, role))
            ]
        except SecateurError as error:
            yield dense | {"importance": importance, "refused": str(error.what)}
            continue
        for ratio in options.ratios:
            keep = {
                name: units
                for one in scores
                for name, units in allocate(one, Allocation(ratio, at_least=1)).items()
            }
            for how in options.compensation:
                model = _cut(case.model, keep, how, data)
                yield dense | {
                    "importance": importance,
                    "compensation": how,
                    "ratio": ratio,
                    "parameters_left": parameter_count(model) / whole,
                    "quality": case.quality(model),
                }


def _cut(model: ir.Model, keep: dict[str, tuple[int, ...]], how: str, data: list) -> ir.Model:
    plan = make_plan(analyse(model), keep)
    fitted = model if how == "none" else compensate(model, plan, data, method=how)
    return remove(fitted, plan)


def summary(rows: list[dict[str, object]]) -> str:
    """A table of quality at half of the units, and what is missing."""
    found = [row for row in rows if row.get("ratio") == 0.5]
    lines = [f"{rows[0]['model']}: {rows[0]['measure']}, dense {rows[0]['quality']:.3f}"]
    for importance in dict.fromkeys(row["importance"] for row in found):
        mine = [row for row in found if row["importance"] == importance]
        cells = "  ".join(f"{row['compensation']} {row['quality']:.3f}" for row in mine)
        lines.append(f"  {importance:<16} {cells}")
    lines += [f"  {r['importance']}: {r['refused']}" for r in rows if "refused" in r]
    return "\n".join(lines)


def plot() -> None:
    """One panel per model: quality against parameters left, best compensation of each criterion."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    records = [
        json.loads(path.read_text()) for path in sorted(RESULTS.glob("structural_quality_*"))
    ]
    figure, panels = plt.subplots(1, len(records), figsize=(5.2 * len(records), 4.4), squeeze=False)
    shown = ("random", "l2", "wanda", "flap", "obspa", MADE_UP)
    for axes, record in zip(panels[0], records, strict=True):
        rows = [row for row in record["rows"] if "compensation" in row]
        for i, importance in enumerate(shown):
            for how, style in (("none", ":"), ("least_squares", "-")):
                line = [
                    r for r in rows if (r["importance"], r["compensation"]) == (importance, how)
                ]
                x, y = ([r[key] for r in line] for key in ("parameters_left", "quality"))
                label = f"{importance}, {how}" if record is records[0] else None
                axes.plot(x, y, style, marker="o", color=f"C{i}", label=label, markersize=3)
        axes.axhline(record["rows"][0]["quality"], color="grey", linewidth=0.8)
        axes.set(title=record["rows"][0]["model"], xlabel="parameters left",
                 ylabel=record["rows"][0]["measure"])  # fmt: skip
        axes.invert_xaxis()
        if np.max([r["quality"] for r in rows]) > 8:
            axes.set_yscale("log")
    figure.legend(loc="lower center", ncol=6, fontsize=7)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(RESULTS / "structural_quality.svg")


if __name__ == "__main__":
    main()
