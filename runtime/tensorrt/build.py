"""Builds a TensorRT engine in this process.

Only ``build_worker`` should call it: the builder can crash and takes its process along.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from secateur.errors import BadInputError, BuildError
from secateur.runtime.backend import Built, EngineSpec, ShapeRange
from secateur.runtime.build_job import BuildJob
from secateur.runtime.checks import describe
from secateur.runtime.files import sha256_of
from secateur.runtime.onnx_outline import ModelOutline, NodeOutline, read_outline
from secateur.runtime.tensorrt.api import (
    Message,
    allow_decomposition,
    load,
    make_logger,
    network_flags,
    set_capabilities,
)
from secateur.runtime.tensorrt.job import keep_timings, use_timings, watch

SIDECAR_SCHEMA = 1


def build_engine(backend: str, onnx_path: Path, spec: EngineSpec, *, job: BuildJob) -> Built:
    """Parse, configure and build; the engine and its side-car.

    Raises BuildError with every error of the parser (node and module named) or the builder's
    log. A profile that is not self-consistent, which the builder only warns of, is an error.
    """
    trt = load(backend)
    outline = read_outline(onnx_path)
    messages: list[Message] = []
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, onnx_path, outline, messages=messages)
    decomposed = allow_decomposition(trt, network) if spec.decomposable_attention else 0
    spec = _with_flags(spec, network, outline)
    config = _configure(trt, builder, network, spec=spec)
    watch(trt, config, job.on_step)
    use_timings(config, job.timing_cache)
    serialised = builder.build_serialized_network(network, config)
    _check_log(messages, outline, built=serialised is not None)
    engine = bytes(serialised)
    keep_timings(config, job.timing_cache)
    record = {
        "schema": SIDECAR_SCHEMA,
        "backend": backend,
        "inputs": _tensors(network.num_inputs, network.get_input),
        "outputs": _tensors(network.num_outputs, network.get_output),
        "profiles": spec.to_json()["profiles"],
        "shape_values": spec.to_json()["shape_values"],
        "more_profiles": spec.to_json()["more_profiles"],
        "compute_capabilities": list(spec.compute_capabilities),
        "workspace_bytes": spec.workspace_bytes,
        "decomposed_attentions": decomposed,
        "precision": json.loads(outline.metadata.get("secateur.precision", "{}")).get(
            "dtype", "float32"
        ),
        "memory_bytes": _memory(messages),
        "warnings": _texts(messages, "warning"),
        "versions": {
            LIBRARY_VERSION: trt.__version__,
            "secateur": version("secateur"),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "engine_sha256": hashlib.sha256(engine).hexdigest(),
        "onnx_sha256": _hashes(onnx_path, outline),
    }
    return Built(engine, record)


LIBRARY_VERSION = "tensorrt"


def _parse(
    parser: Any,  # noqa: ANN401
    onnx_path: Path,
    outline: ModelOutline,
    *,
    messages: list[Message],
) -> None:
    """Parse from the path, so that external data is found."""
    if parser.parse_from_file(str(onnx_path)):
        return
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    last = next((m.text for m in reversed(messages) if m.severity == "parsing"), "")
    lines = [_parser_error(error, outline, last) for error in errors]
    raise BuildError(
        f"the parser refuses the model ({len(lines)} errors)" if lines else "the parser fails",
        where="\n          ".join(lines),
        got=str(onnx_path),
        next_step="replace the operators named above; the rest of the model was not looked at",
    )


def _parser_error(error: Any, outline: ModelOutline, last: str) -> str:  # noqa: ANN401
    """Node, module and description; ``last`` is the node that was parsed last."""
    name = str(error.node_name()) or last
    node = next((n for n in outline.nodes if name in {n.name, _given_name(n)}), None)
    place = describe(node) if node else f"node {name!r} ({error.node_operator()})"
    return f"{place}: {str(error.desc()).strip()}"


def _given_name(node: NodeOutline) -> str:
    """The parser's name for a node without one."""
    return f"node_of_{node.outputs[0]}" if node.outputs else ""


def _configure(trt: Any, builder: Any, network: Any, *, spec: EngineSpec) -> Any:  # noqa: ANN401
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    # Layer names and shapes stay in the engine, for the report after the build.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    set_capabilities(trt, config, spec.compute_capabilities)
    for one in spec.each():
        profile = builder.create_optimization_profile()
        for place in range(network.num_inputs):
            _set_range(profile, network.get_input(place), one)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                "the builder refuses the profile",
                got=str(one.to_json()["profiles"]),
                next_step="check min <= opt <= max for every input",
            )
    return config


_ASKED = frozenset({"Cast", "Equal", "Greater", "Not"})
"""What tells a mask of zeros and ones from numbers that something is looked up by."""

_MOVES = frozenset({"Expand", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})


def _with_flags(spec: EngineSpec, network: Any, outline: ModelOutline) -> EngineSpec:  # noqa: ANN401
    """Let a mask that decides a shape hold zeros and ones, where its values have no range.

    The builder takes a mask of fixed shape to the host, if how many tokens stay depends on it.
    """
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    decisive = {tensor.name: tuple(tensor.shape) for tensor in inputs if tensor.is_shape_tensor}
    flags = {
        name: ShapeRange(*((value,) * prod(shape) for value in (0, 1, 1)))
        for name, shape in decisive.items()
        if -1 not in shape and _readers(name, outline) <= _ASKED
    }
    return spec.with_each(
        [replace(one, shape_values={**flags, **one.shape_values}) for one in spec.each()]
    )


def _readers(name: str, outline: ModelOutline) -> set[str]:
    """Operators that read a value, behind those that only move it."""
    found: set[str] = set()
    for node in outline.nodes:
        if name in node.inputs:
            moves = node.operator in _MOVES and node.inputs[0] == name
            found |= _readers(node.outputs[0], outline) if moves else {node.operator}
    return found


def _set_range(profile: Any, tensor: Any, spec: EngineSpec) -> None:  # noqa: ANN401
    """Shape inputs have their values ranged, all others their shapes."""
    name = tensor.name
    if tensor.is_shape_tensor:
        why = "decides a shape and has no range of values"
        span = _range(spec.shape_values, name, why, _NO_VALUES.format(name))
        profile.set_shape_input(name, list(span.low), list(span.usual), list(span.high))
    elif -1 in tuple(tensor.shape):
        why = "has a dynamic shape and no range for it"
        span = _range(spec.profiles, name, why, "give (min, opt, max) for it")
        profile.set_shape(name, span.low, span.usual, span.high)


_NO_VALUES = (
    "export the model with a dynamic batch, so that the GPU reads it; or give the least, usual and "
    "largest value of each element: EngineSpec(shape_values={{{0!r}: ShapeRange(min, opt, max)}})"
)


def _range(ranges: Mapping[str, ShapeRange], name: str, why: str, next_step: str) -> ShapeRange:
    if name not in ranges:
        raise BadInputError(
            f"input {name!r} {why}",
            got="ranges for " + (", ".join(ranges) or "nothing"),
            next_step=next_step,
        )
    return ranges[name]


def _check_log(messages: list[Message], outline: ModelOutline, *, built: bool) -> None:
    inconsistent = [m for m in messages if "not self-consistent" in m.text]
    if built and not inconsistent:
        return
    errors = [m for m in messages if m.severity == "error" and not m.is_noise]
    told = inconsistent or errors or [m for m in messages if m.severity == "warning"]
    text = "\n".join(message.text for message in told)
    raise BuildError(
        "the profile is not self-consistent: some allowed shapes cannot run"
        if inconsistent
        else "the builder refuses the model",
        where=_named_modules(text, outline),
        got=text or "no message",
        next_step=_advice(text),
    )


# What a builder's message means for the user; the first pattern that matches counts.
_ADVICE = (
    (r"HW-specific datatypes", "build only for compute capabilities that have these types"),
    (r"FP32 GEMM is not supported", "sm75 has no fp32 matrix product: use fp16, or leave it out"),
    (r"exceeds the maximum value allowed", "keep at most 3840 tokens, or lower the profile's N"),
    (r"workspace", "raise workspace_bytes"),
    (r"dedicated kernel", "leave decomposable_attention on, or cast around it to fp16"),
    (r"not self-consistent", "narrow the profile so that K <= N holds at min, opt and max"),
)


def _advice(text: str) -> str:
    for pattern, advice in _ADVICE:
        if re.search(pattern, text):
            return advice
    return "secateur inspect shows the nodes; compare with a build of the dense model"


def _named_modules(text: str, outline: ModelOutline) -> str:
    """Nodes of the model that a message mentions, with their modules.

    ``ForeignNode[first...last]`` names the two ends of what was fused.
    """
    words = set(re.findall(r"[\w./:-]+", text.replace("...", " ")))
    named = [describe(node) for node in outline.nodes if node.name and node.name in words]
    return ", ".join(named[:5])


def _tensors(count: int, get: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [
        {
            "name": tensor.name,
            "dtype": _dtype(str(tensor.dtype)),
            "shape": list(tensor.shape),
            "is_shape_input": bool(tensor.is_shape_tensor),
        }
        for tensor in (get(place) for place in range(count))
    ]


def _dtype(name: str) -> str:
    """``DataType.FLOAT`` as NumPy spells it."""
    short = name.rpartition(".")[2].lower()
    return {"float": "float32", "half": "float16", "bf16": "bfloat16"}.get(short, short)


def _memory(messages: Iterable[Message]) -> dict[str, int]:
    """What the builder says of memory; an engine cannot be asked without a GPU."""
    found: dict[str, int] = {}
    for message in messages:
        match = re.fullmatch(r"Total (Activation|Weights) Memory: (\d+) bytes", message.text)
        if match:
            found[match[1].lower()] = int(match[2])
    return found


def _texts(messages: Iterable[Message], severity: str) -> list[str]:
    """Each text once, in the order of the log."""
    found = [m.text for m in messages if m.severity == severity and not m.is_noise]
    return list(dict.fromkeys(found))


def _hashes(onnx_path: Path, outline: ModelOutline) -> dict[str, str]:
    names = [onnx_path.name, *sorted({data.location for data in outline.external})]
    return {name: sha256_of(onnx_path.parent / name) for name in names}


__all__ = ["LIBRARY_VERSION", "SIDECAR_SCHEMA", "build_engine"]
