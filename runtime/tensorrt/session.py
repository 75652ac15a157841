"""Opens a TensorRT engine and runs it on the first CUDA device.

Not yet run on hardware: no CUDA device was at hand when this was written. Every name of the
library that it uses is held to the published bindings of four versions by a test.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime import cuda_driver
from secateur.runtime.backend import Array, Arrays, Profile, Run
from secateur.runtime.device_buffers import GraphCache, Store
from secateur.runtime.profile_choice import Sizes, choose_profile, sizes_of
from secateur.runtime.signature import TensorInfo, check_inputs, verify_inputs
from secateur.runtime.tensorrt.api import Message, load, make_logger
from secateur.runtime.tensorrt.engine import (
    cannot_open,
    make_context,
    make_output_allocator,
    profiles_of,
    signature_of,
)
from secateur.runtime.tensors import Tensors, empty, on_device, stand_in, wait_for_torch


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How an engine runs.

    ``contexts`` calls may run at once, from as many threads, each with memory of its own.
    ``graphs`` is how many CUDA graphs a context keeps, one per profile, shapes and budgets;
    0 records none.
    """

    contexts: int = 1
    graphs: int = 16


@contextmanager
def open_engine(backend: str, content: bytes, options: SessionOptions) -> Generator[Run]:
    """Deserialise an engine and yield ``run``, which threads may share.

    Raises MissingDependencyError for no library or no device, BadInputError for an engine
    that this library or device cannot open; never yields without an engine.
    """
    trt = load(backend)
    cuda_driver.check_device()
    messages: list[Message] = []
    logger = make_logger(trt, messages)
    with ExitStack() as stack:
        device = stack.enter_context(cuda_driver.device_context())
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise cannot_open(trt, messages)
        lanes: SimpleQueue[Lane] = SimpleQueue()
        for _ in range(max(1, options.contexts)):
            context, records_itself = make_context(trt, engine, messages)
            stream = stack.enter_context(cuda_driver.stream())
            graphs = 0 if records_itself else options.graphs
            lane = Lane(trt, engine, context, stream=stream, graphs=graphs)
            stack.callback(lane.release)
            lanes.put(lane)

        def run(arrays: Arrays) -> dict[str, Array]:
            lane = lanes.get()
            try:
                with cuda_driver.current(device):
                    return lane.run(arrays)
            finally:
                lanes.put(lane)

        yield run


class Lane:
    """One execution context with its stream, memory and recorded graphs; one call at a time."""

    def __init__(
        self,
        trt: Any,  # noqa: ANN401
        engine: Any,  # noqa: ANN401
        context: Any,  # noqa: ANN401
        *,
        stream: int,
        graphs: int,
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._context = context
        self._stream = stream
        self._graphs = GraphCache(cuda_driver.destroy_graph, graphs)
        self._inputs, self._outputs = signature_of(trt, engine)
        self._profiles = profiles_of(trt, engine, self._inputs)
        names = [info.name for info in (*self._inputs, *self._outputs)]
        self._stores = {name: Store(self._graphs.clear) for name in names}
        self._allocators: dict[str, Any] = {}
        self._host_values: dict[str, Array] = {}
        self._profile = 0

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """What the engine takes."""
        return self._profiles

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run once and wait; outputs by name, with the sizes that the run decided.

        Where an input is in CUDA memory (torch, or any DLPack), outputs come back as torch
        tensors there, and nothing of either is copied.
        """
        shared = on_device(arrays)
        if shared:
            return self._run_shared(arrays, shared)
        feed = check_inputs(arrays, self._inputs)
        shapes, values = sizes_of(feed, self._profiles)
        self._use_profile(choose_profile(self._profiles, shapes, values))
        for name, array in feed.items():
            self._bind_input(name, array)
        if missing := self._context.infer_shapes():
            raise BadInputError("TensorRT lacks values of inputs", got=", ".join(missing))
        fixed = [self._bind_output(info) for info in self._outputs]
        self._execute(shapes, values, all(fixed))
        return self._fetch()

    def _run_shared(self, arrays: Arrays, shared: Tensors) -> Tensors:
        held = {name: stand_in(tensor) for name, tensor in shared.items()}
        feed = {**arrays, **held}
        verify_inputs(feed, self._inputs)
        shapes, values = sizes_of(feed, self._profiles)
        if on_host := [name for name in values if name in shared]:
            raise BadInputError(
                f"input {on_host[0]!r} decides shapes, which TensorRT does on the host",
                got="a tensor in CUDA memory",
                wanted="a NumPy array",
            )
        self._use_profile(choose_profile(self._profiles, shapes, values))
        wait_for_torch()
        for name, array in feed.items():
            if name in shared:
                self._set_input(name, shared[name].data_ptr(), array.shape)
            else:
                self._bind_input(name, np.ascontiguousarray(array))
        outputs = {info.name: self._bind_tensor(info) for info in self._outputs}
        if not self._enqueue():
            raise BadInputError(
                "TensorRT could not run the engine on these inputs",
                got=", ".join(f"{name} {list(array.shape)}" for name, array in feed.items()),
            )
        cuda_driver.synchronise(self._stream)
        return outputs

    def _bind_tensor(self, info: TensorInfo) -> Any:  # noqa: ANN401
        shape = tuple(self._context.get_tensor_shape(info.name))
        if any(size < 0 for size in shape):
            raise BadInputError(
                f"the size of output {info.name!r} is known only after the run",
                next_step="hand over NumPy arrays: outputs of such sizes are copied",
            )
        output = empty(shape, info.dtype)
        self._context.set_tensor_address(info.name, output.data_ptr())
        return output

    def release(self) -> None:
        """Give memory and graphs back."""
        self._graphs.clear()
        for store in self._stores.values():
            store.release()

    def _use_profile(self, place: int) -> None:
        if place != self._profile:
            if not self._context.set_optimization_profile_async(place, self._stream):
                raise BadInputError(f"TensorRT does not change to profile {place}")
            cuda_driver.synchronise(self._stream)
            self._profile = place

    def _bind_input(self, name: str, array: Array) -> None:
        engine = self._engine
        if engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            # The values decide shapes: TensorRT reads them on the host, until the run is queued.
            self._host_values[name] = array
            address = array.ctypes.data
        else:
            address = self._stores[name].upload(array, self._stream)
        self._set_input(name, address, array.shape)

    def _set_input(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        self._context.set_tensor_address(name, address)
        if not self._context.set_input_shape(name, shape):
            raise BadInputError(
                f"TensorRT refuses the shape of input {name!r}",
                got=str(list(shape)),
                wanted=f"a shape inside profile {self._profile}",
                next_step="build with a wider profile, or split the batch",
            )

    def _bind_output(self, info: TensorInfo) -> bool:
        """Give the output memory; whether its size is known before the run."""
        shape = tuple(self._context.get_tensor_shape(info.name))
        if all(size >= 0 for size in shape):
            size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(info.dtype).itemsize
            address = self._stores[info.name].device.reserve(size_bytes)
            self._context.set_tensor_address(info.name, address)
            return True
        if info.name not in self._allocators:
            made = make_output_allocator(self._trt, self._stores[info.name])
            self._allocators[info.name] = made
        self._context.set_output_allocator(info.name, self._allocators[info.name])
        return False

    def _execute(self, shapes: Sizes, values: Sizes, is_fixed: bool) -> None:
        graph = 0
        if is_fixed:
            key = (self._profile, tuple(shapes.items()), tuple(values.items()))
            graph = self._graphs.get(key, self._record)
        if graph:
            cuda_driver.launch(graph, self._stream)
        elif not self._enqueue():
            raise BadInputError(
                "TensorRT could not run the engine on these inputs",
                got=", ".join(f"{name} {list(s)}" for name, s in {**shapes, **values}.items()),
                wanted="shapes and values inside the engine's profile (see its side-car)",
            )

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(self._stream))

    def _record(self) -> int:
        return cuda_driver.capture(self._stream, self._enqueue)

    def _fetch(self) -> dict[str, Array]:
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        if self._allocators:
            cuda_driver.synchronise(self._stream)  # the allocators are told the sizes by then
        for info in self._outputs:
            dtype = np.dtype(info.dtype)
            allocator = self._allocators.get(info.name)
            shape = tuple(self._context.get_tensor_shape(info.name))
            shape = allocator.shape if allocator is not None else shape
            size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self._stores[info.name].start_download(size_bytes, self._stream)
            found[info.name] = (shape, dtype)
        cuda_driver.synchronise(self._stream)
        return {name: self._stores[name].fetch(*form) for name, form in found.items()}


__all__ = ["Lane", "SessionOptions", "open_engine"]
