"""Prune every model of a zoo file by half and prove each result: ``make zoo``.

The zoo file is the one that ``SECATEUR_ZOO`` names. The rows go to ``build/zoo.json``,
the last line of the output counts the models that passed and that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from catalogue import Zoo, default_path, open_zoo
from children import Pool
from entry import Entries, verdict
from rich.console import Console
from rich.table import Table

MODULE_TOLERANCE = 1e-5
_NOTHING_KNOWN: dict[str, Any] = {
    "exported": False,
    "groups": 0,
    "sites": 0,
    "heads_found": 0,
    "heads_removed": 0,
    "parameters_left": 1.0,
    "exact": False,
    "max_rel_error": None,
    "refusals": [],
}


def main() -> int:
    """Run the chosen entries; 1 when one of them failed."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 150)
    zoo = open_zoo(options.zoo)
    names = chosen(zoo, options.only, options.shard)
    console.print(f"{zoo.path}: {len(names)} of {len(zoo.names)} entries", highlight=False)
    _import_what_every_child_needs()
    rows = list(_rows(zoo, names, options, console))
    _write(rows, options.output)
    console.print(_table(rows))
    console.print(_modules(rows), highlight=False)
    left_out = sorted(zoo.not_exportable & set(zoo.names) - set(names))
    if left_out:
        console.print(f"not exportable, says the file: {', '.join(left_out)}")
    failed = sum(bool(row["failure"]) for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed", flush=True)  # noqa: T201
    return 1 if failed or not rows else 0


def chosen(zoo: Zoo, only: list[str], shard: tuple[int, int]) -> list[str]:
    """Entries asked for by name, else all that the file does not excuse; one share of them."""
    unknown = sorted(set(only) - set(zoo.names))
    if unknown:
        raise SystemExit(f"{zoo.path} has no entry {', '.join(unknown)}")
    wanted = only or [name for name in zoo.names if name not in zoo.not_exportable]
    names = [name for name in zoo.names if name in wanted]
    index, count = shard
    return names[index - 1 :: count]


def _rows(zoo: Zoo, names: list[str], options: argparse.Namespace, console: Console) -> Any:
    entries = Entries(zoo, options.exports, options.seed, options.renormalise)
    pool = Pool(entries.run, options.jobs, options.timeout, options.output.with_suffix(".logs"))
    for count, (name, facts) in enumerate(pool.results(names), start=1):
        row = {"name": name, **_NOTHING_KNOWN, **facts}
        row["failure"] = verdict(row)
        console.print(
            f"[{count}/{len(names)}] {name}: {row['failure'] or 'ok'} ({row['seconds']:.1f} s)",
            markup=False,
            highlight=False,
        )
        yield row


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "model",
        "groups",
        "heads",
        "expected",
        "parameters left",
        "error",
        "as module",
        "prune s",
        "",
    )
    for row in sorted(rows, key=lambda row: row["name"]):
        error, seconds = row["max_rel_error"], row.get("pruning_seconds")
        module = row.get("module_error")
        table.add_row(
            row["name"],
            str(row["groups"]),
            f"{row['heads_removed']}/{row['heads_found']}",
            _expected(row),
            f"{row['parameters_left']:.1%}",
            "-" if error is None else f"{error:.1e}",
            "-" if module is None else f"{module:.1e}",
            "-" if seconds is None else f"{seconds:.3f}",
            row["failure"] or ("ok, renormalised" if row.get("renormalised") else "ok"),
        )
    return table


def _modules(rows: list[dict[str, Any]]) -> str:
    """How many of the pruned models are as good in PyTorch, and which are refused."""
    errors = [row["module_error"] for row in rows if row.get("module_error") is not None]
    refused = [
        f"{row['name']} ({row['module_refused']})" for row in rows if "module_refused" in row
    ]
    equal = sum(error <= MODULE_TOLERANCE for error in errors)
    line = f"as PyTorch modules: {equal} of {len(errors)} equal to {MODULE_TOLERANCE:.0e}"
    return f"{line}, {len(refused)} refused{': ' if refused else ''}{'; '.join(refused)}"


def _expected(row: dict[str, Any]) -> str:
    """Heads that the torch module speaks of, marked where the analysis found others."""
    expected = row.get("heads_expected")
    if not expected:
        return "-"
    return f"{expected}" if expected == row["heads_found"] else f"{expected} (differs)"


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(sorted(rows, key=lambda row: row["name"]), indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _import_what_every_child_needs() -> None:
    """Import once, before the forks, what takes seconds to import."""
    import onnxruntime
    import onnxscript
    import torch

    import secateur.export.torch_export

    del onnxruntime, onnxscript, secateur
    torch.set_num_threads(1)


def _share(text: str) -> tuple[int, int]:
    """Read ``i/n``, i counted from 1."""
    index, count = (int(part) for part in text.split("/"))
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text} is no share: wanted 1/{count} to {count}/{count}")
    return index, count


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=default_path(), help="file with the models")
    parser.add_argument("--only", nargs="+", default=[], help="names of entries")
    parser.add_argument("--shard", type=_share, default=(1, 1), help="i/n: every n-th entry")
    parser.add_argument(
        "--exports", type=Path, default=None, help="folder that keeps the exported files"
    )
    parser.add_argument("--output", type=Path, default=Path("build/zoo.json"))
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--renormalise", action="store_true", help="cut what norms are taken over as well"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
