"""Parts of a module by path, and the tensors in what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from secateur.errors import BadInputError


def submodule(net: nn.Module, path: str) -> nn.Module:
    """Return a part of a module.

    Raises:
        BadInputError: there is no such part.
    """
    try:
        return net.get_submodule(path)
    except AttributeError as error:
        known = [name for name, module in net.named_modules() if list(module.children())]
        raise BadInputError(
            f"the module has no part named {path!r}", wanted="one of " + ", ".join(known[1:])
        ) from error


def named_outputs(result: object) -> dict[str, Tensor]:
    """Name the tensors that a module returned: its own names, else ``output``, ``output_1``."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): x for name, x in result.items() if isinstance(x, Tensor)}
    if isinstance(result, (tuple, list)):
        found = [x for x in result if isinstance(x, Tensor)]
        return {f"output_{i}" if i else "output": x for i, x in enumerate(found)}
    raise BadInputError(
        "the module returned something that holds no tensors", got=type(result).__name__
    )


def state_of(where: str, output: object) -> Tensor:
    """Return the (B, N, D) tensor among the outputs of a module."""
    found = [x for x in named_outputs(output).values() if x.dim() == 3]
    if not found:
        raise BadInputError("no (B, N, D) output to drop tokens from", where=where)
    return found[0]


def replaced_state(output: object, rows: Tensor) -> object:
    """Return what a module returned with other hidden states."""
    old = state_of("", output)
    if isinstance(output, Tensor):
        return rows
    if isinstance(output, Mapping):
        return type(output)(**{name: rows if x is old else x for name, x in output.items()})
    assert isinstance(output, (tuple, list))
    return type(output)(rows if x is old else x for x in output)


def replaced_states(output: object, change: Callable[[Tensor], Tensor]) -> object:
    """Return what a module returned with all its (B, N, D) tensors changed alike."""
    if isinstance(output, Tensor):
        return change(output) if output.dim() == 3 else output
    if isinstance(output, Mapping):
        return type(output)(**{name: replaced_states(x, change) for name, x in output.items()})
    if isinstance(output, (tuple, list)):
        return type(output)(replaced_states(x, change) for x in output)
    return output


__all__ = ["named_outputs", "replaced_state", "replaced_states", "state_of", "submodule"]
