"""The few calls of the CUDA driver that running an engine needs, through ctypes.

The driver library comes with every NVIDIA GPU, so a target needs no other CUDA package.
*Source: NVIDIA CUDA Driver API reference, modules Initialization, Device, Primary Context,
Memory and Stream Management.*
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

from secateur.errors import MissingDependencyError, SecateurError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_COMPUTE_CAPABILITY = (75, 76)


@contextmanager
def device_context(ordinal: int = 0) -> Generator[None]:
    """Make a device's primary context current for this thread.

    Raises MissingDependencyError when this machine has no driver or no device.
    """
    check_device()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", device)


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
    check_device()
    device, size = ctypes.c_int(), ctypes.c_size_t()
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    _call("cuDeviceGetName", name, 256, device)
    _call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
    major, minor = (_attribute(number, device) for number in _COMPUTE_CAPABILITY)
    return f"{name.value.decode()} (sm{major}{minor}, {size.value >> 20} MiB)"


def allocate(size_bytes: int) -> int:
    """Device memory; its address."""
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
    return address.value


def free(address: int) -> None:
    """Give device memory back."""
    _call("cuMemFree_v2", ctypes.c_uint64(address))


def copy_to_device(address: int, host: int, size_bytes: int) -> None:
    """Copy from host memory and wait."""
    _call(
        "cuMemcpyHtoD_v2",
        ctypes.c_uint64(address),
        ctypes.c_void_p(host),
        ctypes.c_size_t(size_bytes),
    )


def copy_to_host(host: int, address: int, size_bytes: int) -> None:
    """Copy to host memory and wait."""
    _call(
        "cuMemcpyDtoH_v2",
        ctypes.c_void_p(host),
        ctypes.c_uint64(address),
        ctypes.c_size_t(size_bytes),
    )


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
    code = getattr(_library(), name)(*arguments)
    if code == 0:
        return
    text = ctypes.c_char_p()
    _library().cuGetErrorString(code, ctypes.byref(text))
    raise SecateurError(
        "the CUDA driver reports an error",
        where=name,
        got=f"{code}: {(text.value or b'unknown').decode()}",
        next_step="out of memory: lower the batch; anything else: check nvidia-smi",
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
    "check_device",
    "copy_to_device",
    "copy_to_host",
    "describe_device",
    "device_context",
    "free",
    "stream",
    "synchronise",
]
