"""What surrounds a build on the machine that will run the engine: memory, progress, proof."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from secateur.errors import MissingDependencyError, ParityError
from secateur.runtime import cuda_driver
from secateur.runtime.backend import EngineSpec
from secateur.runtime.build_job import MIN_WORKSPACE_BYTES, Memory, memory_for
from secateur.runtime.bundle import GOLDENS_NAME, MODEL_NAME, open_bundle
from secateur.runtime.bundle_writer import Draft
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.parity import GoldenParity, check_goldens
from secateur.runtime.profiles import complete_spec
from secateur.runtime.targets import Target, parse_target
from secateur.runtime.trtexec import trtexec_line

logger = logging.getLogger(__name__)

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Proof:
    """What the goldens say of a target: a comparison, or why there is none."""

    target: str
    parity: GoldenParity | None
    why_not: str


def memory_of(draft: Draft) -> Memory | None:
    """Free memory of this machine and what the draft's model needs; None where none can be told.

    On a machine whose GPU shares the memory (Jetson) that is all there is.
    """
    if not _MEMINFO.is_file():
        return None
    model = draft.folder / MODEL_NAME
    files = {model, *(model.parent / d.location for d in read_outline(model).external)}
    weights_bytes = sum(file.stat().st_size for file in files)
    return memory_for(weights_bytes, _MEMINFO.read_text(encoding="ascii"))


def fitting_workspace(spec: EngineSpec, memory: Memory) -> int:
    """The largest power of two that leaves room, at most what the specification allows.

    Powers of two, because the workspace is part of what a cached engine was made from.
    """
    limit = memory.workspace(spec.workspace_bytes)
    if limit >= spec.workspace_bytes:
        return spec.workspace_bytes
    fitting = MIN_WORKSPACE_BYTES
    while fitting * 2 <= limit:
        fitting *= 2
    logger.info("workspace lowered to %d MiB, to fit in memory", fitting >> 20)
    return fitting


def trtexec_of(path: Path) -> str:
    """The trtexec command for a bundle's model, run inside the bundle's folder."""
    with open_bundle(path) as bundle:
        spec = complete_spec(read_outline(bundle.model), bundle.manifest.spec, Target("tensorrt"))
        return trtexec_line(MODEL_NAME, spec, spec.shape_values)


def prove(path: Path, target: str) -> Proof:
    """Compare a target of a bundle with the goldens, where there are some and a device to run it.

    ParityError is not raised: ask ``parity``.
    """
    with open_bundle(path) as bundle:
        if GOLDENS_NAME not in bundle:
            return Proof(target, None, "the bundle has no goldens")
        if parse_target(target).backend != "onnxruntime":
            try:
                cuda_driver.check_device()
            except MissingDependencyError as error:
                return Proof(target, None, f"no CUDA device here ({error.got})")
        if bundle.manifest.sites and not bundle.engine(target).forced:
            return Proof(target, None, "built without its forced twin (--forced builds it)")
        return Proof(target, check_goldens(bundle, target), "")


def refuse_unequal(proofs: list[Proof]) -> None:
    """Raise ParityError for the first target that does not agree with the goldens."""
    for proof in proofs:
        if proof.parity is not None and not proof.parity.passed:
            raise ParityError(
                f"target {proof.target!r} was built and does not agree with the goldens",
                got="; ".join(proof.parity.failures()) or "no golden batch",
                next_step="secateur parity --bisect names the first layer that differs",
            )


__all__ = [
    "Proof",
    "fitting_workspace",
    "memory_of",
    "prove",
    "refuse_unequal",
    "trtexec_of",
]
