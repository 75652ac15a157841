"""The plot and the tables of benchmarks/structural_quality.py, for docs/calibration.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, PLOT = ROOT / "docs" / "calibration.md", ROOT / "docs" / "images" / "structural_quality.svg"
HEADING = "## What is left of a model\n"
NEXT = "## Searching a token schedule\n"
ORDER = ("cnn", "vit", "lm", "minilm")
SHOWN = ("random", "l2", "wanda", "flap", "obspa", "obspa (noise)", "obspa (blobs)")
NAMES = {"none": "nothing", "obspa_sweep": "obspa, column by column", "least_squares": "refit"}

Record = dict[str, Any]


def records(results: Path) -> list[Record]:
    """What was measured, in the order of the page."""
    paths = [results / f"structural_quality_{name}.json" for name in ORDER]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def write_page(results: Path) -> None:
    """Draw the plot and put the tables into the page."""
    found = records(results)
    draw(found)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEADING)
    told, _, after = rest.partition(NEXT)
    said = told.partition("### ")[0]  # by a person, in front of the first table
    PAGE.write_text(before + HEADING + said + section(found) + NEXT + after, "utf-8")


def section(found: list[Record]) -> str:
    """A table per model: half of the units gone, by importance and compensation."""
    return "".join(map(_table, found))


def _table(record: Record) -> str:
    rows = [row for row in record["rows"] if row.get("ratio") == 0.5]
    ways = list(dict.fromkeys(row["compensation"] for row in rows))
    left = {row["parameters_left"] for row in rows if "parameters_left" in row}
    head = (
        f"### {record['model']}: {record['measure']}, dense {record['dense']:.3f}\n\n"
        f"Half of the {' and '.join(record['removed'])} gone, "
        f"{_percent(left)} of the parameters left.\n\n"
        f"| importance | {' | '.join(NAMES.get(way, way) for way in ways)} |\n"
        f"|---|{'---|' * len(ways)}\n"
    )
    lines = []
    for importance in dict.fromkeys(row["importance"] for row in rows):
        mine = {row["compensation"]: row for row in rows if row["importance"] == importance}
        cells = " | ".join(_cell(mine.get(way, {})) for way in ways)
        lines.append(f"| {importance} | {cells} |\n")
    refused = [row for row in record["rows"] if "refused" in row and "ratio" not in row]
    told = "".join(f"\n`{row['importance']}` is refused: {row['refused']}.\n" for row in refused)
    return head + "".join(lines) + told + "\n"


def _percent(left: set[float]) -> str:
    low, high = round(100 * min(left)), round(100 * max(left))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _cell(row: Record) -> str:
    if not row:
        return "not measured"
    return f"{row['quality']:.3f}" if "quality" in row else "refused"


def draw(found: list[Record]) -> None:
    """One panel per model: quality against parameters left, without and with a refit."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "structural quality"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4.4 * len(found), 4.6), squeeze=False)
    for axes, record in zip(panels[0], found, strict=True):
        rows = [row for row in record["rows"] if "quality" in row]
        for i, importance in enumerate(SHOWN):
            own = "obspa" if importance.startswith("obspa") else "least_squares"
            for how, style in (("none", ":"), (own, "-")):
                line = [
                    r for r in rows if (r["importance"], r["compensation"]) == (importance, how)
                ]
                x = [1.0, *(row["parameters_left"] for row in line)]
                y = [record["dense"], *(row["quality"] for row in line)]
                label = f"{importance}, {NAMES.get(how, how)}" if record is found[0] else None
                axes.plot(x, y, style, marker="o", color=f"C{i}", label=label, markersize=3)
        axes.set(title=record["model"], xlabel="parameters left", ylabel=record["measure"])
        axes.invert_xaxis()
        if not record["higher_is_better"]:
            axes.set_ylim(top=min(axes.get_ylim()[1], 3 * record["dense"]))
    figure.legend(loc="lower center", ncol=4, fontsize=7)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


__all__ = ["records", "section", "write_page"]
