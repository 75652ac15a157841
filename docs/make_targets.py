"""Write the last section of docs/targets.md: what TensorRT-RTX built, from the rows of `make rtx`.

Run it after a change of benchmarks/results/rtx.json; a test compares the page with what this makes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
ROWS = _HERE.parent / "benchmarks" / "results" / "rtx.json"
PAGE = _HERE / "targets.md"
HEADING = "## What TensorRT-RTX builds\n"
_PRECISIONS = ("float32", "float16")
_SECTION = """\

`make rtx` takes every transformer of the zoo file and of the examples, removes half of the heads
and of the FFN, lets it drop tokens at the first attention that allows it, and builds it in fp32 and
fp16 for {targets}: one engine for all of them, or one each where that is refused.
Each build has a process of its own with a time limit and a limit of its address space; a builder
that crashes is a row. Each side-car is checked against its ONNX file with the onnx package: names,
types and shapes of inputs and outputs, profiles, precision, hashes. A refusal passes only where
`tests/rtx/refusals.json` lists its model, target, operator and message. Nothing is executed: there
is no GPU in that run.

The table is written by `python docs/make_targets.py` from
[rtx.json](../benchmarks/results/rtx.json): TensorRT-RTX {version}, {date}, {count} models,
{built} built in full; {minutes} minutes of work, two models at a time. The error is that of the
lowered model with every result rounded, against float32.

| model | shapes | removed | tokens dropped | fp32 | fp16 | fp16 error |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page as it stands, its last section made anew."""
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(HEADING)
    content = json.loads(ROWS.read_text(encoding="utf-8"))
    models = [row for row in content["models"] if "removed" in row]
    section = _SECTION.format(
        targets=" and ".join(", ".join(content["compute_capabilities"]).rsplit(", ", 1)),
        version=content["tensorrt_rtx"],
        date=content["date"],
        count=len(models),
        built=content["built_in_full"],
        minutes=round(sum(row["seconds"] for row in content["models"]) / 60),
    )
    crashed = [row for row in content["models"] if "removed" not in row]
    return before + HEADING + section + "".join(map(_row, models)) + "".join(map(_crash, crashed))


def _row(row: dict[str, Any]) -> str:
    dropped = {"own": "in its own forward", "": f"no: {row['not_selected']}"}
    cells = [
        row["name"],
        ", ".join(row["dynamic"]).replace("_", " ") or f"fixed: {row['static']}",
        ", ".join(f"{ratio:.0%} {what}" for what, ratio in row["removed"].items()) or "nothing",
        dropped.get(row["selection"], row["selection"]),
        *(_built(row[precision]) for precision in _PRECISIONS),
        f"{row['float16_error']:.0e}",
    ]
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |\n"


def _plain(cell: str) -> str:
    """Without the names of the wrapper that the runner exports through, and without bars."""
    return re.sub(r"\b(net\.)?inner\.", "", " ".join(cell.split())).replace("|", "\\|")


def _built(facts: dict[str, Any]) -> str:
    missing = [target for target, message in facts["targets"].items() if message]
    return f"not {', '.join(missing)}" if missing else "all"


def _crash(row: dict[str, Any]) -> str:
    why = next(message for message in row["float32"]["targets"].values() if message)
    return f"\n`{row['name']}`, an attention of a tensor with itself: {_plain(why)}.\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
