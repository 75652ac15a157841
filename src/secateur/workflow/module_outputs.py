"""What each module of a network returns, and which graph value that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.names import module_path
from secateur.runtime.backend import Array, Arrays
from secateur.workflow.golden import golden
from secateur.workflow.handed_in import given_apart

if TYPE_CHECKING:
    from torch import nn

    from secateur.models.reference import TokenSite


@dataclass(frozen=True, slots=True)
class TorchRun:
    """One reference run."""

    modules: dict[str, Array]
    """First output of every module that ran exactly once, by its path."""
    inputs: dict[str, Array]
    """What the graph has to be fed to make the same selections."""
    kept: tuple[Array, ...]
    """(B, K) positions after each site."""


def run_torch(
    net: nn.Module,
    batch: Arrays,
    sites: Sequence[TokenSite],
    feeds: Mapping[str, dict[str, Array]],
    restore: Sequence[str] = (),
) -> TorchRun:
    """Run the PyTorch reference and note what its modules return."""
    import torch

    from secateur.models.reference import named_outputs, run

    seen: dict[str, list[Array]] = {}

    def note(path: str) -> Any:  # noqa: ANN401 (a hook of torch)
        def hook(_module: object, _inputs: object, output: object) -> None:
            if isinstance(output, (torch.Tensor, dict, tuple, list)):
                first = next(iter(named_outputs(output).values()), None)
                if first is not None:
                    seen.setdefault(path, []).append(first.detach().numpy())

        return hook

    handles = [
        module.register_forward_hook(note(path)) for path, module in net.named_modules() if path
    ]
    try:
        tensors = {name: torch.from_numpy(np.asarray(x)) for name, x in batch.items()}
        own, given = given_apart(tensors, sites)
        result = run(net, own, given, restore=restore)
    finally:
        for handle in handles:
            handle.remove()
    answer = golden(batch, result, sites, feeds)
    return TorchRun(
        modules={path: outputs[0] for path, outputs in seen.items() if len(outputs) == 1},
        inputs=answer.forced_inputs(),
        kept=tuple(site.kept for site in answer.sites.values()),
    )


def boundaries(model: ir.Model) -> dict[str, str]:
    """Map values to the module whose output they are, in graph order.

    A module's output is the last value computed inside it that something outside reads. A
    value that ends several modules belongs to the innermost.
    """
    last: dict[str, str] = {}
    for node in model.graph:
        inside = _enclosing(module_path(node))
        for value in node.outputs:
            readers = [_enclosing(module_path(use.node)) for use in value.uses()]
            outside = {path for readers_of in readers for path in inside if path not in readers_of}
            if value.is_graph_output():
                outside = set(inside)
            for path in inside:
                if path in outside:
                    last[path] = value.name or ""
    innermost: dict[str, str] = {}
    for path, name in last.items():
        if len(path) >= len(innermost.get(name, "")):
            innermost[name] = path
    order = [value.name or "" for node in model.graph for value in node.outputs]
    return {name: innermost[name] for name in order if name in innermost}


def _enclosing(path: str) -> tuple[str, ...]:
    """``a.b.c`` lies in ``a``, ``a.b`` and ``a.b.c``."""
    parts = path.split(".") if path else []
    return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))


__all__ = ["TorchRun", "boundaries", "run_torch"]
