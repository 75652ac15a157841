"""A module that says which inputs it takes, around one that takes ``**inputs``."""

from __future__ import annotations

import inspect

from torch import Tensor, nn


class _Named(nn.Module):
    """Hands everything on; the names of its arguments are set from outside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def with_named_arguments(net: nn.Module, names: list[str]) -> nn.Module:
    """Return a module whose forward takes ``names``; ``net`` itself where it does already.

    torch.export needs the names, and a forward of ``**inputs`` has none.
    """
    parameters = inspect.signature(net.forward).parameters
    if all(name in parameters for name in names):
        return net

    def forward(**inputs: Tensor) -> Tensor:
        output: Tensor = net(**inputs)
        return output

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name, kind, annotation=Tensor) for name in names]
    forward.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    named = _Named(net)
    named.forward = forward
    return named.train(net.training)
