"""What a deserialised engine says of itself, and how contexts of it are made."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Profile, ShapeRange
from secateur.runtime.device_buffers import Store
from secateur.runtime.signature import TensorInfo
from secateur.runtime.tensorrt.api import Message


def signature_of(trt: Any, engine: Any) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:  # noqa: ANN401
    """Inputs and outputs; BadInputError for a type that NumPy does not have."""
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        shape = tuple("" if size < 0 else size for size in engine.get_tensor_shape(name))
        info = TensorInfo(name, _numpy_name(trt, engine.get_tensor_dtype(name), name), shape)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(info)
    return tuple(inputs), tuple(outputs)


def _numpy_name(trt: Any, dtype: Any, name: str) -> str:  # noqa: ANN401
    try:
        return str(np.dtype(trt.nptype(dtype)).name)
    except TypeError as error:
        raise BadInputError(
            f"tensor {name!r} of the engine has a type that NumPy lacks",
            got=str(dtype),
            next_step="keep the model's inputs and outputs in float32 or float16",
        ) from error


def profiles_of(trt: Any, engine: Any, inputs: tuple[TensorInfo, ...]) -> tuple[Profile, ...]:  # noqa: ANN401
    """The ranges of every profile, as the engine itself tells them."""
    found = []
    for place in range(engine.num_optimization_profiles):
        shapes, values = {}, {}
        for info in inputs:
            if engine.get_tensor_location(info.name) == trt.TensorLocation.HOST:
                ends = engine.get_tensor_profile_values(place, info.name)
                values[info.name] = ShapeRange(*(tuple(map(int, end)) for end in ends))
            else:
                ends = engine.get_tensor_profile_shape(info.name, place)
                shapes[info.name] = ShapeRange(*(tuple(map(int, end)) for end in ends))
        found.append(Profile(shapes, values))
    return tuple(found)


def make_context(trt: Any, engine: Any, messages: list[Message]) -> tuple[Any, bool]:  # noqa: ANN401
    """An execution context, and whether the library records CUDA graphs by itself (RTX)."""
    context, records_itself = _context(trt, engine)
    if context is None:
        raise cannot_open(trt, messages)
    return context, records_itself


def _context(trt: Any, engine: Any) -> tuple[Any, bool]:  # noqa: ANN401
    if not hasattr(trt, "CudaGraphStrategy"):
        return engine.create_execution_context(), False
    runtime_config = engine.create_runtime_config()
    runtime_config.set_runtime_cache(runtime_config.create_runtime_cache())
    runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(runtime_config), True


def make_output_allocator(trt: Any, store: Store) -> Any:  # noqa: ANN401
    """An allocator for an output whose size the run decides; keep it as long as the context."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        """Hands out the output's memory, which grows as needed."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            """Memory for the output; the driver aligns to 256 bytes."""
            return store.device.reserve(size)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ANN401
            """Called when the output's shape is known."""
            self.shape = tuple(shape)

    return Allocator()


def cannot_open(trt: Any, messages: list[Message]) -> BadInputError:  # noqa: ANN401
    """The error for an engine that this library or this GPU does not take, in words."""
    errors = "\n".join(message.text for message in messages if message.severity == "error")
    return BadInputError(
        "TensorRT cannot open the engine on this machine",
        where=_meaning(errors),
        got=errors or "no message",
        wanted=f"an engine built with {trt.__version__} for this GPU's compute capability",
        next_step="build it here: python -m secateur.runtime build BUNDLE",
    )


# What a message of the library means; the first one whose words are all in it counts.
_MEANINGS = (
    (("serialization assertion",), "it was built with another version, or the file is damaged"),
    (("version",), "it was built with another version of TensorRT"),
    (("magic",), "the file is no engine, or it is damaged"),
    (("compute capability",), "it was built for another GPU"),
    (("different", "device"), "it was built for another GPU"),
    (("memory",), "the GPU has too little free memory for it"),
    (("size",), "the file is cut short"),
)


def _meaning(errors: str) -> str:
    lowered = errors.lower()
    for words, meaning in _MEANINGS:
        if all(word in lowered for word in words):
            return meaning
    return ""


__all__ = [
    "cannot_open",
    "make_context",
    "make_output_allocator",
    "profiles_of",
    "signature_of",
]
