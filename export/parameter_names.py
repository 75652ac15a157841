"""Which torch parameter an initialiser is, transposed and de-duplicated ones included."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

METADATA_KEY = "secateur.parameters"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParameterName:
    """The torch names of one initialiser.

    ``transpose`` is the permutation that turns the parameter into the initialiser, None
    where it is stored as it is; ``names`` has more than one entry where the exporter merged
    parameters of equal value. ``buffers`` are those of the names that are not trained, ``unsaved``
    those that are in no state dict, ``tied`` the groups of them that are one tensor in the
    module, not just equal.
    """

    names: tuple[str, ...]
    transpose: tuple[int, ...] | None
    buffers: tuple[str, ...] = ()
    unsaved: tuple[str, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the record that is written into the file."""
        record: dict[str, object] = {
            "name": self.names[0],
            "transpose": None if self.transpose is None else list(self.transpose),
        }
        if len(self.names) > 1:
            record["names"] = list(self.names)
        if self.buffers:
            record["buffers"] = list(self.buffers)
        if self.unsaved:
            record["unsaved"] = list(self.unsaved)
        if self.tied:
            record["tied"] = [list(names) for names in self.tied]
        return record


def parameter_names(model: ir.Model, net: nn.Module) -> dict[str, ParameterName]:
    """Map initialiser names to the parameters and buffers of ``net`` by name, then by value."""
    tensors: dict[str, Tensor] = dict(net.named_parameters(remove_duplicate=False))
    tensors.update(net.named_buffers(remove_duplicate=False))
    initialisers = model.graph.initializers
    found = {
        name: ParameterName((name,), None)
        for name, value in initialisers.items()
        if name in tensors and _shape(value) == tuple(tensors[name].shape)
    }
    by_size: dict[Shape, list[str]] = defaultdict(list)
    for name, value in initialisers.items():
        by_size[tuple(sorted(_shape(value)))].append(name)
    for name, tensor in tensors.items():
        if name not in found:
            _match(name, tensor, [initialisers[i] for i in by_size[_key(tensor)]], found)
    saved = net.state_dict().keys()
    return {name: _described(entry, tensors, saved) for name, entry in found.items()}


def record(model: ir.Model, names: dict[str, ParameterName]) -> None:
    """Write the map into the model's metadata."""
    entries = {name: entry.as_json() for name, entry in names.items()}
    model.metadata_props[METADATA_KEY] = json.dumps(entries, sort_keys=True)


def _described(
    entry: ParameterName, tensors: Mapping[str, Tensor], saved: Container[str]
) -> ParameterName:
    """Add which of the names are buffers, which are saved, and which are one tensor."""
    same: dict[int, list[str]] = defaultdict(list)
    for name in entry.names:
        same[id(tensors[name])].append(name)
    buffers = tuple(n for n in entry.names if not isinstance(tensors[n], nn.Parameter))
    tied = tuple(tuple(names) for names in same.values() if len(names) > 1)
    unsaved = tuple(name for name in buffers if name not in saved)
    return replace(entry, buffers=buffers, unsaved=unsaved, tied=tied)


def _match(
    name: str, tensor: Tensor, candidates: list[ir.Value], found: dict[str, ParameterName]
) -> None:
    """Enter ``tensor`` under the first initialiser that holds its values."""
    array = _bits(tensor)
    for value in candidates:
        stored = _stored_bits(value)
        permutation = permutation_between(array, stored)
        if permutation is None:
            continue
        transpose = None if permutation == tuple(range(array.ndim)) else permutation
        known = found.get(str(value.name))
        if known is None:
            found[str(value.name)] = ParameterName((name,), transpose)
            return
        if known.transpose == transpose:
            found[str(value.name)] = ParameterName((*known.names, name), transpose)
            return


def permutation_between(array: np.ndarray, stored: np.ndarray) -> tuple[int, ...] | None:
    """Return the axes order that turns ``array`` into ``stored``; the identity first."""
    if array.dtype != stored.dtype:
        return None
    for order in itertools.permutations(range(array.ndim)):
        turned = array.transpose(order)
        if turned.shape != stored.shape:
            continue
        corner = tuple(slice(0, 4) for _ in turned.shape)
        if np.array_equal(turned[corner], stored[corner]) and np.array_equal(turned, stored):
            return order
    return None


def _shape(value: ir.Value) -> Shape:
    tensor = value.const_value
    return () if tensor is None else tuple(int(dim) for dim in tensor.shape.numpy())


def _key(tensor: Tensor) -> Shape:
    return tuple(sorted(tensor.shape))


def _bits(tensor: Tensor) -> np.ndarray:
    """The tensor as an array that compares bit by bit, bfloat16 included."""
    import torch

    detached = tensor.detach().cpu()
    if detached.dtype == torch.bfloat16:
        return detached.view(torch.int16).numpy()
    return _comparable(detached.numpy())


def _stored_bits(value: ir.Value) -> np.ndarray:
    if value.const_value is None:
        raise ValueError(f"initialiser {value.name!r} has no value")
    return _comparable(value.const_value.numpy())


def _comparable(array: np.ndarray) -> np.ndarray:
    integers = {2: np.int16, 4: np.int32, 8: np.int64}
    if array.dtype.kind in "fV" and array.dtype.itemsize in integers:
        return array.view(integers[array.dtype.itemsize])
    return array


__all__ = ["METADATA_KEY", "ParameterName", "parameter_names", "permutation_between", "record"]
