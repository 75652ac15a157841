"""Copy a small graph into a model: a traced selector, between its signals and its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import constant
from secateur.graph_passes.selection.emit import Emitter
from secateur.graph_passes.selection.flow import reads_shape_only

MERGE_INPUTS = ("index", "valid_kept")
"""Inputs of a selector graph that are known only when the choice is made."""

_NO_SIGNALS = frozenset({"count", *MERGE_INPUTS})


class Splice:
    """A selector on its way into a model.

    Nodes are copied as soon as all that they read is there, so that the nodes that merge
    tokens can wait for the choice.
    """

    def __init__(self, emit: Emitter, selector: ir.Model) -> None:
        self._emit = emit
        self._graph = selector.graph
        self._known: dict[ir.Value, ir.Value] = {}
        self._waiting = list(selector.graph)
        if "score" not in {output.name for output in selector.graph.outputs}:
            raise BadInputError(
                "a selector graph has an output named score",
                got=", ".join(str(output.name) for output in selector.graph.outputs) or "none",
                next_step="trace it with secateur.export.selector_graph.trace",
            )

    def give(self, values: Mapping[str, ir.Value]) -> None:
        """Connect inputs by name, and copy every node that can be."""
        for value in self._graph.inputs:
            if str(value.name) in values:
                self._known[value] = _as(self._emit, values[str(value.name)], value)
        left = []
        for node in self._waiting:
            if all(self._is_there(value) for value in _read(node)):
                self._copy(node)
            else:
                left.append(node)
        self._waiting = left

    def reads(self, name: str) -> bool:
        """Tell whether the selector has an input of that name."""
        return any(value.name == name for value in self._graph.inputs)

    def has(self, name: str) -> bool:
        """Tell whether the selector has an output of that name."""
        return any(value.name == name for value in self._graph.outputs)

    def follows_count(self) -> bool:
        """Tell whether the method's own count comes of the budget's and of nothing else."""
        signals = {value for value in self._graph.inputs if value.name not in _NO_SIGNALS}
        waiting = [value for value in self._graph.outputs if value.name == "count_kept"]
        seen: set[ir.Value] = set()
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in seen:
                continue
            seen.add(value)
            if node is not None and not reads_shape_only(node):
                waiting.extend(_read(node))
        return not seen & signals

    def result(self, name: str) -> ir.Value | None:
        """Return an output by name, None where the selector has none.

        Raises:
            BadInputError: an input that it depends on was not given.
        """
        for value in self._graph.outputs:
            if value.name == name:
                return self._result(value)
        return None

    def _result(self, value: ir.Value) -> ir.Value:
        if not self._is_there(value):
            open_inputs = [str(v.name) for v in self._graph.inputs if v not in self._known]
            raise BadInputError(
                "the selector reads a signal that this site cannot give",
                got=", ".join(open_inputs) or f"nothing that makes {value.name!r}",
                next_step="choose another selector",
            )
        found = self._lookup(value)
        if value.name == "score" and value.dtype not in (None, ir.DataType.FLOAT):
            return self._emit.op("Cast", found, to=ir.DataType.FLOAT.value)
        return found

    def _is_there(self, value: ir.Value) -> bool:
        return value in self._known or constant(value) is not None

    def _copy(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and not node.domain:
            return
        inputs = [None if value is None else self._lookup(value) for value in node.inputs]
        if node.op_type == "Identity" and not node.domain and inputs[0] is not None:
            self._known[node.outputs[0]] = inputs[0]
            return
        copied = self._emit.copy(node, inputs)
        for name, attribute in tuple(copied.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                body = self._body(attribute.as_graph(), f"{copied.name}/{name}")
                copied.attributes[name] = ir.AttrGraph(name, body)
        self._known.update(zip(node.outputs, copied.outputs, strict=True))

    def _body(self, body: ir.Graph, prefix: str) -> ir.Graph:
        """Copy the body of a Loop: what it reads of the selector, it now reads of the model."""
        made = body.clone(allow_outer_scope_values=True)
        mine = {*made.inputs, *made.initializers.values()}
        for node in made:
            mine.update(node.outputs)
        for value in mine:
            value.name = f"{prefix}/{value.name}"
        for node in made:
            node.name = f"{prefix}/{node.name}"
            for slot, read in enumerate(node.inputs):
                if read is not None and read not in mine:
                    node.replace_input_with(slot, self._lookup(read))
        for i, output in enumerate(made.outputs):
            if output not in mine:
                same = ir.node("Identity", [self._lookup(output)], name=f"{prefix}/output_{i}")
                same.outputs[0].name = f"{prefix}/output_{i}"
                same.outputs[0].type, same.outputs[0].shape = output.type, output.shape
                made.append(same)
                made.outputs[i] = same.outputs[0]
        return made

    def _lookup(self, value: ir.Value) -> ir.Value:
        if value not in self._known:
            array = constant(value)
            if array is None:
                raise BadInputError(
                    f"the selector graph reads {value.name!r}, which nothing makes",
                    next_step="trace it again with secateur.export.selector_graph.trace",
                )
            self._known[value] = self._emit.constant(array)
        return self._known[value]


def required_signals(selector: ir.Model) -> tuple[str, ...]:
    """Return the names of the signals that a selector graph reads."""
    names = (str(value.name) for value in selector.graph.inputs)
    return tuple(name for name in names if name not in _NO_SIGNALS)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, in its own scope or from inside its bodies."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            inside = {*body.inputs, *body.initializers.values()}
            inside.update(output for inner in body for output in inner.outputs)
            read = [value for inner in body for value in _read(inner)] + list(body.outputs)
            yield from (value for value in read if value not in inside)


def _as(emit: Emitter, given: ir.Value, wanted: ir.Value) -> ir.Value:
    if wanted.dtype is None or given.dtype is None or wanted.dtype == given.dtype:
        return given
    return emit.op("Cast", given, to=wanted.dtype.value)


__all__ = ["MERGE_INPUTS", "Splice", "required_signals"]
