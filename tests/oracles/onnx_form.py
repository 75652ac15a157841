"""A tensor function twice: as it is, and as the ONNX graph that is exported from it.

A graph is exported once per function, options and fixed sizes, with its dynamic axes named,
and then runs at the sizes of every case.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from secateur.export.torch_export import from_torch
from secateur.export.verify import flatten_outputs

Arrays = dict[str, np.ndarray]
Axes = Mapping[str, Sequence[str]]
"""Per input the names of its axes; a name that is empty keeps the size of that axis."""

_GRAPHS: dict[tuple[object, ...], ort.InferenceSession] = {}


def both_ways(
    function: Callable[..., object],
    inputs: Mapping[str, np.ndarray | Tensor],
    dynamic: Axes,
    **options: object,
) -> tuple[Arrays, Arrays]:
    """Run ``function(**inputs, **options)`` in PyTorch and as a graph in ONNX Runtime.

    Args:
        function: tensors by name to a tensor, a mapping or a tuple of tensors.
        inputs: arrays or tensors by parameter name, each axis of which is at least 1.
        dynamic: axis names, e.g. ``{"hidden": ("batch", "tokens", "")}``; an input that is not
            named keeps all its sizes.
        options: what is fixed when the graph is made; has to be hashable.

    Returns:
        The results by output name, first PyTorch's, then ONNX Runtime's. A single tensor is
        ``output``; tuples give ``output_0``, ``output_1``; mappings their keys.
    """
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        outputs = flatten_outputs(function(**tensors, **options))
    direct = {name: value.numpy() for name, value in outputs.items()}
    session = _session(function, tensors, dynamic, options)
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    feeds = {name: value.numpy() for name, value in tensors.items() if name in wanted}
    made = session.run(names, feeds)
    return direct, dict(zip(direct, made, strict=True))


def graph(
    function: Callable[..., object], tensors: Mapping[str, Tensor], dynamic: Axes, **options: object
) -> ir.Model:
    """Export ``function`` with the named axes dynamic."""
    axes = {
        name: {axis: dim for axis, dim in enumerate(dims) if dim} for name, dims in dynamic.items()
    }
    return from_torch(_Function(function, tuple(tensors), options), dict(tensors), axes)


def _session(
    function: Callable[..., object],
    tensors: Mapping[str, Tensor],
    dynamic: Axes,
    options: Mapping[str, object],
) -> ort.InferenceSession:
    fixed = tuple(
        (name, value.dtype, _fixed_sizes(value, dynamic.get(name, ())))
        for name, value in tensors.items()
    )
    named = tuple((name, tuple(dims)) for name, dims in dynamic.items())
    key = (function, tuple(sorted(options.items())), fixed, named)
    if key not in _GRAPHS:
        model = graph(function, tensors, dynamic, **options)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        _GRAPHS[key] = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    return _GRAPHS[key]


def _fixed_sizes(value: Tensor, dims: Sequence[str]) -> tuple[int, ...]:
    """The sizes that the graph keeps; 0 for those that may vary."""
    named = [*dims, *[""] * (value.dim() - len(dims))]
    return tuple(0 if dim else size for dim, size in zip(named, value.shape, strict=True))


class _Function(nn.Module):
    """A function as a module whose forward has its tensor parameters by name."""

    def __init__(
        self, function: Callable[..., object], names: tuple[str, ...], options: Mapping[str, object]
    ) -> None:
        super().__init__()
        call = functools.partial(function, **options)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

        def forward(**tensors: Tensor) -> object:
            return call(**tensors)

        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        self.forward = forward


__all__ = ["both_ways", "graph"]
