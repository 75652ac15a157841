"""Memory and graphs that calls share: when they are made, kept, and given back."""

from __future__ import annotations

import itertools

from secateur.runtime.device_buffers import GraphCache, Growing


class Heap:
    """Addresses that were handed out, and those that came back."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.freed: list[int] = []
        self._next = itertools.count(100)

    def allocate(self, size: int) -> int:
        address = next(self._next)
        self.sizes[address] = size
        return address


def test_memory_moves_only_when_it_must_grow():
    heap, moves = Heap(), []
    memory = Growing(heap.allocate, heap.freed.append, lambda: moves.append(1))
    first = memory.reserve(10)
    assert [memory.reserve(size) for size in (10, 4, 0)] == [first] * 3
    second = memory.reserve(11)
    assert second != first
    assert heap.freed == [first]
    assert memory.reserve(10) == second
    assert len(moves) == 2
    memory.release()
    memory.release()
    assert heap.freed == [first, second]


def graphs(limit: int = 2) -> tuple[GraphCache, list[int]]:
    destroyed: list[int] = []
    return GraphCache(destroyed.append, limit), destroyed


def test_a_graph_is_recorded_when_its_key_comes_back_and_then_kept():
    cache, _ = graphs()
    made = iter([7])
    assert [cache.get("a", lambda: next(made)) for _ in range(4)] == [0, 7, 7, 7]


def test_what_cannot_be_recorded_is_tried_once():
    cache, _ = graphs()
    tries = []

    def refuse() -> int:
        tries.append(1)
        return 0

    assert [cache.get("a", refuse) for _ in range(5)] == [0] * 5
    assert len(tries) == 1


def test_the_graph_not_used_longest_is_given_back():
    cache, destroyed = graphs(limit=2)
    for graph, key in enumerate("aabbacc", 10):
        cache.get(key, lambda graph=graph: graph)
    assert destroyed == [13], "the graph of b"
    assert cache.get("a", lambda: 99) == 11


def test_when_memory_moves_every_graph_is_given_back_and_recorded_again():
    cache, destroyed = graphs()
    for _ in range(2):
        cache.get("a", lambda: 5)
    cache.clear()
    assert destroyed == [5]
    assert cache.get("a", lambda: 6) == 6


def test_a_limit_of_none_records_none():
    cache, _ = graphs(limit=0)
    assert [cache.get("a", lambda: 5) for _ in range(3)] == [0, 0, 0]
