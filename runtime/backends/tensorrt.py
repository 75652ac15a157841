"""TensorRT and TensorRT-RTX: engines built in a child process, and run on a CUDA device.

TensorRT-RTX builds without a GPU, for any card; TensorRT builds for the GPU of its machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from secateur.errors import BuildError
from secateur.runtime.backend import BACKENDS, Built, Engine, EngineSpec, Run
from secateur.runtime.build_job import PROGRESS_MARK, QUIET, BuildJob, OnStep, Step
from secateur.runtime.build_worker import error_from_json
from secateur.runtime.checks import check_build
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.sites import sites_from_metadata
from secateur.runtime.targets import Target
from secateur.runtime.versions import installed_version

_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class TensorRt:
    """Builds in a child process, because the builder can crash and take its process along."""

    library: str
    """Key of ``versions.LIBRARIES``: ``tensorrt`` or ``rtx``."""
    contexts: int = 1
    """Calls that may run at once, from as many threads."""
    graphs: int = 16
    """CUDA graphs that each context keeps; 0 records none."""

    def build(self, onnx_path: Path, spec: EngineSpec) -> bytes:
        """The engine alone; see ``build_with_record``."""
        return self.build_with_record(onnx_path, spec).engine

    def build_with_record(self, onnx_path: Path, spec: EngineSpec, job: BuildJob = QUIET) -> Built:
        """The engine and its side-car.

        Raises BadInputError for what is wrong before a build (files, profiles, K), BuildError
        when the parser or builder refuses, crashes or takes longer than ``spec.timeout_s``,
        MissingDependencyError when the library is not there.
        """
        outline = read_outline(onnx_path)
        sites = sites_from_metadata(outline.metadata)
        check_build(outline, sites, spec, Target(self.library, spec.compute_capabilities))
        installed_version(self.library)
        return build_in_child(self.library, onnx_path, spec, job)

    @contextmanager
    def session(self, engine: Engine) -> Generator[Run]:
        """Yield ``run(arrays) -> outputs by name``, on the CUDA device of this machine.

        Raises MissingDependencyError when there is no device, BadInputError when the engine
        is for another version or GPU.
        """
        from secateur.runtime.tensorrt.session import SessionOptions, open_engine

        content = engine.read_bytes() if isinstance(engine, Path) else engine
        options = SessionOptions(self.contexts, self.graphs)
        with open_engine(self.library, content, options) as run:
            yield run


BACKENDS.register("rtx")(partial(TensorRt, "rtx"))
BACKENDS.register("tensorrt")(partial(TensorRt, "tensorrt"))


def build_in_child(backend: str, onnx_path: Path, spec: EngineSpec, job: BuildJob = QUIET) -> Built:
    """Run ``build_worker`` and bring back its engine, or its error as if raised here."""
    with tempfile.TemporaryDirectory(prefix="secateur-build-") as name:
        folder = Path(name)
        request = {
            "backend": backend,
            "onnx": str(onnx_path.resolve()),
            "spec": spec.to_json(),
            "timing_cache": str(job.timing_cache.resolve()) if job.timing_cache else "",
            "parent": os.getpid(),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        code = _run_worker(folder, spec.timeout_s, job.on_step)
        if code == 0:
            record: dict[str, Any] = json.loads((folder / "record.json").read_text())
            return Built((folder / "engine").read_bytes(), record)
        if (folder / "error.json").is_file():
            raise error_from_json(json.loads((folder / "error.json").read_text()))
        raise BuildError(
            f"the builder died: {_cause_of_death(code)}",
            where=str(onnx_path),
            got=_log_tail(folder / "log"),
            next_step="if it was out of memory, free some; else find the part of the model that "
            "does it: build it without its last layers, and report it to NVIDIA",
        )


def _run_worker(folder: Path, timeout_s: float, on_step: OnStep) -> int:
    # -P: a folder of the caller that is named like a package must not be imported.
    command = [sys.executable, "-P", "-m", "secateur.runtime.build_worker"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(folder / "request.json")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        reader = threading.Thread(target=_read_steps, args=(process, log, on_step), daemon=True)
        reader.start()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BuildError(
                f"the build took longer than {timeout_s:g} s and was stopped",
                got=_log_tail(folder / "log"),
                next_step="raise timeout_s, narrow the profile, or build on a faster machine",
            ) from error
        finally:
            process.kill()
            process.wait()
            reader.join()
        return code


def _read_steps(process: subprocess.Popen[bytes], log: IO[bytes], on_step: OnStep) -> None:
    """Tell of the steps in a build's standard output; what else is in it goes to the log."""
    if process.stdout is None:
        return
    with process.stdout:
        for line in process.stdout:
            if line.startswith(PROGRESS_MARK.encode()):
                on_step(Step.from_line(line.decode()))
            else:
                log.write(line)


def _cause_of_death(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


def _log_tail(log: Path) -> str:
    text = log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", errors="replace").strip()
    return text or "nothing in its log"


__all__ = ["TensorRt", "build_in_child"]
