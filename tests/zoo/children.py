"""Jobs in child processes, so that a crash or an endless loop costs one job only."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

Report = Callable[[dict[str, Any]], None]
Work = Callable[[str, Report], None]


@dataclass
class Job:
    """One running child; ``facts`` is what it has reported so far."""

    name: str
    process: BaseProcess
    pipe: Connection
    started: float
    facts: dict[str, Any] = field(default_factory=dict)

    def drain(self) -> bool:
        """Take in what was reported; False once the child has closed its end."""
        try:
            while self.pipe.poll():
                self.facts.update(self.pipe.recv())
        except EOFError:
            return False
        return True


@dataclass(frozen=True)
class Pool:
    """Runs ``work(name, report)`` for each name, ``width`` at a time, each in a fork.

    A fork, not a fresh interpreter: torch is imported once, not once per model.
    """

    work: Work
    width: int
    timeout_s: float
    logs: Path

    def results(self, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the facts of each job as it ends."""
        self.logs.mkdir(parents=True, exist_ok=True)
        waiting, running = list(names), list[Job]()
        while waiting or running:
            while waiting and len(running) < self.width:
                running.append(self._start(waiting.pop(0)))
            wait([job.pipe for job in running], timeout=0.5)
            for job in list(running):
                if self._ended(job):
                    running.remove(job)
                    yield job.name, job.facts

    def _start(self, name: str) -> Job:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_child, args=(self.work, name, theirs, self.logs / f"{name}.log")
        )
        process.start()
        theirs.close()
        return Job(name, process, ours, time.perf_counter())

    def _ended(self, job: Job) -> bool:
        seconds = time.perf_counter() - job.started
        open_still = job.drain()
        if open_still and seconds < self.timeout_s:
            return False
        if open_still:
            job.process.kill()
            job.facts["error"] = f"no answer within {self.timeout_s:.0f} s"
        job.process.join()
        code = job.process.exitcode
        if code and "error" not in job.facts:
            job.facts["error"] = f"the process died with code {code}"
        job.facts["seconds"] = round(seconds, 2)
        job.pipe.close()
        return True


def _child(work: Work, name: str, pipe: Connection, log: Path) -> None:
    """Run the job with its output in ``log``; an exception is reported as its error."""
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 2)  # native libraries write there
        with redirect_stdout(stream), redirect_stderr(stream):
            try:
                work(name, pipe.send)
            except Exception as error:
                import traceback

                traceback.print_exc()
                first_line = str(error).strip().splitlines()[:1]
                pipe.send({"error": f"{type(error).__name__}: {' '.join(first_line)}"})
    pipe.close()
