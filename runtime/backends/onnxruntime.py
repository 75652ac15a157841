"""ONNX Runtime: the oracle of every parity check and the engine where there is no GPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import BadInputError, MissingDependencyError
from secateur.runtime.backend import BACKENDS, Array, Arrays, Engine, EngineSpec, Run
from secateur.runtime.signature import TensorInfo, check_inputs
from secateur.runtime.versions import missing

OPTIMISATION_LEVELS = ("disabled", "basic", "extended", "all")

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU),
    "rtx": ("NvTensorRTRTXExecutionProvider", CPU),
}
"""Providers of the targets ``onnxruntime:cuda`` and so on; those after the first take the rest."""

_INSTALL = {
    "CUDAExecutionProvider": "pip install onnxruntime-gpu[cuda,cudnn] in place of onnxruntime",
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu and TensorRT 10 (libnvinfer.so.10)",
    "NvTensorRTRTXExecutionProvider": "pip install onnxruntime-ep-nv-tensorrt-rtx",
}

_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}


@BACKENDS.register("onnxruntime")
@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """Runs on the CPU; with ``optimisation="disabled"`` a mismatch is ours, not a rewrite's.

    ``threads`` = 0 leaves the number to ONNX Runtime. Threads never spin while they wait:
    two sessions in one process would take each other's cores (DESIGN.md section 7).
    """

    optimisation: str = "disabled"
    threads: int = 0
    providers: tuple[str, ...] = (CPU,)

    def build(self, onnx_path: Path, spec: EngineSpec) -> bytes:
        """The file itself: ONNX Runtime compiles when it loads and takes every shape.

        A model with external data has no meaning as bytes alone: hand its path to ``session``.
        """
        del spec
        if not onnx_path.is_file():
            raise BadInputError("the ONNX file does not exist", where=str(onnx_path))
        return onnx_path.read_bytes()

    @contextmanager
    def session(self, engine: Engine) -> Generator[Run]:
        """Yield ``run(arrays) -> outputs by name``; a path may have external data beside it.

        Raises BadInputError for a file that is not ONNX or not runnable, and from ``run`` for
        wrong names, dtypes and shapes, before anything is computed.
        """
        session = _open(engine, self)
        inputs = signature(session)
        names = [output.name for output in session.get_outputs()]
        answer = run_bound if self.providers[0] != CPU else _run_plain

        def run(arrays: Arrays) -> dict[str, Array]:
            feed = check_inputs(arrays, inputs)
            try:
                return dict(zip(names, answer(session, names, feed), strict=True))
            except _runtime_errors() as error:
                shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in feed.items())
                raise BadInputError(
                    "ONNX Runtime could not run the model on these inputs",
                    where=str(error),
                    got=shapes,
                    next_step="check the values: token ids, positions and k inside their ranges",
                ) from error

        yield run


def _run_plain(session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:  # noqa: ANN401
    return list(session.run(names, feed))


def run_bound(session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:  # noqa: ANN401
    """Run with bound memory: outputs are made on the session's device and copied once.

    Inputs are copied by ONNX Runtime where their readers are, budgets stay on the host.
    """
    device = "cpu" if session.get_providers()[0] == CPU else "cuda"
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for name in names:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


def signature(session: Any) -> tuple[TensorInfo, ...]:  # noqa: ANN401 (an optional library's type)
    """Inputs of an open session; those with a default in the file come last, as optional."""
    wanted = [(value, False) for value in session.get_inputs()]
    optional = [(value, True) for value in session.get_overridable_initializers()]
    return tuple(_tensor_info(value, is_optional) for value, is_optional in wanted + optional)


def _tensor_info(value: Any, optional: bool) -> TensorInfo:  # noqa: ANN401
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    # An optional input may broadcast: its default is often [1, 1] for a declared [batch, tokens].
    unnamed = {str: ""} if optional else {}
    sizes = tuple(unnamed.get(type(size), size or "") for size in value.shape)
    return TensorInfo(value.name, _NUMPY_NAMES.get(name, name), sizes, optional)


def _open(engine: Engine, options: OnnxRuntime) -> Any:  # noqa: ANN401
    ort = _library()
    if isinstance(engine, Path) and not engine.is_file():
        raise BadInputError("the ONNX file does not exist", where=str(engine))
    first = options.providers[0]
    if first not in ort.get_available_providers():
        raise _no_provider(first, f"ONNX Runtime {ort.__version__} here has none")
    try:
        session = ort.InferenceSession(
            str(engine) if isinstance(engine, Path) else engine,
            _session_options(ort, options),
            providers=list(options.providers),
        )
    except _runtime_errors() as error:
        raise BadInputError(
            "ONNX Runtime cannot open the model",
            where=str(engine) if isinstance(engine, Path) else f"{len(engine)} bytes",
            got=str(error),
            next_step="if the file is not ONNX or was cut short, make it again; if an operator "
            f"is unknown to ONNX Runtime {ort.__version__}, install a newer one",
        ) from error
    if session.get_providers()[0] != first:  # it falls back to the CPU with a line in the log
        raise _no_provider(first, "it could not be started; ONNX Runtime's log says why")
    return session


def _no_provider(name: str, why: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"ONNX Runtime's {name} is not to be had on this machine",
        got=why,
        next_step=_INSTALL.get(name, "install an ONNX Runtime that has it"),
    )


def _session_options(ort: Any, options: OnnxRuntime) -> Any:  # noqa: ANN401
    if options.optimisation not in OPTIMISATION_LEVELS:
        raise BadInputError(
            f"unknown optimisation level {options.optimisation!r}",
            wanted="one of " + ", ".join(OPTIMISATION_LEVELS),
        )
    level = "DISABLE_ALL" if options.optimisation == "disabled" else options.optimisation.upper()
    level = f"ORT_{level}" if level.startswith("DISABLE") else f"ORT_ENABLE_{level}"
    chosen = ort.SessionOptions()
    chosen.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    chosen.intra_op_num_threads = options.threads
    chosen.log_severity_level = 3
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return chosen


def _library() -> Any:  # noqa: ANN401
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", str(error)) from error
    return onnxruntime


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors; they share no base class but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile")
    more = ("NoModel", "NotImplemented", "RuntimeException", "EPFail")
    return tuple(getattr(state, name) for name in (*names, *more))


__all__ = ["CPU", "OPTIMISATION_LEVELS", "PROVIDERS", "OnnxRuntime", "run_bound", "signature"]
