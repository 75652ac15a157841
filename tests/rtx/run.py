"""Build engines of TensorRT-RTX for every transformer, pruned and selecting: ``make rtx``.

No GPU is needed. The rows go to ``build/rtx.json``; those of
``benchmarks/results/rtx.json`` are in docs/targets.md, by ``docs/make_targets.py``. A refusal
by the builder counts only where ``refusals.json`` lists it; a new one fails the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "zoo"))

from builds import CAPABILITIES, PRECISIONS, Entries  # noqa: E402
from catalogue import Zoo, default_path, open_zoo  # noqa: E402
from children import Pool  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from subjects import CRASH, mend_torchvision, names_of  # noqa: E402
from verdicts import in_full, verdict  # noqa: E402

LEAST_MODELS, LEAST_BUILT = 25, 20
REFUSALS = HERE / "refusals.json"


def main() -> int:
    """Build the chosen models; 1 when one of them failed, or too few were built."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 150)
    zoo = open_zoo(options.zoo)
    everything = names_of(zoo)
    names = chosen(everything, options.only, options.shard)
    console.print(f"{len(names)} of {len(everything)} models", highlight=False)
    _import_what_every_child_needs(zoo)
    entries = Entries(
        zoo, options.exports, options.timeout, options.memory_gib << 30, options.static
    )
    pool = Pool(
        entries.run, options.jobs, 12 * options.timeout, options.output.with_suffix(".logs")
    )
    listed = json.loads(REFUSALS.read_text(encoding="utf-8"))
    rows = _kept(options, names, listed)
    for row in _rows(pool, names, listed, console):
        rows.append(row)
        _write(rows, options.output)  # a run that is stopped keeps what it found
    console.print(_table(rows))
    if missing := sorted(set(everything) - {row["name"] for row in rows}):
        console.print(f"no row yet: {', '.join(missing)}", highlight=False)
    return _verdict(rows, whole=len(rows) == len(everything))


def _kept(
    options: argparse.Namespace, names: list[str], listed: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """With ``--add``, the rows of earlier runs; judged anew, since the list may have changed."""
    if not (options.add and options.output.is_file()):
        return []
    rows = json.loads(options.output.read_text(encoding="utf-8"))["models"]
    kept = [row for row in rows if row["name"] not in names]
    return [row | {"failure": verdict(row, listed)} for row in kept]


def _verdict(rows: list[dict[str, Any]], *, whole: bool) -> int:
    failed = [row["name"] for row in rows if row["failure"]]
    real = [row for row in rows if row["name"] != CRASH]
    built = sum(in_full(row) for row in real)
    print(  # noqa: T201
        f"{built} of {len(real)} models built in full for {', '.join(CAPABILITIES)} in "
        f"{' and '.join(PRECISIONS)}; {len(failed)} failed",
        flush=True,
    )
    too_few = whole and (len(real) < LEAST_MODELS or built < LEAST_BUILT)
    return 1 if failed or not rows or too_few else 0


def chosen(names: list[str], only: list[str], shard: tuple[int, int]) -> list[str]:
    """Those asked for by name, else one share of all."""
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise SystemExit(f"there is no model {', '.join(unknown)}; wanted some of {names}")
    index, count = shard
    return [name for name in names if not only or name in only][index - 1 :: count]


def _rows(
    pool: Pool, names: list[str], listed: list[dict[str, str]], console: Console
) -> Iterator[dict[str, Any]]:
    for count, (name, facts) in enumerate(pool.results(names), start=1):
        row = {"name": name, "exported": False, **facts}
        row["failure"] = verdict(row, listed)
        console.print(
            f"[{count}/{len(names)}] {name}: {row['failure'] or 'ok'} ({row['seconds']:.1f} s)",
            markup=False,
            highlight=False,
        )
        yield row


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", "removed", "tokens dropped by", "fp16 error", *PRECISIONS, "")
    for row in sorted(rows, key=lambda row: row["name"]):
        error = row.get("float16_error")
        table.add_row(
            row["name"],
            ", ".join(f"{r:.0%} {what}" for what, r in row.get("removed", {}).items()) or "-",
            row.get("selection") or row.get("not_selected", "-"),
            "-" if error is None else f"{error:.1e}",
            *(_cell(row.get(precision)) for precision in PRECISIONS),
            row["failure"][:80] or "ok",
        )
    return table


def _cell(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "-"
    missing = [target for target, message in facts["targets"].items() if message]
    return "all" if not missing else f"not {', '.join(missing)}"


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    content = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "tensorrt_rtx": version("tensorrt_rtx_cu13"),
        "compute_capabilities": list(CAPABILITIES),
        "executed": False,
        "built_in_full": sum(in_full(row) for row in rows),
        "models": sorted(rows, key=lambda row: row["name"]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _import_what_every_child_needs(zoo: Zoo) -> None:
    """Import once, before the forks, what takes seconds to import."""
    mend_torchvision(zoo)
    for name in ("timm", "transformers"):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
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
    parser.add_argument("--only", nargs="+", default=[], help="names of models")
    parser.add_argument("--shard", type=_share, default=(1, 1), help="i/n: every n-th model")
    parser.add_argument(
        "--exports", type=Path, default=None, help="folder that keeps the exported files"
    )
    parser.add_argument("--output", type=Path, default=Path("build/rtx.json"))
    parser.add_argument(
        "--static", action="store_true", help="leave the zoo at the shapes of its examples"
    )
    parser.add_argument("--add", action="store_true", help="keep the other rows of the output")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one build")
    parser.add_argument("--memory-gib", type=int, default=24, help="address space of a builder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
