"""Whether a graph is one: every value made once, before it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes.subgraphs import subgraphs
from secateur.graph_passes.axes.visits import Visit, visits_of
from secateur.graph_passes.names import node_name


def check_connections(graph: ir.Graph, visits: Sequence[Visit]) -> bool:
    """Refuse a graph that nothing could run; tell whether one of its nodes has a graph inside.

    Args:
        graph: the main graph of a model.
        visits: all of its nodes, in its order.

    Raises:
        BadInputError: a value that nothing makes, that is read before it is made (out of
            order, or in a circle), or whose name another value has too.
    """
    return _check(graph, visits, {None})  # which is an input that is left out


def _check(graph: ir.Graph, visits: Sequence[Visit], outside: set[ir.Value | None]) -> bool:
    held = graph.initializers.data  # by their names
    made: set[ir.Value | None] = {*held.values()}
    named = [value for value in graph.inputs if value not in made]
    named.extend([value for visit in visits for value in visit.outputs])
    _check_names([*held, *[value.name for value in named]])
    made.update(graph.inputs, outside)
    is_nested = False
    for visit in visits:
        if not made.issuperset(visit.inputs):
            wrong = next(v for v in visit.inputs if v is not None and v not in made)
            raise _unmade(graph, visit.node, wrong)
        if visit.holds_graphs():
            is_nested = True
            for inner in subgraphs(visit.node):
                _check(inner, visits_of(inner), made)
        made.update(visit.outputs)
    for value in graph.outputs:
        if value not in made:
            raise BadInputError(
                "the graph contradicts itself",
                got=f"the output {value.name!r} is made by nothing",
                next_step="check the tool that wrote the file with onnx.checker",
            )
    return is_nested


def _check_names(names: Sequence[str | None]) -> None:
    if len(set(names)) == len(names):
        return
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        twice = next(name for name, times in Counter(given).items() if times > 1)
        raise BadInputError(
            "the graph contradicts itself",
            got=f"two values are called {twice!r}",
            wanted="a name of its own for every value",
        )


def _unmade(graph: ir.Graph, node: ir.Node, value: ir.Value) -> BadInputError:
    if value.producer() is None:
        got = f"it reads {value.name!r}, which nothing makes"
        return BadInputError("the graph contradicts itself", where=node_name(node), got=got)
    if circle := _circle(graph):
        return BadInputError(
            "the graph runs in a circle",
            where=node_name(circle[0]),
            got=" -> ".join(node_name(n) for n in (*circle, circle[0])),
            wanted="a graph without cycles; a loop is a Loop or Scan node",
        )
    return BadInputError(
        "the nodes of the graph are out of order",
        where=node_name(node),
        got=f"it reads {value.name!r}, which a later node makes",
        next_step="sort them: onnx_ir.passes.common.TopologicalSortPass()(model)",
    )


def _circle(graph: ir.Graph) -> list[ir.Node]:
    """Nodes of which each reads the one before and the first reads the last; none, if none."""
    done: set[ir.Node] = set()
    for start in graph:
        if start in done:
            continue
        path: list[tuple[ir.Node, Iterator[ir.Node]]] = [(start, _sources(start))]
        on_path = {start: 0}
        while path:
            source = next(path[-1][1], None)
            if source is None:
                node, _ = path.pop()
                del on_path[node]
                done.add(node)
            elif source in on_path:
                return [node for node, _ in path[on_path[source] :]][::-1]
            elif source not in done:
                on_path[source] = len(path)
                path.append((source, _sources(source)))
    return []


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None:
            yield producer


__all__ = ["check_connections"]
