"""What holds for every test."""

from __future__ import annotations

import os
from collections import Counter

import pytest

# Engines must come from the builder, not from what an earlier run of the tests left in the
# user's cache; a test of the cache names a folder of its own.
os.environ["SECATEUR_CACHE"] = "off"

LONGEST = (
    "oracles/test_oracles.py",
    "families/test_families.py",
    "madtp/test_training.py",
    "export/test_to_torch.py",
    "export/test_families.py",
    "e2e/test_own_selection.py",
    "e2e/test_deploy.py",
)
"""Files that take longest, which go first: at the end one worker would wait for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, as far as they are asked for; the order is kept else."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get("/".join(item.path.parts[-2:]), len(LONGEST)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests did not run: a skip without a reason on the screen looks like a pass."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(r.longrepr[2]) for r in skipped if isinstance(r.longrepr, tuple))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"not run: {count} tests, {reason.removeprefix('Skipped: ')}")
