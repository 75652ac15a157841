"""Removed heads and FFN channels equal zeroed inputs of the torch layer that reads them.

The masked twin of ``make zoo`` comes from the same analysis as the removal. Here the truth
is made in PyTorch, by hooks, from what is known about each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from catalogue import open_zoo
from named_arguments import with_named_arguments

from secateur.export.torch_export import from_torch
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

HEADS_GONE, CHANNELS_GONE = (1, 3), tuple(range(0, 128, 3))


@dataclass(frozen=True)
class Architecture:
    """Where a model's blocks are, and which layers read heads and FFN channels."""

    name: str
    blocks: str
    reads_heads: str
    reads_channels: str
    columns_per_head: int  # of the layer that reads heads; per key-value head if grouped


CASES = [
    Architecture("bert", "inner.bert.encoder.layer", "attention.output.dense", "output.dense", 16),
    # 8 query heads of 8 in 4 groups
    Architecture("llama_gqa", "inner.model.layers", "self_attn.o_proj", "mlp.down_proj", 16),
    # query, key and value of a head interleaved in one weight
    Architecture("gpt_neox", "inner.gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h", 16),
]


def _zeroed(columns):
    def hook(_module, arguments):
        hidden = arguments[0].clone()
        hidden[..., columns] = 0
        return (hidden, *arguments[1:])

    return hook


def _torch_output(net, inputs, case):
    import torch

    width = case.columns_per_head
    columns = [head * width + i for head in HEADS_GONE for i in range(width)]
    for block in net.get_submodule(case.blocks):
        block.get_submodule(case.reads_heads).register_forward_pre_hook(_zeroed(columns))
        reader = block.get_submodule(case.reads_channels)
        reader.register_forward_pre_hook(_zeroed(list(CHANNELS_GONE)))
    with torch.no_grad():
        return net(**inputs).numpy()


def _pruned_output(net, inputs):
    import onnx_ir as ir
    import onnxruntime as ort

    model = from_torch(with_named_arguments(net, list(inputs)), inputs, {})
    analysis = analyse(model)
    gone = {"heads": HEADS_GONE, "ffn": CHANNELS_GONE}
    keep = {
        group.name: tuple(unit for unit in range(group.size) if unit not in gone[group.role])
        for group in analysis.groups
        if group.role in gone and len(group.layer.split(".")) > 3 and group.size in {4, 128}
    }
    assert len(keep) == 4, sorted(keep)
    small = remove(model, make_plan(analysis, keep))
    session = ort.InferenceSession(
        ir.to_proto(small).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: inputs[name].numpy() for name in names})[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_removal_equals_zeroed_inputs_in_torch(case):
    zoo = open_zoo(Path(__file__).with_name("zoo.py"))
    net, inputs = zoo.build(case.name)
    pruned = _pruned_output(net, inputs)
    wanted = _torch_output(net, inputs, case)
    np.testing.assert_allclose(pruned, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
