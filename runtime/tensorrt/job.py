"""Progress and timings of a TensorRT build, by the library's own interfaces."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from secateur.runtime.build_job import OnStep, Step
from secateur.runtime.files import partial_path, replace

logger = logging.getLogger(__name__)


def watch(trt: Any, config: Any, on_step: OnStep) -> None:  # noqa: ANN401
    """Tell of every phase and step of the build that the configuration is for."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Translates the library's calls, which come from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._open: dict[str, tuple[str, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            """A phase begins, inside another one or, with None or "", on its own."""
            self._open[phase_name] = (parent_phase or "", int(num_steps))
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step, counted from 0, is done; True lets the build go on."""
            self._tell(phase_name, int(step) + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """A phase is done, even if it skipped steps."""
            _, steps = self._open.get(phase_name, ("", 0))
            self._tell(phase_name, steps)
            self._open.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            parent, steps = self._open.get(phase, ("", 0))
            on_step(Step(phase, parent, done, steps))

    config.progress_monitor = Monitor()


def use_timings(config: Any, file: Path | None) -> None:  # noqa: ANN401
    """Start from the timings of earlier builds; those of another machine or version are left."""
    if file is None:
        return
    content = file.read_bytes() if file.is_file() else b""
    timing_cache = config.create_timing_cache(content)
    if timing_cache is None or not config.set_timing_cache(timing_cache, False):
        logger.warning("the timings in %s are not of this machine and are left", file)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep_timings(config: Any, file: Path | None) -> None:  # noqa: ANN401
    """Write what was measured; a file that cannot be written costs time in the next build only."""
    if file is None:
        return
    timing_cache = config.get_timing_cache()
    content = bytes(timing_cache.serialize())
    unfinished = partial_path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        replace(unfinished, file)
    except OSError as error:
        logger.warning("the timings are not kept: %s", error)
        if unfinished.exists():
            unfinished.unlink()


__all__ = ["keep_timings", "use_timings", "watch"]
