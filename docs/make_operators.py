"""Write docs/reference/operators.md: every operator, and what may be cut through it.

Run it after a change of an axis rule; a test compares the page with what this makes.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import onnx.defs

from secateur.graph_passes.axes import AXIS_RULES
from secateur.graph_passes.axes.rules.frozen import FROZEN

FIRST, LAST = 11, 24
_SUBGRAPHS = ("If", "Loop")
_RULES = "../../graph_passes/axes/rules/"
_INTRODUCTION = f"""\
# Operators

What Secateur knows about each operator of opsets {FIRST} to {LAST}. An axis that the rule does not
carry stays as it is, and `secateur analyse --why-not` says why;
[Write an op rule](../how-to/write-an-op-rule.md) adds one. Every rule is held against its law by
`tests/laws`: the cut operator equals the whole one with the cut elements neutral. This page is
written by `python docs/make_operators.py`.
"""


def page() -> str:
    """The whole page."""
    versions = _versions()
    described = sorted(set(AXIS_RULES) - set(FROZEN))
    unknown = sorted(set(versions) - set(AXIS_RULES) - {"Constant", *_SUBGRAPHS})
    return "\n".join(
        [
            _INTRODUCTION,
            *_table("Described", described, versions),
            "## Kept whole\n",
            "Nothing that these touch is cut; the reason is the one given.\n",
            "| operator | opsets | reason |\n|---|---|---|",
            *(f"| {op} | {versions.get(op, '')} | {FROZEN[op]} |" for op in sorted(FROZEN)),
            *(
                f"| {op} | {versions[op]} | what its subgraphs read or make stays |"
                for op in _SUBGRAPHS
            ),
            "\n## Without a rule\n",
            "What these touch is kept whole, with the reason `no axis rule for the op`: ops on",
            "sequences, optional values and text, losses, and any op that is not on this page.\n",
            ", ".join(unknown) + ".\n",
        ]
    )


def _table(title: str, ops: Iterable[str], versions: dict[str, str]) -> list[str]:
    rows = [f"## {title}\n", "| operator | opsets | axes | rule |\n|---|---|---|---|"]
    for op in ops:
        rule = AXIS_RULES[op]
        first = (inspect.getdoc(rule) or "").split("\n")[0].replace("|", "\\|")
        file = rule.__module__.rsplit(".", 1)[-1]
        rows.append(f"| {op} | {versions.get(op, '')} | {first} | [{file}]({_RULES}{file}.py) |")
    return [*rows, ""]


def _versions() -> dict[str, str]:
    """Per op of the default domain the versions that a model of these opsets can mean."""
    since: dict[str, set[int]] = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain and schema.since_version <= LAST:
            since[schema.name].add(schema.since_version)
    found = {}
    for op, numbers in sorted(since.items()):
        first = max((n for n in numbers if n <= FIRST), default=FIRST + 1)
        found[op] = ", ".join(str(n) for n in sorted(numbers) if n >= first)
    return found


if __name__ == "__main__":
    Path(__file__).with_name("reference").joinpath("operators.md").write_text(page(), "utf-8")
