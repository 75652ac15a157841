"""Finds a TensorRT library and what it can do, by asking it and not by its version.

TensorRT-RTX and TensorRT share one Python interface; where they differ, it is probed here.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from typing import Any

from secateur.errors import BadInputError, MissingDependencyError
from secateur.runtime.versions import LIBRARIES, missing

# Text that follows a failed call on a machine without a GPU and has nothing to do with it.
_NOISE = re.compile(r"cudaError ?35|CUDA driver version is insufficient|catchCudaError")

# Said before each node; some of the parser's errors name no node, and this tells which it was.
_PARSING = re.compile(r"Parsing node: (.+) \[\S+\]$")


@dataclass(frozen=True, slots=True)
class Message:
    """One line of the log: "error", "warning", "info", or "parsing" with a node's name."""

    severity: str
    text: str

    @property
    def is_noise(self) -> bool:
        """Whether the line only says that there is no GPU, which a build does not need."""
        return _NOISE.search(self.text) is not None


def load(backend: str) -> Any:  # noqa: ANN401 (a module of an optional library)
    """Import the library behind a backend; MissingDependencyError names the install command.

    A library that is installed but cannot be loaded (no libnvinfer) is told apart.
    """
    library = LIBRARIES[backend]
    try:
        return importlib.import_module(library.module)
    except ModuleNotFoundError as error:
        raise missing(backend, str(error)) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"{library.title} is installed but one of its libraries cannot be loaded",
            where=f"import {library.module}",
            got=str(error),
            next_step=f"{library.install}: the bindings alone are not enough",
        ) from error


def make_logger(trt: Any, messages: list[Message]) -> Any:  # noqa: ANN401
    """A logger of the library that appends to ``messages``; keep it as long as the builder.

    Lines also go to standard error, which the parent reads when this process dies.
    """
    severities = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
        trt.ILogger.Severity.INFO: "info",
    }

    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what is said at info level and above."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
            """Called by the library for every line."""
            if parsing := _PARSING.match(text):
                messages.append(Message("parsing", parsing[1]))
            if severity in severities:
                messages.append(Message(severities[severity], str(text)))
                sys.stderr.write(f"[{severities[severity]}] {text}\n")
                sys.stderr.flush()

    return Collector()


def network_flags(trt: Any) -> int:  # noqa: ANN401
    """Creation flags that make the types in the graph binding.

    The flag's number differs between the libraries (0 in TensorRT-RTX), so it is looked up;
    versions before 10 also need an explicit batch, which later ones no longer name.
    """
    flags = trt.NetworkDefinitionCreationFlag
    return sum(
        1 << int(getattr(flags, name))
        for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH")
        if hasattr(flags, name)
    )


def set_capabilities(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:  # noqa: ANN401
    """Choose the compute capabilities to build for; none leaves the library's own choice."""
    if not capabilities:
        return
    if not hasattr(config, "set_compute_capability"):
        raise BadInputError(
            "this TensorRT builds for the GPU it runs on only",
            got=", ".join(capabilities),
            wanted="no compute capabilities, or TensorRT-RTX",
        )
    config.num_compute_capabilities = len(capabilities)
    for place, name in enumerate(capabilities):
        if not hasattr(trt.ComputeCapability, name.upper()):
            known = [n for n in dir(trt.ComputeCapability) if n.startswith("SM")]
            raise BadInputError(
                f"TensorRT-RTX {trt.__version__} cannot build for {name}",
                wanted="one of " + ", ".join(sorted(known)).lower(),
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), place)


def allow_decomposition(trt: Any, network: Any) -> int:  # noqa: ANN401
    """Let every attention layer without its own kernel (fp32) be built from parts; their number.

    Layers that the parser made come back as plain ``ILayer``; their class must be put right
    before the attention is reachable, as in TensorRT's own tools.
    """
    if not hasattr(trt, "IAttentionInputLayer"):
        return 0
    found = 0
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            attention_input = layer
            attention_input.attention.decomposable = True
            found += 1
    return found


__all__ = [
    "Message",
    "allow_decomposition",
    "load",
    "make_logger",
    "network_flags",
    "set_capabilities",
]
