"""What goes on during one build: progress out, timings of earlier builds in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from secateur.errors import BadInputError

# Before a line of the build's standard output that is a step, and not the library's own text.
PROGRESS_MARK = "\x1esecateur-progress "


@dataclass(frozen=True, slots=True)
class Step:
    """Where the builder is: ``done`` of ``steps`` in a phase, which is inside ``parent``."""

    phase: str
    parent: str
    done: int
    steps: int

    def to_line(self) -> str:
        """The line that ``from_line`` reads."""
        return PROGRESS_MARK + json.dumps([self.phase, self.parent, self.done, self.steps])

    @staticmethod
    def from_line(line: str) -> Step:
        """The step of a line that begins with the mark."""
        phase, parent, done, steps = json.loads(line.removeprefix(PROGRESS_MARK))
        return Step(str(phase), str(parent), int(done), int(steps))


OnStep: TypeAlias = Callable[[Step], None]


def ignore(step: Step) -> None:
    """Progress that nobody watches."""
    del step


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Circumstances of a build that do not change the engine's meaning.

    ``timing_cache`` is a file that keeps the library's measurements from build to build, made
    where there is none; None keeps nothing. ``on_step`` is told of every step.
    """

    timing_cache: Path | None = None
    on_step: OnStep = field(default=ignore)


QUIET = BuildJob()
"""A build that keeps no timings and tells nobody."""


class StepPrinter:
    """Prints the outermost phases as they advance: one line that is rewritten, on a terminal."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, step: Step) -> None:
        """Show a step, unless it says what was shown already."""
        if step.parent:
            return
        text = f"{step.phase}: {step.done}/{step.steps}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<60}" + ("\n" if step.done >= step.steps else ""))
            sys.stderr.flush()
        elif step.phase != self._last:
            sys.stderr.write(f"{step.phase}\n")
        self._last = step.phase


MIN_WORKSPACE_BYTES = 64 << 20
# Peak of host memory of a build over the size of the weights, rounded up from measurements with
# TensorRT-RTX 1.7.1: 4.2 for fp32 and 5.5 for fp16 models of 165 to 448 MB.
_PEAK_OVER_WEIGHTS = 6
_FIXED_BYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are free, and that a build of a model is likely to take besides workspace."""

    free_bytes: int
    needed_bytes: int

    def workspace(self, wanted_bytes: int) -> int:
        """The workspace that leaves room for the rest; at most what is wanted."""
        left = (self.free_bytes - self.needed_bytes) // 2
        return min(wanted_bytes, max(left, MIN_WORKSPACE_BYTES))

    def check(self) -> None:
        """Raise BadInputError where the build would be killed half way."""
        if self.free_bytes >= self.needed_bytes + MIN_WORKSPACE_BYTES:
            return
        raise BadInputError(
            "there is too little free memory for this build",
            got=f"{self.free_bytes >> 20} MiB free (with swap)",
            wanted=f"about {(self.needed_bytes + MIN_WORKSPACE_BYTES) >> 20} MiB",
            next_step="stop other programs (a Jetson's desktop: sudo systemctl isolate "
            "multi-user.target), add swap on disk, or build the fp16 model; "
            "--no-memory-check builds anyway",
        )


def memory_for(weights_bytes: int, meminfo: str) -> Memory:
    """What ``/proc/meminfo`` says is free, swap included, and what weights of that size need."""
    found = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) << 10 if rest.split() else 0
    free = found.get("MemAvailable", 0) + found.get("SwapFree", 0)
    return Memory(free, _PEAK_OVER_WEIGHTS * weights_bytes + _FIXED_BYTES)


__all__ = [
    "MIN_WORKSPACE_BYTES",
    "PROGRESS_MARK",
    "QUIET",
    "BuildJob",
    "Memory",
    "OnStep",
    "Step",
    "StepPrinter",
    "ignore",
    "memory_for",
]
