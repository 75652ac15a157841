"""Memory and recorded graphs that calls of one execution context share, so that they cost once."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from secateur.runtime import cuda_driver
from secateur.runtime.backend import Array

Allocate = Callable[[int], int]
Free = Callable[[int], None]


class Growing:
    """Memory that is kept from call to call and replaced only by a larger piece."""

    def __init__(self, allocate: Allocate, free: Free, on_move: Callable[[], None]) -> None:
        self._allocate = allocate
        self._free = free
        self._on_move = on_move
        self._capacity_bytes = 0
        self.address = 0

    def reserve(self, size_bytes: int) -> int:
        """An address with room for so many bytes; ``on_move`` is called when it is a new one."""
        if not self.address or size_bytes > self._capacity_bytes:
            self.release()
            self.address = self._allocate(size_bytes)
            self._capacity_bytes = size_bytes
            self._on_move()
        return self.address

    def release(self) -> None:
        """Give the memory back."""
        if self.address:
            self._free(self.address)
        self.address = 0
        self._capacity_bytes = 0


class Store:
    """Device memory of one input or output, and pinned host memory to copy through."""

    def __init__(self, on_move: Callable[[], None]) -> None:
        self.device = Growing(cuda_driver.allocate, cuda_driver.free, on_move)
        self._host = Growing(cuda_driver.allocate_pinned, cuda_driver.free_pinned, lambda: None)

    def upload(self, array: Array, stream: int) -> int:
        """Start the copy of a C-contiguous array to the device; its address there."""
        address = self.device.reserve(array.nbytes)
        host = self._host.reserve(array.nbytes)
        ctypes.memmove(host, array.ctypes.data, array.nbytes)
        cuda_driver.copy_to_device(address, host, array.nbytes, stream)
        return address

    def start_download(self, size_bytes: int, stream: int) -> None:
        """Start the copy of the first bytes to the host."""
        if size_bytes:
            host = self._host.reserve(size_bytes)
            cuda_driver.copy_to_host(host, self.device.address, size_bytes, stream)

    def fetch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """What was downloaded, as an array of its own; the stream has to be done."""
        array = np.empty(shape, dtype)
        if array.nbytes:
            ctypes.memmove(array.ctypes.data, self._host.address, array.nbytes)
        return array

    def release(self) -> None:
        """Give all memory back."""
        self.device.release()
        self._host.release()


class GraphCache:
    """Recorded graphs by what they were recorded for; the one not used longest goes first.

    A graph is recorded when its key comes for the second time: a call that never comes back
    is not worth it. One that cannot be recorded is not tried again. Addresses are part of a
    graph, so that ``clear`` is called when memory moved.
    """

    def __init__(self, destroy: Callable[[int], None], limit: int) -> None:
        self._destroy = destroy
        self._limit = limit
        self._graphs: OrderedDict[Hashable, int] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._refused: set[Hashable] = set()

    def get(self, key: Hashable, record: Callable[[], int]) -> int:
        """The graph for a key, recorded if it is time to; 0 where there is none."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if key not in self._seen or key in self._refused or self._limit == 0:
            self._seen.add(key)
            return 0
        graph = record()
        if not graph:
            self._refused.add(key)
            return 0
        self._graphs[key] = graph
        if len(self._graphs) > self._limit:
            self._destroy(self._graphs.popitem(last=False)[1])
        return graph

    def clear(self) -> None:
        """Forget every graph; a key that was refused stays so."""
        for graph in self._graphs.values():
            self._destroy(graph)
        self._graphs.clear()


__all__ = ["GraphCache", "Growing", "Store"]
