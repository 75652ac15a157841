"""The tables of results that several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from secateur.commands.console import print_line, print_table
from secateur.workflow.results import Agreement, Check, Proof, spell_error

if TYPE_CHECKING:
    from secateur.runtime.parity import GoldenParity
    from secateur.workflow.bisect import BisectReport


def print_proofs(proofs: Sequence[Proof]) -> None:
    """Removed graph against the masked one."""
    if proofs:
        print_table(
            "removal: smaller graph == dense graph with the removed units neutral",
            ("inputs", "output", "relative error>", "bound>", ""),
            [
                (p.inputs, p.output, spell_error(p.relative_error), spell_error(p.bound), _mark(p))
                for p in proofs
            ],
        )


def print_checks(checks: Sequence[Check]) -> None:
    """Parity, part by part."""
    if checks:
        print_table(
            "parity with the reference",
            ("target", "part", "of", "measured>", "bound>", "", "note"),
            [(c.target, c.part, c.subject, c.figure, c.limit, _mark(c), c.note) for c in checks],
        )


def print_agreements(agreements: Sequence[Agreement]) -> None:
    """The shipped model against the dense one."""
    if agreements:
        print_table(
            "against the dense model, as shipped",
            ("target", "measure", "value>", "over"),
            [(a.target, a.metric, f"{a.value:.4f}", a.note) for a in agreements],
        )


def print_golden_parity(result: GoldenParity) -> None:
    """A bundle against its goldens, worst batches first."""
    rows: list[tuple[object, ...]] = []
    for site in result.sites:
        error, bound = spell_error(site.score_error), spell_error(site.score_bound)
        rows.append(("score", site.site, error, bound, _word(site.passed), site.reason))
        rows.append(("flips", site.site, site.flips, "", _word(site.passed), ""))
    kinds = (("value", result.outputs, True), ("free", result.free, not result.selects_tokens))
    for kind, outputs, judged in kinds:
        for output in outputs:
            error, bound = spell_error(output.relative_error), spell_error(output.bound)
            verdict = _word(output.passed) if judged else ""
            note = f"cosine {output.cosine:.7f}"
            rows.append((kind, output.name, error, bound if judged else "", verdict, note))
    title = f"{result.target} against the goldens, {result.cases} batches"
    print_table(title, ("part", "of", "measured>", "bound>", "", "note"), rows)


def print_bisect(report: BisectReport) -> None:
    """The layers up to the first bad one, and what to try."""
    bad = report.first_bad
    last = report.checks.index(bad) + 1 if bad else len(report.checks)
    rows = [
        (c.module, c.operator, c.value, spell_error(c.relative_error), _word(c.passed))
        for c in report.checks[max(0, last - 12) : last]
    ]
    columns = ("module", "operator", "value", "relative error>", "")
    print_table(f"layer by layer, {len(report.checks)} values compared", columns, rows)
    if bad is None:
        print_line("every layer agrees")
    else:
        print_line(f"first bad layer: {bad.module}\n{report.advice}")


def print_bench(rows: Sequence[dict[str, Any]]) -> None:
    """Latency and what it is worth."""
    if rows:
        print_table(
            "latency in ms: dense and pruned in turns, medians",
            ("variant", "batch>", "tokens>", "dense>", "pruned>", "speed-up>", "FLOPs ratio>",
             "efficiency>", "p10 - p90>", "optimisation"),
            [_bench_row(row) for row in rows],
        )  # fmt: skip


def _bench_row(row: dict[str, Any]) -> tuple[object, ...]:
    times = (f"{row['dense_ms']:.2f}", f"{row['pruned_ms']:.2f}")
    speed_up = f"{row['dense_ms'] / row['pruned_ms']:.2f}"
    ratio, efficiency = row["flops_ratio"], row["efficiency"]
    spread = (row["efficiency_p10"], row["efficiency_p90"])
    worth = (
        (f"{ratio:.2f}", f"{efficiency:.2f}", f"{spread[0]:.2f} - {spread[1]:.2f}")
        if ratio
        else ("unknown", "", "")
    )
    names = (row["variant"], row["batch"], row["tokens"])
    return (*names, *times, speed_up, *worth, row["optimisation_level"])


def _mark(line: Proof | Check) -> str:
    return _word(line.passed)


def _word(passed: bool) -> str:
    return "ok" if passed else "FAILED"


__all__ = [
    "print_agreements",
    "print_bench",
    "print_bisect",
    "print_checks",
    "print_golden_parity",
    "print_proofs",
]
