"""The child process of a build: ``python -m secateur.runtime.build_worker REQUEST.json``.

Reads the request, writes ``engine`` and ``record.json`` beside it, or ``error.json``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from secateur import errors
from secateur.errors import BuildError, SecateurError
from secateur.runtime.backend import Built, EngineSpec
from secateur.runtime.build_job import BuildJob, Step
from secateur.runtime.tensorrt.build import build_engine

_PR_SET_PDEATHSIG = 1


def main(request_path: Path) -> int:
    """Build what the request says; 0, or 1 with the error in ``error.json``."""
    folder = request_path.parent
    request = json.loads(request_path.read_text(encoding="utf-8"))
    timings = str(request["timing_cache"])
    _die_with_parent(request["parent"])
    try:
        built = build_engine(
            request["backend"],
            Path(request["onnx"]),
            EngineSpec.from_json(request["spec"]),
            job=BuildJob(Path(timings) if timings else None, _print_step),
        )
        _write(built, folder)
    except SecateurError as error:
        (folder / "error.json").write_text(json.dumps(error_to_json(error)), encoding="utf-8")
        return 1
    return 0


def _print_step(step: Step) -> None:
    sys.stdout.write(step.to_line() + "\n")
    sys.stdout.flush()


def _write(built: Built, folder: Path) -> None:
    try:
        (folder / "engine").write_bytes(built.engine)
        (folder / "record.json").write_text(json.dumps(dict(built.record)), encoding="utf-8")
    except OSError as error:
        (folder / "engine").unlink(missing_ok=True)
        raise BuildError(
            "the engine was built and cannot be written",
            where=str(folder),
            got=str(error),
            wanted=f"room for {len(built.engine) / 1e6:.1f} MB",
            next_step="free some space, or set TMPDIR to a folder on another disk",
        ) from error


def error_to_json(error: SecateurError) -> dict[str, str]:
    """The parts of an error, to be raised again in the parent."""
    return {
        "type": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "got": error.got,
        "wanted": error.wanted,
        "next_step": error.next_step,
    }


def error_from_json(record: dict[str, str]) -> SecateurError:
    """The error that ``error_to_json`` wrote."""
    kind: type[SecateurError] = getattr(errors, record.pop("type"))
    return kind(record.pop("what"), **record)


def _die_with_parent(parent: int) -> None:
    """A killed build must not leave a builder running (Linux only; elsewhere it finishes)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be tied to this process
            sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))


__all__ = ["error_from_json", "error_to_json", "main"]
