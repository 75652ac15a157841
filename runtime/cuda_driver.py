"""The few calls of the CUDA driver that running an engine needs, through ctypes.

The driver library comes with every NVIDIA GPU, so a target needs no other CUDA package.
*Source: NVIDIA CUDA Driver API reference, modules Initialization, Device, Primary Context,
Memory, Stream and Graph Management.*
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

from secateur.errors import MissingDependencyError, SecateurError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_COMPUTE_CAPABILITY = (75, 76)
_OUT_OF_MEMORY = 2
_CAPTURE_THREAD_LOCAL = 1


@contextmanager
def device_context(ordinal: int = 0) -> Generator[int]:
    """Make a device's primary context current for this thread, and yield its handle.

    Raises MissingDependencyError when this machine has no driver or no device.
    """
    check_device()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        with current(context.value or 0):
            yield context.value or 0
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", device)


@contextmanager
def current(context: int) -> Generator[None]:
    """Make a context current for the thread that calls, whichever it is."""
    _call("cuCtxPushCurrent_v2", ctypes.c_void_p(context))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def check_device() -> None:
    """Raise MissingDependencyError unless a driver is installed and sees a device."""
    try:
        library = _library()
    except OSError as error:
        raise _no_device(str(error)) from error
    count = ctypes.c_int()
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        raise _no_device("the driver does not start")
    if count.value == 0:
        raise _no_device("the driver sees no device")


def describe_device(ordinal: int = 0) -> str:
    """Name, compute capability and memory of a device; MissingDependencyError for none.

    An engine built on another device with the same text is taken to fit.
    """
    text = capability(ordinal)
    device, size = ctypes.c_int(), ctypes.c_size_t()
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    _call("cuDeviceGetName", name, 256, device)
    _call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
    return f"{name.value.decode()} ({text}, {size.value >> 20} MiB)"


def capability(ordinal: int = 0) -> str:
    """Compute capability of a device, as ``sm86``; MissingDependencyError for none."""
    check_device()
    device = ctypes.c_int()
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    major, minor = (_attribute(number, device) for number in _COMPUTE_CAPABILITY)
    return f"sm{major}{minor}"


def allocate(size_bytes: int) -> int:
    """Device memory; its address. SecateurError, with what is free, when there is too little."""
    address = ctypes.c_uint64()
    code = _library().cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
    if code == _OUT_OF_MEMORY:
        free_bytes, total_bytes = memory_info()
        raise SecateurError(
            "the GPU's memory is full",
            got=f"{free_bytes >> 20} MiB free of {total_bytes >> 20} MiB",
            wanted=f"{max(size_bytes, 1) / 2**20:.1f} MiB more",
            next_step="lower the batch, keep fewer tokens, or build with a smaller largest shape",
        )
    _check(code, "cuMemAlloc_v2")
    return address.value


def memory_info() -> tuple[int, int]:
    """Free and total bytes of the current device."""
    free_bytes, total_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuMemGetInfo_v2", ctypes.byref(free_bytes), ctypes.byref(total_bytes))
    return free_bytes.value, total_bytes.value


def allocate_pinned(size_bytes: int) -> int:
    """Host memory that the device reads without a copy by the driver; its address."""
    address = ctypes.c_void_p()
    _call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)), 0)
    return address.value or 0


def free_pinned(address: int) -> None:
    """Give pinned memory back."""
    _call("cuMemFreeHost", ctypes.c_void_p(address))


def free(address: int) -> None:
    """Give device memory back."""
    _call("cuMemFree_v2", ctypes.c_uint64(address))


def copy_to_device(address: int, host: int, size_bytes: int, stream_handle: int) -> None:
    """Copy from pinned host memory, in the order of the stream."""
    _call(
        "cuMemcpyHtoDAsync_v2",
        ctypes.c_uint64(address),
        ctypes.c_void_p(host),
        ctypes.c_size_t(size_bytes),
        ctypes.c_void_p(stream_handle),
    )


def copy_to_host(host: int, address: int, size_bytes: int, stream_handle: int) -> None:
    """Copy to pinned host memory, in the order of the stream."""
    _call(
        "cuMemcpyDtoHAsync_v2",
        ctypes.c_void_p(host),
        ctypes.c_uint64(address),
        ctypes.c_size_t(size_bytes),
        ctypes.c_void_p(stream_handle),
    )


def capture(stream_handle: int, enqueue: Callable[[], bool]) -> int:
    """Record what ``enqueue`` puts on the stream as a graph; its handle, 0 if it cannot be.

    Nothing runs while it is recorded. A stream that refuses is usable again afterwards.
    """
    library, handle = _library(), ctypes.c_void_p(stream_handle)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    if library.cuStreamBeginCapture_v2(handle, _CAPTURE_THREAD_LOCAL) != 0:
        return 0
    is_enqueued = enqueue()
    if library.cuStreamEndCapture(handle, ctypes.byref(graph)) != 0 or not graph.value:
        return 0
    flags = ctypes.c_uint64(0)
    code = library.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, flags)
    library.cuGraphDestroy(graph)
    return (executable.value or 0) if code == 0 and is_enqueued else 0


def launch(graph: int, stream_handle: int) -> None:
    """Run a recorded graph on a stream."""
    _call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream_handle))


def destroy_graph(graph: int) -> None:
    """Give a recorded graph back."""
    _call("cuGraphExecDestroy", ctypes.c_void_p(graph))


@contextmanager
def stream() -> Generator[int]:
    """A stream that does not wait for the default one; its handle."""
    handle = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.byref(handle), 1)
    try:
        yield handle.value or 0
    finally:
        _call("cuStreamDestroy_v2", handle)


def synchronise(stream_handle: int) -> None:
    """Wait until everything on the stream is done."""
    _call("cuStreamSynchronize", ctypes.c_void_p(stream_handle))


def _attribute(number: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
    return value.value


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(_LIBRARY)


def _call(name: str, *arguments: object) -> None:
    _check(getattr(_library(), name)(*arguments), name)


def _check(code: int, name: str) -> None:
    if code == 0:
        return
    text = ctypes.c_char_p()
    _library().cuGetErrorString(code, ctypes.byref(text))
    raise SecateurError(
        "the CUDA driver reports an error",
        where=name,
        got=f"{code}: {(text.value or b'unknown').decode()}",
        next_step="check nvidia-smi, and that no other process holds the device",
    )


def _no_device(why: str) -> MissingDependencyError:
    return MissingDependencyError(
        "there is no CUDA device on this machine to run a TensorRT engine",
        got=why,
        wanted="an NVIDIA GPU with its driver",
        next_step="run the bundle's onnxruntime target here, or copy the bundle to the GPU",
    )


__all__ = [
    "allocate",
    "allocate_pinned",
    "capability",
    "capture",
    "check_device",
    "copy_to_device",
    "copy_to_host",
    "current",
    "describe_device",
    "destroy_graph",
    "device_context",
    "free",
    "free_pinned",
    "launch",
    "memory_info",
    "stream",
    "synchronise",
]
