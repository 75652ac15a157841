"""A graph run with torch equals ONNX Runtime, whole, pruned, and exported once more."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from tests.export.conftest import SIZES, randomise
from torch import nn

import secateur as sc
from secateur.errors import BadInputError, PreconditionError
from secateur.export import verify
from secateur.export.onnx_file import from_onnx, save

BOUND = 1e-5
TEXT = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")}


class ConvNet(nn.Module):
    """Convolution, depthwise convolution and a residual branch, each with its batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.pointwise, self.norm2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(8, 10)

    def forward(self, images):
        x = self.norm0(self.stem(images)).relu()
        branch = self.norm2(self.pointwise(self.norm1(self.depthwise(x)).relu()))
        return self.head(self.pool((x + branch).relu()).mean((2, 3)))


class Images(nn.Module):
    """A vision transformer that takes images and gives logits."""

    def __init__(self):
        super().__init__()
        sizes = {**SIZES, "image_size": 16, "patch_size": 4, "num_labels": 5}
        self.vit = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))

    def forward(self, images):
        return self.vit(images).logits


class Text(nn.Module):
    """Ids and mask to the one tensor that ``output`` names."""

    def __init__(self, inner, output):
        super().__init__()
        self.inner, self.output = inner, output

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids, attention_mask)[self.output]


def bert():
    config = transformers.BertConfig(**SIZES, vocab_size=40, max_position_embeddings=32)
    return Text(transformers.BertModel(config, add_pooling_layer=False), "last_hidden_state")


def llama():
    """Grouped heads, and a head that is tied to the embedding."""
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, vocab_size=40, tie_word_embeddings=True, use_cache=False
    )
    return Text(transformers.LlamaForCausalLM(config), "logits")


def images(side, channels):
    return {"images": torch.rand(3, channels, side, side)}


def words():
    ids, mask = torch.randint(0, 40, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1:, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


MODELS = {
    "cnn": (ConvNet, lambda: images(8, 1), {"images": {0: "batch"}}, "channels"),
    "vit": (Images, lambda: images(16, 3), {"images": {0: "batch"}}, "heads"),
    "bert": (bert, words, TEXT, "heads"),
    "llama": (llama, words, TEXT, "ffn"),
}


@dataclass(frozen=True)
class Exported:
    """A module, what it was exported to, and half of it removed."""

    net: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]]
    whole: ir.Model
    pruned: ir.Model


@functools.cache
def export(kind):
    """Exported once for all tests; they must not change it."""
    make, inputs, dynamic, role = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net, example = randomise(make()), inputs()
        if kind == "cnn":
            net.train()(torch.rand(20, 1, 8, 8))
            net.eval()
    whole = sc.from_torch(net, example, dynamic, for_training=kind == "cnn")
    pruned = sc.remove(whole, sc.plan(sc.analyse(whole), role, ratio=0.5))
    return Exported(net, example, dynamic, whole, pruned)


@pytest.fixture(params=MODELS)
def exported(request):
    return export(request.param)


def relative_error(got, wanted):
    got, wanted = got.detach().numpy(), np.asarray(wanted)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def by_runtime(model, inputs):
    (output,) = verify.run(model, {name: x.numpy() for name, x in inputs.items()}).values()
    return output


def other_shape(inputs):
    """A single sample, of six tokens where there are tokens."""
    return {name: x[:1, :6] if x.dim() == 2 else x[:1] for name, x in inputs.items()}


def test_the_whole_model_comes_back_equal_to_the_original(exported):
    net = sc.to_torch(exported.whole)
    wanted = exported.net(**exported.inputs).detach()
    assert relative_error(net(**exported.inputs), wanted) < BOUND


def test_the_pruned_model_equals_onnx_runtime(exported):
    net = sc.to_torch(exported.pruned)
    for inputs in (exported.inputs, other_shape(exported.inputs)):
        wanted = by_runtime(exported.pruned, inputs)
        assert relative_error(net(**inputs), wanted) < BOUND


def test_names_and_shapes_are_those_of_the_original(exported):
    original, found = exported.net.state_dict(), sc.to_torch(exported.whole).state_dict()
    strange = {name for name in found if name not in original}
    missing = {name for name in original if name not in found}
    assert not strange
    assert all(name.endswith("num_batches_tracked") for name in missing)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, original[name], rtol=0, atol=0)


def test_pruned_names_are_original_and_fewer_numbers_are_trained(exported):
    net = sc.to_torch(exported.pruned)
    assert set(net.state_dict()) <= set(exported.net.state_dict())
    pruned = sum(p.numel() for p in net.parameters())
    assert pruned < sum(p.numel() for p in exported.net.parameters())


def test_every_parameter_has_a_finite_gradient(exported):
    net = sc.to_torch(exported.pruned)
    net(**exported.inputs).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_what_was_trained_is_exported_again(exported):
    net = sc.to_torch(exported.pruned)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-2)
    net(**exported.inputs).square().mean().backward()
    optimiser.step()
    again = sc.from_torch(net, exported.inputs, exported.dynamic)
    inputs = other_shape(exported.inputs)
    assert relative_error(net(**inputs), by_runtime(again, inputs)) < BOUND
    before = by_runtime(exported.pruned, inputs)
    assert relative_error(net(**inputs), before) > 1e-4
    assert len(again.graph) <= len(exported.pruned.graph) + 4


def test_it_survives_a_copy_a_pickle_and_its_own_state(exported):
    net = sc.to_torch(exported.pruned)
    loaded = sc.to_torch(exported.pruned)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    loaded.load_state_dict(net.state_dict())
    wanted = net(**exported.inputs)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        torch.testing.assert_close(twin(**exported.inputs), wanted, rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained_cnn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, inputs = ConvNet(), images(8, 1)
    model = sc.from_torch(net, inputs, {"images": {0: "batch"}}, for_training=True)
    return net, inputs["images"], model


def test_training_mode_uses_and_updates_batch_statistics(trained_cnn):
    net, x, model = trained_cnn
    net, again = copy.deepcopy(net).train(), sc.to_torch(model).train()
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-6)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert again.norm0.running_mean.abs().max() > 0


def test_evaluation_mode_leaves_statistics_alone(trained_cnn):
    _, x, model = trained_cnn
    net = sc.to_torch(model)
    assert not net.training
    net(x)
    assert net.norm0.running_mean.abs().max() == 0


def test_equal_tensors_that_the_exporter_merged_are_parameters_of_their_own(trained_cnn):
    """Before training every scale is 1 and every shift 0, as are the batch statistics."""
    _, _, model = trained_cnn
    net = sc.to_torch(model)
    assert len({id(getattr(net, f"norm{i}").weight) for i in range(3)}) == 3
    buffers = dict(net.named_buffers())
    assert {f"norm{i}.running_{kind}" for i in range(3) for kind in ("mean", "var")} <= set(buffers)


def test_merged_tensors_come_apart_after_a_second_export_too(trained_cnn):
    net, x, model = trained_cnn
    once = sc.to_torch(model)
    again = sc.from_torch(once, {"images": x}, {"images": {0: "batch"}}, for_training=True)
    twice = sc.to_torch(again)
    assert set(twice.state_dict()) == set(once.state_dict())
    assert {n for n, _ in twice.named_buffers()} == {n for n, _ in once.named_buffers()}
    torch.testing.assert_close(twice.train()(x), copy.deepcopy(net).train()(x))


def test_batch_norms_are_folded_unless_the_export_is_for_training(trained_cnn):
    net, x, model = trained_cnn
    folded = sc.from_torch(copy.deepcopy(net), {"images": x}, {"images": {0: "batch"}})
    count = [sum(n.op_type == "BatchNormalization" for n in m.graph) for m in (model, folded)]
    assert count == [3, 0]


def test_a_tied_weight_is_one_parameter_under_both_names():
    exported = export("llama")
    again = sc.to_torch(exported.whole)
    assert again.inner.lm_head.weight is again.inner.model.embed_tokens.weight
    wanted = sum(p.numel() for p in exported.net.parameters())
    assert sum(p.numel() for p in again.parameters()) == wanted


def test_a_file_keeps_the_names(exported, tmp_path):
    path = save(exported.pruned, tmp_path / "pruned.onnx")[0]
    again = sc.to_torch(from_onnx(path))
    assert list(again.state_dict()) == list(sc.to_torch(exported.pruned).state_dict())


def test_a_file_without_names_has_parameters_called_after_its_initialisers(exported):
    model = exported.whole.clone()
    model.metadata_props.clear()
    net = sc.to_torch(model)
    wanted = by_runtime(exported.whole, exported.inputs)
    assert relative_error(net(**exported.inputs), wanted) < BOUND
    assert sum(p.numel() for p in net.parameters()) > 0
    assert set(dict(net.named_parameters())) == set(net.state_dict()) - {
        name for name, _ in net.named_buffers()
    }


GRAPH = """
<ir_version: 10, opset_import: ["" : 20, "custom" : 1]>
g (float[2,3] x, float[2,3] y) => (float[2,3] s, float[2,3] d) {
  s = Add(x, y)
  d = OP(x, y)
}
"""


def test_inputs_go_by_position_or_name_and_outputs_come_by_name():
    net = sc.to_torch(ir.from_onnx_text(GRAPH.replace("OP", "Sub")))
    x, y = torch.rand(2, 3), torch.rand(2, 3)
    found = net(x, y=y)
    assert list(found) == ["s", "d"]
    torch.testing.assert_close(found["d"], x - y)


@pytest.mark.parametrize("arguments", [1, 3])
def test_a_wrong_number_of_inputs_names_the_right_ones(arguments):
    net = sc.to_torch(ir.from_onnx_text(GRAPH.replace("OP", "Sub")))
    with pytest.raises(BadInputError, match=r"wanted: x, y"):
        net(*[torch.rand(2, 3)] * arguments)


def test_an_input_given_twice_is_refused():
    net = sc.to_torch(ir.from_onnx_text(GRAPH.replace("OP", "Sub")))
    with pytest.raises(BadInputError, match="do not fit"):
        net(torch.rand(2, 3), torch.rand(2, 3), x=torch.rand(2, 3))


def test_an_op_without_an_entry_is_refused_with_its_node():
    model = ir.from_onnx_text(GRAPH.replace("OP", "custom.Mystery"))
    next(node for node in model.graph if node.op_type == "Mystery").name = "the_strange_one"
    with pytest.raises(PreconditionError, match=r"custom:Mystery.*\n.*the_strange_one"):
        sc.to_torch(model)


def test_an_input_whose_name_python_cannot_spell_goes_by_either_name():
    model = ir.from_onnx_text(GRAPH.replace("OP", "Sub"))
    model.graph.inputs[0].name, model.graph.inputs[1].name = "layer.0.x", "class"
    net, x, y = sc.to_torch(model), torch.rand(2, 3), torch.rand(2, 3)
    for found in (net(layer_0_x=x, _class=y), net(**{"layer.0.x": x, "class": y}), net(x, y)):
        torch.testing.assert_close(found["d"], x - y)


def test_a_model_that_drops_tokens_runs_with_torch():
    exported = export("bert")
    choice = sc.Select("inner.encoder.layer.0", by="class_row", keep=0.5)
    selecting = sc.select(exported.whole, [choice])
    inputs = {**exported.inputs, "inner.encoder.layer.0.permille": torch.tensor([600])}
    found = sc.to_torch(selecting)(**inputs)
    hidden, kept = verify.run(selecting, {name: x.numpy() for name, x in inputs.items()}).values()
    assert kept.shape[1] < exported.inputs["input_ids"].shape[1]
    first, positions = found.values()
    assert relative_error(first, hidden) < BOUND
    assert (positions.numpy() == kept).all()
