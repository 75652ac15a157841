"""Which initialiser is which tensor of the module: names, trainable or not, tied or not."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.errors import PreconditionError
from secateur.export.parameter_names import METADATA_KEY, permutation_between
from secateur.export.torch_ops.call import DTYPES, Weight, op_key

CONSTANTS = "_constants"
"""The child that holds what has no name in the original model; not in the state dict."""

Use = tuple[ir.Node, int]

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_AFFINE = {1: "weight", 2: "bias"}
_LEAVES: dict[str, dict[int, str]] = {
    "Add": {0: "bias", 1: "bias"},
    "BatchNormalization": {**_AFFINE, 3: "running_mean", 4: "running_var"},
    "Conv": _AFFINE,
    "ConvTranspose": _AFFINE,
    "Gather": {0: "weight"},
    "Gemm": _AFFINE,
    "GroupNormalization": _AFFINE,
    "InstanceNormalization": _AFFINE,
    "LayerNormalization": _AFFINE,
    "MatMul": {1: "weight"},
    "RMSNormalization": {1: "weight"},
}
"""How torch calls the tensor that an op reads at a slot."""
_RECURRENT = dict.fromkeys((1, 2, 3), "")
_LEARNT = {
    **_LEAVES,
    "Einsum": dict.fromkeys(range(3), ""),
    "GRU": _RECURRENT,
    "LSTM": _RECURRENT,
    "Mul": {0: "", 1: ""},
    "PRelu": {1: ""},
}
"""Where an op reads what is learnt, in a file that names no parameters."""


@dataclass(frozen=True, slots=True)
class Record:
    """What export wrote down about an initialiser."""

    names: tuple[str, ...]
    permutation: tuple[int, ...] | None
    buffers: frozenset[str]
    unsaved: frozenset[str]
    tied: tuple[frozenset[str], ...]

    def twins(self, name: str) -> frozenset[str]:
        """Names that are one tensor with ``name``, itself included."""
        return next((names for names in self.tied if name in names), frozenset({name}))


@dataclass(frozen=True, slots=True)
class _Stored:
    """A named tensor of the module, as torch has it, with the names that are one with it."""

    key: str
    twins: frozenset[str]
    array: np.ndarray


@dataclass(slots=True)
class WeightTable:
    """Gives every use of an initialiser its place in ``module``, and puts the tensor there."""

    module: nn.Module
    records: Mapping[str, Record]
    initialisers: Mapping[str, ir.Value]
    _stored: list[_Stored] = field(default_factory=list)
    _keys: set[str] = field(default_factory=set)

    def place(self, value: ir.Value, uses: Sequence[Use]) -> dict[Use, Weight]:
        """Store an initialiser's tensors and say under which key each of its uses finds it.

        One initialiser becomes several parameters where the exporter merged tensors of equal
        value; several initialisers become one where they were cut alike from one tensor.
        """
        record = self.records.get(value.name or "") or self._same_values(value)
        if record is None:
            return self._place_unnamed(value, uses)
        order = record.permutation
        array = _array(value) if order is None else _array(value).transpose(np.argsort(order))
        return {
            use: Weight(self._named(name, record, array), order)
            for use, name in names_of_uses(uses, record.names)
        }

    def tie(self) -> None:
        """Register a tied tensor under its other names too."""
        for stored in self._stored:
            for name in sorted(stored.twins - self._keys):
                self._keep(name, self.module.get_parameter(stored.key))

    def _named(self, name: str, record: Record, array: np.ndarray) -> str:
        twins = record.twins(name)
        for stored in self._stored:
            if stored.twins == twins and _equal(stored.array, array):
                return stored.key
        tensor = as_tensor(array)
        is_learnt = tensor.is_floating_point() and name not in record.buffers
        placed = nn.Parameter(tensor) if is_learnt else tensor
        key = self._keep(name, placed, is_saved=name not in record.unsaved)
        self._stored.append(_Stored(key, twins, array))
        return key

    def _place_unnamed(self, value: ir.Value, uses: Sequence[Use]) -> dict[Use, Weight]:
        """Store what has no recorded name: trainable where an op learns at that slot."""
        name, array = _sanitised(value.name or "constant"), _array(value)
        statistics = [use for use in uses if _is_statistic(use)]
        placed = {use: Weight(self._keep(name, as_tensor(array))) for use in statistics}
        others = [use for use in uses if use not in placed]
        if others:
            is_learnt = any(_is_learnt(use, array) for use in others)
            tensor = nn.Parameter(as_tensor(array)) if is_learnt else as_tensor(array)
            wanted = name if is_learnt else f"{CONSTANTS}.{name.replace('.', '_')}"
            key = self._keep(wanted, tensor, is_saved=is_learnt)
            placed |= dict.fromkeys(others, Weight(key))
        return placed

    def _same_values(self, value: ir.Value) -> Record | None:
        """Find the record of a weight that this one is a copy of, turned or not."""
        array = _array(value)
        if array.ndim < 2 or array.dtype.kind not in "fV":
            return None
        for name, record in self.records.items():
            other = self.initialisers.get(name)
            if other is None or sorted(_shape(other)) != sorted(array.shape):
                continue
            turn = permutation_between(_array(other), array)
            if turn is not None:
                first = record.permutation or tuple(range(array.ndim))
                return replace(record, permutation=tuple(first[i] for i in turn))
        return None

    def _keep(self, wanted: str, tensor: Tensor, *, is_saved: bool = True) -> str:
        """Put a tensor into the module under a name that is free; return that name."""
        parts = wanted.split(".")
        if any(".".join(parts[:end]) in self._keys for end in range(1, len(parts))):
            wanted = wanted.replace(".", "_")
        key, number = wanted, 0
        while key in self._keys or any(taken.startswith(f"{key}.") for taken in self._keys):
            number += 1
            key = f"{wanted}_{number}"
        self._keys.add(key)
        *path, leaf = key.split(".")
        home = self.module
        for part in path:
            if part not in home._modules:  # noqa: SLF001 - getattr would find methods too
                home.add_module(part, nn.Module())
            home = home.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            home.register_parameter(leaf, tensor)
        else:
            home.register_buffer(leaf, tensor, persistent=is_saved)
        return key


def records(model: ir.Model) -> dict[str, Record]:
    """Read what export recorded, by initialiser name; nothing for a file from elsewhere."""
    entries = json.loads(model.metadata_props.get(METADATA_KEY, "{}"))
    return {
        name: Record(
            tuple(entry.get("names", [entry["name"]])),
            tuple(entry["transpose"]) if entry["transpose"] else None,
            frozenset(entry.get("buffers", ())),
            frozenset(entry.get("unsaved", ())),
            tuple(frozenset(names) for names in entry.get("tied", ())),
        )
        for name, entry in entries.items()
    }


def uses_of_initialisers(graph: ir.Graph) -> dict[ir.Value, list[Use]]:
    """Group the uses of every initialiser, in the order of the graph."""
    uses: dict[ir.Value, list[Use]] = defaultdict(list)
    for node in graph:
        for slot, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and value.is_initializer():
                uses[value].append((node, slot))
    return uses


def names_of_uses(uses: Sequence[Use], names: Sequence[str]) -> Iterator[tuple[Use, str]]:
    """Choose for each use one of the names that were merged: the one of the module it is in."""
    unclaimed = list(names)
    unmatched = []
    for use in uses:
        name = _name_in_scope(use, names)
        if name is None:
            unmatched.append(use)
            continue
        if name in unclaimed:
            unclaimed.remove(name)
        yield use, name
    for use in unmatched:  # a graph without scopes: in order, each kind of tensor by itself
        name = _with_leaf(use, unclaimed or names)
        if name in unclaimed:
            unclaimed.remove(name)
        yield use, name


def _name_in_scope(use: Use, names: Sequence[str]) -> str | None:
    if len(names) == 1:
        return names[0]
    node, _ = use
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
    inside = [name for name in names if name.rpartition(".")[0] in scopes]
    if not inside:
        return None
    depth = max(name.count(".") for name in inside)
    deepest = [name for name in inside if name.count(".") == depth]
    return _with_leaf(use, deepest)


def _with_leaf(use: Use, names: Sequence[str]) -> str:
    """Choose the name that says what is read there, such as ``bias``; else the first."""
    leaf = _LEAVES.get(op_key(use[0]), {}).get(use[1], "")
    return next((name for name in names if name.endswith(f".{leaf}")), names[0])


def _is_statistic(use: Use) -> bool:
    """Training writes into these, so that each node needs its own."""
    return op_key(use[0]) == "BatchNormalization" and use[1] in {3, 4}


def _is_learnt(use: Use, array: np.ndarray) -> bool:
    """Weights and biases; not the tables, masks and scalars that are added or multiplied."""
    node, slot = use
    op = op_key(node)
    if slot not in _LEARNT.get(op, {}) or array.size < 2 or array.dtype.kind not in "fV":
        return False
    ranks = {"Add": 1, "Mul": 1, "MatMul": 2, "Gather": 2}
    return array.ndim == ranks.get(op, array.ndim)


def _sanitised(name: str) -> str:
    parts = [re.sub(r"\W+", "_", part) for part in name.split(".") if part]
    return ".".join(f"{part}_" if hasattr(nn.Module, part) else part for part in parts)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(dim) for dim in value.const_value.shape.numpy())


def _equal(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and np.array_equal(left, right)


def as_tensor(array: np.ndarray) -> Tensor:
    """Copy an array into a tensor of the same type, bfloat16 included.

    Raises:
        PreconditionError: an element type that torch modules do not compute with.
    """
    dtype = DTYPES.get(ir.DataType.from_numpy(array.dtype))
    if dtype is None:
        raise PreconditionError(
            "a weight has an element type that torch does not compute with",
            got=str(array.dtype),
            wanted=", ".join(str(known).removeprefix("torch.") for known in DTYPES.values()),
        )
    copied = np.array(array, order="C")
    if dtype == torch.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


__all__ = [
    "CONSTANTS",
    "Record",
    "Use",
    "WeightTable",
    "as_tensor",
    "names_of_uses",
    "records",
    "uses_of_initialisers",
]
