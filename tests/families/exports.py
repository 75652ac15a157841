"""Exports of the table's networks, each made once per process, and how they are run."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from tests.families.rows import FAMILIES, FORMS, LENGTHS, Family, Form, Tower
from torch import Tensor, nn

from secateur.export.onnx_file import from_onnx
from secateur.export.torch_export import from_torch
from secateur.export.verify import flatten_outputs
from secateur.models.families import Adopter

Arrays = dict[str, NDArray]
Axes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Exported:
    """A network and its file as the rest of the project sees it. Treat both as read-only."""

    family: Family
    form: Form
    net: nn.Module
    model: ir.Model
    tokens_are_fixed: bool

    def tokens(self, tower: Tower) -> str:
        """The tower's number of tokens as the file spells it."""
        return str(max(LENGTHS) if self.tokens_are_fixed else tower.tokens)


@functools.cache
def exported(family: str, form: str) -> Exported:
    """Build and export one cell of the table."""
    row, form_ = FAMILIES[family], FORMS[form]
    net = network(row, form_.attention)
    fixed = form in row.fixed_in
    write = _legacy if form_.exporter == "legacy" else _from_torch
    model = write(net, row.batch(), form_.opset, dynamic_axes(row.batch(), fixed=fixed))
    return Exported(row, form_, net, model, fixed)


def network(family: Family, attention: str) -> nn.Module:
    """Build with a seed; no parameter stays zero or one, or equal to another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = family.build().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    if hasattr(net, "set_attn_implementation"):
        net.set_attn_implementation(attention)
    return net


def dynamic_axes(inputs: dict[str, Tensor], *, fixed: bool) -> Axes:
    """Every input has the batch first; what is no image has the tokens second."""
    return {
        name: {0: "batch"} if tensor.dim() == 4 or fixed else {0: "batch", 1: "tokens"}
        for name, tensor in inputs.items()
    }


def _from_torch(net: nn.Module, inputs: dict[str, Tensor], opset: int, axes: Axes) -> ir.Model:
    return from_torch(net, inputs, axes, opset=opset)


class _Positional(Adopter):
    """A network that takes its inputs in order: the TorchScript exporter fills in all others."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(net)
        self._names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self._adopted(**dict(zip(self._names, tensors, strict=True)))
        return tuple(flatten_outputs(outputs).values())


def _legacy(net: nn.Module, inputs: dict[str, Tensor], opset: int, axes: Axes) -> ir.Model:
    """What a user who calls the TorchScript exporter has, opened from its file."""
    with torch.no_grad():
        outputs = list(flatten_outputs(net(**inputs)))
    with tempfile.TemporaryDirectory() as folder, _without_fast_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _Positional(net, tuple(inputs)).eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=axes,
        )
        return from_onnx(path)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Keep nn.TransformerEncoder from its fused kernel, which ONNX does not have."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
