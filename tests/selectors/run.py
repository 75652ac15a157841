"""Every selector in every kind of model: ``make selectors``.

The rows go to ``build/selectors.json``. A refusal counts only when ``refusals.json`` beside this
file has it; anything else that is not ok fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.selectors.cell import Row, check
from tests.selectors.methods import METHODS
from tests.selectors.targets import TARGETS

KNOWN = Path(__file__).with_name("refusals.json")
OUTPUT = Path("build/selectors.json")


def main() -> int:
    """Fill the table; 1 when a cell failed or was refused for a reason that is not known."""
    options = _options()
    index, count = options.shard
    names = list(METHODS)[index - 1 :: count]  # one process traces a method for all models
    cells = [(name, target) for name in names for target in TARGETS]
    if options.only:
        cells = [cell for cell in cells if set(options.only) & {*cell, cell[0].split()[0]}]
    console, rows = Console(width=150), []
    for name, target in cells:
        row = check(name, target, engine=not options.no_engine)
        rows.append(row)
        console.print(_line(row), highlight=False)
    console.print(_table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    new = unknown_refusals(rows)
    for refusal in new:
        console.print("new refusal:", json.dumps(refusal), highlight=False, soft_wrap=True)
    failed = [row for row in rows if row.failed]
    for row in failed:
        console.print("failed:", _line(row), highlight=False, soft_wrap=True)
    refused = sum(bool(row.refusals) for row in rows)
    counts = f"{refused} refused, {len(failed)} failed, {len(new)} new refusals"
    console.print(f"{len(rows)} cells, {counts}", highlight=False)
    return 1 if failed or new or not rows else 0


def unknown_refusals(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Refusals that nobody has written down."""
    known = json.loads(KNOWN.read_text())
    found = [asdict(refusal) for row in rows for refusal in row.refusals]
    return [one for one in found if one not in known]


def _line(row: Row) -> str:
    cells = ", ".join(f"{key} {getattr(row, key)}" for key in ("free", "forced", "alone", "rtx"))
    reasons = "; ".join(one.message for one in row.refusals)
    return f"{row.target} {row.selector}: {cells} ({row.seconds} s) {reasons}".strip()


def _table(rows: list[Row]) -> Table:
    table = Table("selector", "kind of model", "free", "forced", "alone", "RTX", "seconds")
    for row in sorted(rows, key=lambda one: (one.selector, one.target)):
        told = (getattr(row, key).split(":")[0] for key in ("free", "forced", "alone", "rtx"))
        table.add_row(row.selector, row.target, *told, f"{row.seconds:.1f}")
    return table


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    made = int(index), int(count)
    if not 1 <= made[0] <= made[1]:
        raise argparse.ArgumentTypeError(f"{text} is no shard, such as 1/4")
    return made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="such as 1/4")
    parser.add_argument("--only", nargs="*", default=[], help="selectors or kinds of model")
    parser.add_argument("--no-engine", action="store_true", help="leave TensorRT-RTX out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
