"""Opens a TensorRT engine and runs it, one call at a time, on the first CUDA device.

Not yet run on hardware: no CUDA device was at hand when this was written. Every name of the
library that it uses is held to the published bindings of four versions by a test.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime import cuda_driver
from secateur.runtime.backend import Array, Arrays, Run
from secateur.runtime.signature import TensorInfo, check_inputs
from secateur.runtime.tensorrt_api import Message, load, make_logger


@contextmanager
def open_engine(backend: str, content: bytes) -> Generator[Run]:
    """Deserialise an engine and yield ``run``.

    Raises MissingDependencyError for no library or no device, BadInputError for an engine
    that this library or device cannot open; never yields without an engine.
    """
    trt = load(backend)
    cuda_driver.check_device()
    messages: list[Message] = []
    logger = make_logger(trt, messages)
    with cuda_driver.device_context(), cuda_driver.stream() as stream:
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise _cannot_open(trt, messages)
        context = engine.create_execution_context()
        if context is None:
            raise _cannot_open(trt, messages)
        inputs, outputs = _signature(trt, engine)

        def run(arrays: Arrays) -> dict[str, Array]:
            with ExitStack() as stack:
                return _Call(trt, context, stream, stack).run(check_inputs(arrays, inputs), outputs)

        yield run


class _Call:
    """One execution: device copies of the inputs, allocators for the outputs."""

    def __init__(self, trt: Any, context: Any, stream: int, stack: ExitStack) -> None:  # noqa: ANN401
        self._trt = trt
        self._context = context
        self._stream = stream
        self._stack = stack

    def run(self, feed: dict[str, Array], outputs: tuple[TensorInfo, ...]) -> dict[str, Array]:
        """Run once and wait; outputs by name, with the sizes that the run decided."""
        for name, array in feed.items():
            self._bind_input(name, array)
        allocators = {info.name: self._bind_output(info.name) for info in outputs}
        if not self._context.execute_async_v3(self._stream):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise BadInputError(
                "TensorRT could not run the engine on these inputs",
                got=shapes,
                wanted="shapes and values inside the engine's profile (see its side-car)",
            )
        cuda_driver.synchronise(self._stream)
        return {info.name: allocators[info.name].fetch(np.dtype(info.dtype)) for info in outputs}

    def _bind_input(self, name: str, array: Array) -> None:
        engine = self._context.engine
        if engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            # The values decide shapes: TensorRT reads them on the host, at execution.
            self._context.set_tensor_address(name, array.ctypes.data)
        else:
            address = cuda_driver.allocate(array.nbytes)
            self._stack.callback(cuda_driver.free, address)
            cuda_driver.copy_to_device(address, array.ctypes.data, array.nbytes)
            self._context.set_tensor_address(name, address)
        if not self._context.set_input_shape(name, array.shape):
            raise BadInputError(
                f"the shape of input {name!r} is outside the engine's profile",
                got=str(list(array.shape)),
                wanted=f"between {_profile_ends(engine, name)}",
                next_step="build with a wider profile, or split the batch",
            )

    def _bind_output(self, name: str) -> Any:  # noqa: ANN401
        allocator = _allocator(self._trt)
        self._stack.callback(allocator.release)
        self._context.set_output_allocator(name, allocator)
        return allocator


def _allocator(trt: Any) -> Any:  # noqa: ANN401
    """An output allocator: TensorRT asks it for memory once it knows the size."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        """Holds one output of one execution."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._address = 0
            self._capacity_bytes = 0
            self._shape: tuple[int, ...] = ()

        def reallocate_output_async(
            self,
            name: str,
            memory: int,
            size: int,
            alignment: int,
            stream: int,
        ) -> int:
            """Memory for the output; the driver aligns to 256 bytes."""
            if size > self._capacity_bytes or not self._address:
                self.release()
                self._address = cuda_driver.allocate(size)
                self._capacity_bytes = size
            return self._address

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ANN401
            """Called when the output's shape is known."""
            self._shape = tuple(shape)

        def fetch(self, dtype: np.dtype[Any]) -> Array:
            """The output as a new host array."""
            array = np.empty(self._shape, dtype)
            if array.nbytes:
                cuda_driver.copy_to_host(array.ctypes.data, self._address, array.nbytes)
            return array

        def release(self) -> None:
            """Free the memory."""
            if self._address:
                cuda_driver.free(self._address)
            self._address = 0
            self._capacity_bytes = 0

    return Allocator()


def _signature(trt: Any, engine: Any) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:  # noqa: ANN401
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        shape = tuple("" if size < 0 else size for size in engine.get_tensor_shape(name))
        info = TensorInfo(name, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name, shape)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(info)
    return tuple(inputs), tuple(outputs)


def _profile_ends(engine: Any, name: str) -> str:  # noqa: ANN401
    low, _, high = engine.get_tensor_profile_shape(name, 0)
    return f"{list(low)} and {list(high)}"


def _cannot_open(trt: Any, messages: list[Message]) -> BadInputError:  # noqa: ANN401
    errors = [message.text for message in messages if message.severity == "error"]
    return BadInputError(
        "TensorRT cannot open the engine on this machine",
        got="\n".join(errors) or "no message",
        wanted=f"an engine built for {trt.__version__} and this GPU's compute capability",
        next_step="build it here: python -m secateur.runtime build BUNDLE",
    )


__all__ = ["open_engine"]
