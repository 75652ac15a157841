"""What holds for every test."""

from __future__ import annotations

import os
from collections import Counter

import pytest

# Engines must come from the builder, not from what an earlier run of the tests left in the
# user's cache; a test of the cache names a folder of its own.
os.environ["SECATEUR_CACHE"] = "off"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests did not run: a skip without a reason on the screen looks like a pass."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(r.longrepr[2]) for r in skipped if isinstance(r.longrepr, tuple))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"not run: {count} tests, {reason.removeprefix('Skipped: ')}")
