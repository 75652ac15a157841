"""Dynamic dimensions: the user's names on the traced symbols, and proof that they are there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir
from torch.export import ExportedProgram

from secateur.errors import BadInputError

Dynamic = dict[str, dict[int, str]]
"""``{input name: {axis: dimension name}}``."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def symbol_names(program: ExportedProgram, dynamic: Dynamic) -> dict[str, str]:
    """Map the symbols that tracing chose to the names that the user gave.

    Raises:
        BadInputError: one symbol has two names (the model makes both dimensions equal),
            or a declared dimension is not a symbol of its own any more.
    """
    names: dict[str, str] = {}
    for input_name, axes in dynamic.items():
        shape = _placeholder_shape(program, input_name)
        for axis, name in axes.items():
            symbol = str(shape[axis])
            where = f"input {input_name!r}, axis {axis}"
            if not _IDENTIFIER.fullmatch(symbol):
                raise BadInputError(
                    f"dimension {name!r} cannot vary freely",
                    where=where,
                    got=f"tracing turned it into {symbol}",
                    wanted="a dimension of its own",
                    next_step="leave it out of `dynamic`, or change the model code that ties it",
                )
            if names.setdefault(symbol, name) != name:
                raise BadInputError(
                    f"dimensions {names[symbol]!r} and {name!r} are always equal in this model",
                    where=where,
                    next_step=f"give both the name {names[symbol]!r}",
                )
    return names


def _placeholder_shape(program: ExportedProgram, input_name: str) -> tuple[object, ...]:
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.target == input_name:
            return tuple(node.meta["val"].shape)
    raise BadInputError(
        f"input {input_name!r} is not read by the model",
        where="the traced program",
        next_step="leave it out of `inputs` and `dynamic`",
    )


def ranges(program: ExportedProgram, names: dict[str, str]) -> dict[str, tuple[int, int | None]]:
    """Return the sizes that each named dimension may take, None where it has no upper end."""
    found: dict[str, tuple[int, int | None]] = dict.fromkeys(names.values(), (1, None))
    for symbol, bounds in program.range_constraints.items():
        name = names.get(str(symbol))
        if name is None:
            continue
        upper = int(bounds.upper) if bounds.upper.is_Integer else None
        low, high = found[name]
        tightest = [end for end in (high, upper) if end is not None]
        found[name] = (max(low, int(bounds.lower)), min(tightest) if tightest else None)
    return found


def rename(model: ir.Model, names: dict[str, str]) -> None:
    """Write the user's names into every shape of ``model``, inside expressions too."""

    def renamed(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if isinstance(dim, int) or dim.value is None:
            return dim
        return ir.SymbolicDim(
            _IDENTIFIER.sub(lambda match: names.get(match[0], match[0]), dim.value)
        )

    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape.dims])


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def check(model: ir.Model, dynamic: Dynamic) -> None:
    """Assert that every declared dimension is symbolic in the graph, under its name.

    Raises:
        BadInputError: the exporter baked a declared dimension in, or no output follows a
            dimension that the outputs of the PyTorch model follow.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    for input_name, axes in dynamic.items():
        shape = inputs[input_name].shape
        for axis, name in axes.items():
            got = None if shape is None else shape[axis]
            if isinstance(got, int) or got is None or got.value != name:
                raise BadInputError(
                    f"dimension {name!r} became static during the export",
                    where=f"input {input_name!r}, axis {axis}",
                    got=str(got),
                    wanted=name,
                )


def check_outputs(model: ir.Model, expected: tuple[tuple[str, ...], ...]) -> None:
    """Assert that output dimensions are symbolic exactly where the traced program's are.

    Args:
        model: the renamed graph.
        expected: per output the dimensions of the traced program as text.
    """
    for value, dims in zip(model.graph.outputs, expected, strict=True):
        got = () if value.shape is None else tuple(str(dim) for dim in value.shape)
        static = [dim.isdigit() for dim in dims]
        if [dim.isdigit() for dim in got] != static:
            raise BadInputError(
                "an output dimension became static during the export",
                where=f"output {value.name!r}",
                got=f"[{', '.join(got)}]",
                wanted=f"[{', '.join(dims)}]",
            )


def output_dims(program: ExportedProgram, names: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the dimensions of every tensor output of the traced program, renamed."""
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    return tuple(
        tuple(
            _IDENTIFIER.sub(lambda match: names.get(match[0], match[0]), str(dim))
            for dim in node.meta["val"].shape
        )
        for node in outputs
        if node is not None
    )


__all__ = ["Dynamic", "check", "check_outputs", "output_dims", "ranges", "rename", "symbol_names"]
