"""Target strings: ``onnxruntime``, ``onnxruntime:cuda``, ``rtx:sm86,sm89``, ``tensorrt``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from secateur.errors import BadInputError

# Compute capabilities that each kind of target can be built for; an empty tuple: takes none.
CAPABILITIES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("cuda", "tensorrt", "rtx"),  # its execution providers; none is the CPU
    "tensorrt": (),  # builds for the GPU it runs on
    "rtx": ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A backend and the compute capabilities to build for; none means the backend's own set."""

    backend: str
    capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.capabilities:
            return self.backend
        return f"{self.backend}:{','.join(self.capabilities)}"

    @property
    def folder(self) -> str:
        """Name of the target's folder under ``engines/`` in a bundle."""
        return "-".join((self.backend, *self.capabilities))


def parse_target(text: str) -> Target:
    """Read a target string; BadInputError names the nearest valid one."""
    backend, colon, rest = text.strip().partition(":")
    if backend not in CAPABILITIES:
        raise _unknown("target", text, backend, tuple(CAPABILITIES))
    known = CAPABILITIES[backend]
    capabilities = tuple(part.strip().lower() for part in rest.split(",")) if colon else ()
    if capabilities and not known:
        raise BadInputError(
            f"target {backend!r} takes no compute capabilities",
            got=repr(text),
            wanted=repr(backend),
        )
    for capability in capabilities:
        if capability not in known:
            kind = "execution provider" if backend == "onnxruntime" else "compute capability"
            raise _unknown(kind, text, capability, known)
    if backend == "onnxruntime" and len(capabilities) > 1:
        raise BadInputError(
            "ONNX Runtime runs a target on one execution provider", got=repr(text), wanted="one"
        )
    if len(set(capabilities)) != len(capabilities):
        raise BadInputError("a compute capability is given twice", got=repr(text))
    return Target(backend, tuple(sorted(capabilities, key=known.index)))


def _unknown(kind: str, text: str, word: str, known: tuple[str, ...]) -> BadInputError:
    close = difflib.get_close_matches(word, known, n=1)
    hopper = "TensorRT-RTX has no build for sm90 (H100, H200); use tensorrt or onnxruntime there"
    return BadInputError(
        f"unknown {kind} {word!r}",
        where=f"target {text!r}",
        wanted="one of " + ", ".join(known),
        next_step=hopper if word == "sm90" else f"did you mean {close[0]!r}?" if close else "",
    )


__all__ = ["CAPABILITIES", "Target", "parse_target"]
