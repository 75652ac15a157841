"""The marker op: one node in the export, nothing else changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.export import verify
from secateur.export.marker_translation import markers, without_markers
from secateur.export.selector_graph import Signature, trace
from secateur.export.torch_export import from_torch
from secateur.graph_passes.lowering import lower_markers
from secateur.graph_passes.sites import attention_of
from secateur.models.select_tokens import Keep, select_tokens


class Block(nn.Module):
    """One pre-norm block; returns the tokens and the raw attention tensors."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        return x + self.out(mixed), {"q": q, "k": k, "v": v}


class Selecting(nn.Module):
    """Two blocks with a selection in between, or without it."""

    def __init__(self, keep):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.keep = keep

    def forward(self, x):
        x, signals = self.blocks[0](x)
        if self.keep is not None:
            x = select_tokens(x, signals, by="class_row", site="blocks.0", keep=self.keep)
        return self.blocks[1](x)[0][:, 0]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Selecting(Keep(600, protected=1)).eval()


@pytest.fixture(scope="module")
def exported(net):
    inputs = {"x": torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))}
    return from_torch(net, inputs, {"x": {0: "batch", 1: "tokens"}})


def test_marker_is_one_node_with_its_settings(exported):
    (marker,) = markers(exported)
    assert {name: attr.value for name, attr in marker.attributes.items()} == {
        "by": "class_row",
        "site": "blocks.0",
        "permille": 600,
        "protected": 1,
        "options": "{}",
    }
    assert exported.opset_imports["secateur"] == 1


def test_marker_keeps_shape_and_type(exported):
    (marker,) = markers(exported)
    assert str(marker.outputs[0].shape) == "[batch,tokens,8]"
    assert marker.outputs[0].dtype == ir.DataType.FLOAT


def test_signals_of_the_marker_leave_nothing_in_the_graph(exported, net):
    inputs = {"x": torch.randn(2, 6, 8)}
    plain = Selecting(None).eval()
    plain.load_state_dict(net.state_dict())
    same = from_torch(plain, inputs, {"x": {0: "batch", 1: "tokens"}})
    bare = without_markers(exported)
    assert [n.op_type for n in bare.graph] == [n.op_type for n in same.graph]


def test_without_markers_the_graph_is_the_dense_model(exported, net):
    x = torch.randn(3, 7, 8)
    plain = Selecting(None).eval()
    plain.load_state_dict(net.state_dict())
    want = plain(x).detach().numpy()
    got = verify.run(without_markers(exported), {"x": x.numpy()})["output"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert len(markers(exported)) == 1


def test_in_pytorch_the_same_module_really_drops_tokens(net):
    seen = []
    hook = net.blocks[1].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    net(torch.randn(2, 10, 8))
    hook.remove()
    assert seen == [6]


@pytest.mark.parametrize("n_tokens", [6, 11])
def test_lowered_graph_equals_the_module_that_drops_tokens(exported, net, n_tokens):
    lowered = lower_markers(exported, trace_at, is_input=False)
    x = torch.randn(3, n_tokens, 8, generator=torch.Generator().manual_seed(n_tokens))
    want = net(x).detach().numpy()
    got = verify.run(lowered, {"x": x.numpy()})["output"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    dense = verify.run(without_markers(exported), {"x": x.numpy()})["output"]
    assert np.abs(dense - want).max() > 1e-3


def trace_at(spec, site, opset, options):
    there = attention_of(site)
    return trace(spec, Signature(there.heads, there.head_dim, width=8, opset=opset), options)


class MarkedLast(nn.Module):
    """Gives the selected tokens themselves back."""

    def forward(self, hidden):
        return select_tokens(hidden * 2, {}, by="hidden_norm", site="s", keep=0.5)


def test_marker_at_the_end_can_be_taken_out_too():
    model = from_torch(
        MarkedLast(), {"hidden": torch.randn(2, 4, 3)}, {"hidden": {0: "batch", 1: "tokens"}}
    )
    hidden = np.ones((1, 5, 3), np.float32)
    assert np.array_equal(
        verify.run(without_markers(model), {"hidden": hidden})["output"], hidden * 2
    )
