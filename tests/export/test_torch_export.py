"""Exports: names, dynamic sizes, structure and numbers; and what cannot be exported."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from secateur.errors import BadInputError, ParityError
from secateur.export import verify
from secateur.export.torch_export import from_torch
from secateur.graph_passes.names import module_path

SENTENCE_DYNAMIC = {
    "input_ids": {0: "batch", 1: "tokens"},
    "attention_mask": {0: "batch", 1: "tokens"},
}


def op_types(model):
    return Counter(node.op_type for node in model.graph)


def test_inputs_and_outputs_carry_the_users_names(sentence_export):
    shapes = {v.name: str(v.shape) for v in sentence_export.graph.inputs}
    assert shapes == {"input_ids": "[batch,tokens]", "attention_mask": "[batch,tokens]"}
    (output,) = sentence_export.graph.outputs
    assert (output.name, str(output.shape)) == ("sentence_embedding", "[batch,32]")


def test_every_value_has_a_shape_with_known_dimensions(sentence_export):
    for node in sentence_export.graph:
        for value in node.outputs:
            assert value.shape is not None
            assert all(isinstance(dim, int) or dim.value for dim in value.shape)


def test_export_is_a_valid_file(sentence_export):
    onnx.checker.check_model(ir.to_proto(sentence_export), full_check=True)


def test_every_parameter_of_the_encoder_is_found(sentence_export, bert):
    recorded = json.loads(sentence_export.metadata_props["secateur.parameters"])
    named = {name for entry in recorded.values() for name in entry.get("names", [entry["name"]])}
    # The token types are one constant row, folded by the exporter.
    assert {name for name, _ in bert.named_parameters()} - named == {
        "embeddings.token_type_embeddings.weight"
    }


def test_recorded_transpose_turns_the_parameter_into_the_initialiser(sentence_export, bert):
    recorded = json.loads(sentence_export.metadata_props["secateur.parameters"])
    tensors = {**dict(bert.named_parameters()), **dict(bert.named_buffers())}
    transposed = 0
    for initialiser, entry in recorded.items():
        want = tensors[entry["name"]].detach().numpy()
        if entry["transpose"] is not None:
            want = want.transpose(entry["transpose"])
            transposed += 1
        got = sentence_export.graph.initializers[initialiser].const_value.numpy()
        assert np.array_equal(got, want)
    assert transposed == 2 * 6


def test_attention_has_no_shape_plumbing(sentence_export):
    types = op_types(sentence_export)
    assert types["MatMul"] == 2 * 8
    assert types["Softmax"] == 2
    assert "IsNaN" not in types
    assert types["Where"] == 1


def test_sizes_are_read_from_the_inputs_once(sentence_export):
    shapes = [node for node in sentence_export.graph if node.op_type == "Shape"]
    assert len(shapes) == 2
    assert all(node.inputs[0].is_graph_input() for node in shapes)


def test_reduction_axes_and_shapes_are_constants(sentence_export):
    for node in sentence_export.graph:
        if node.op_type in {"ReduceSum", "ReduceMean", "ReduceL2", "Unsqueeze", "Squeeze"}:
            assert all(axes.const_value is not None for axes in node.inputs[1:])


def test_nodes_know_their_module(sentence_export):
    paths = {module_path(node) for node in sentence_export.graph}
    assert "encoder.layer.1.attention.self" in paths


def test_no_path_of_this_machine_is_in_the_file(sentence_export):
    content = ir.to_proto(sentence_export).SerializeToString()
    assert b"/site-packages/" not in content
    assert b"stack_trace" not in content


def test_check_ran_at_two_shapes_that_were_not_traced(sentence_export):
    record = json.loads(sentence_export.metadata_props["secateur.export"])
    sizes = [check["sizes"] for check in record["checks"]]
    assert len(sizes) == 2
    assert sizes[0]["batch"] == 1
    for setting in sizes:
        assert all(setting[name] != record["traced"][name] for name in ("batch", "tokens"))
    assert max(error for check in record["checks"] for error in check["errors"].values()) < 1e-5


def test_limits_of_a_dimension_are_recorded(sentence_export):
    ranges = json.loads(sentence_export.metadata_props["secateur.dimensions"])
    assert ranges["tokens"][1] == 40


def test_training_mode_comes_back(sentence):
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    net[0].eval()
    from_torch(Named(net), {"x": torch.ones(2, 3)}, {"x": {0: "batch"}})
    assert net.training
    assert net[1].training
    assert not net[0].training


class Named(nn.Module):
    """Run a module on an input called x."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Baked(nn.Module):
    """Turns a dimension into a Python number, which tracing fixes."""

    def forward(self, x):
        kept = int(x.shape[1] * 0.7)
        return x[:, :kept]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, y=None, **extra):
        return self.layer(x) if y is None else self.layer(x) + y


X = {"x": torch.ones(2, 6, 4)}


def test_dimension_that_the_code_fixes_is_refused():
    with pytest.raises(BadInputError, match="cannot keep a declared dimension dynamic"):
        from_torch(Baked(), X, {"x": {0: "batch", 1: "tokens"}})


def test_dimensions_that_the_model_ties_need_one_name():
    inputs = {"x": torch.ones(2, 6, 4), "y": torch.ones(2, 6, 4)}
    dynamic = {"x": {0: "batch", 1: "tokens"}, "y": {0: "batch", 1: "rows"}}
    with pytest.raises(BadInputError, match="'tokens' and 'rows' are always equal"):
        from_torch(Plain(), inputs, dynamic)


@pytest.mark.parametrize(
    ("inputs", "dynamic", "message"),
    [
        ({"x": torch.ones(2, 4), "z": torch.ones(2)}, {}, "do not fit the model's forward"),
        ({}, {}, "no example inputs"),
        ({"x": torch.ones(2, 4)}, {"w": {0: "batch"}}, "unknown input 'w'"),
        ({"x": torch.ones(2, 4)}, {"x": {2: "batch"}}, "axis 2 of `dynamic` does not exist"),
        ({"x": torch.ones(2, 4)}, {"x": {0: "my batch"}}, "plain name"),
    ],
    ids=["argument", "nothing", "input", "axis", "name"],
)
def test_arguments_that_do_not_fit_are_named(inputs, dynamic, message):
    with pytest.raises(BadInputError, match=message):
        from_torch(Plain(), inputs, dynamic)


@pytest.mark.parametrize("opset", [17, 99])
def test_unsupported_opset_is_refused(opset):
    with pytest.raises(BadInputError, match="unsupported opset"):
        from_torch(Plain(), X, {}, opset=opset)


def test_nan_parameter_is_named():
    net = Plain()
    net.layer.weight.data[1, 2] = float("nan")
    with pytest.raises(BadInputError, match=r"parameter 'layer\.weight'"):
        from_torch(net, X, {"x": {0: "batch"}})


def test_planted_difference_fails_the_check(sentence_export, sentence):
    broken = sentence_export.clone()
    name = "encoder.layer.1.output.dense.bias"
    wrong = broken.graph.initializers[name].const_value.numpy().copy()
    wrong[3] += 0.01
    broken.graph.initializers[name].const_value = ir.tensor(wrong, name=name)
    with pytest.raises(ParityError, match="differs from PyTorch") as caught:
        verify.compare(sentence.net, broken, sentence.inputs, {"batch": 2, "tokens": 16})
    assert "relative error" in caught.value.got


def test_nan_in_an_output_fails_the_check(sentence_export, sentence):
    broken = sentence_export.clone()
    name = "encoder.layer.1.output.dense.bias"
    wrong = broken.graph.initializers[name].const_value.numpy() * np.nan
    broken.graph.initializers[name].const_value = ir.tensor(wrong, name=name)
    with pytest.raises(ParityError, match="nan"):
        verify.compare(sentence.net, broken, sentence.inputs, {"batch": 2, "tokens": 16})


class Passing(nn.Module):
    """Gives its input back, and the same tensor under two names."""

    def forward(self, x):
        y = x * 2
        return {"x": x, "first": y, "second": y}


def test_outputs_that_are_inputs_or_repeated_keep_their_names():
    model = from_torch(Passing(), {"x": torch.ones(2, 3)}, {"x": {0: "batch"}})
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["x_out", "first", "second"]


def test_a_dimension_of_one_in_the_example_stays_dynamic():
    model = from_torch(Plain(), {"x": torch.ones(1, 4)}, {"x": {0: "batch"}})
    assert str(model.graph.outputs[0].shape) == "[batch,4]"


class Twins(nn.Module):
    """Two layers with equal weights, which the exporter merges into one initialiser."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.load_state_dict(self.left.state_dict())

    def forward(self, x):
        return self.right(self.left(x).relu())


def test_merged_weights_list_all_their_names():
    model = from_torch(Twins(), {"x": torch.ones(2, 4)}, {"x": {0: "batch"}})
    recorded = json.loads(model.metadata_props["secateur.parameters"])
    named = sorted(entry.get("names", [entry["name"]]) for entry in recorded.values())
    assert named == [["left.bias", "right.bias"], ["left.weight", "right.weight"]]
