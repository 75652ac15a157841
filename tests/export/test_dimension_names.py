"""Dynamic dimensions: what the checks after an export would catch."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import nn

from secateur.errors import BadInputError
from secateur.export import dimension_names, simplify, verify

DYNAMIC = {"x": {0: "batch", 1: "tokens"}}


class Doubled(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], dim=1)


@pytest.fixture(scope="module")
def program():
    varying = torch.export.Dim.DYNAMIC
    shapes = {"x": {0: varying, 1: varying}}
    return torch.export.export(Doubled(), (), kwargs={"x": torch.ones(2, 5)}, dynamic_shapes=shapes)


@pytest.fixture
def graph():
    return ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[batch, tokens] x) => (float[batch, tokens] y) { y = Relu(x) }
        """
    )


def test_expressions_are_renamed_too(program):
    names = dimension_names.symbol_names(program, DYNAMIC)
    assert dimension_names.output_dims(program, names) == (("batch", "2*tokens"),)


def test_dimension_that_was_traced_static_is_refused():
    fixed = torch.export.export(Doubled(), (), kwargs={"x": torch.ones(2, 5)})
    with pytest.raises(BadInputError, match="cannot vary freely"):
        dimension_names.symbol_names(fixed, DYNAMIC)


def test_input_that_the_program_lacks_is_named(program):
    with pytest.raises(BadInputError, match="'mask' is not read"):
        dimension_names.symbol_names(program, {"mask": {0: "batch"}})


def test_graph_with_the_declared_dimensions_passes(graph):
    dimension_names.check(graph, DYNAMIC)
    dimension_names.check_outputs(graph, (("batch", "tokens"),))


@pytest.mark.parametrize("dims", [[2, "tokens"], ["batch", None], ["batch", "s7"]])
def test_input_dimension_that_is_not_the_declared_one_is_refused(graph, dims):
    graph.graph.inputs[0].shape = ir.Shape(dims)
    with pytest.raises(BadInputError, match="became static"):
        dimension_names.check(graph, DYNAMIC)


def test_output_dimension_that_became_static_is_refused(graph):
    graph.graph.outputs[0].shape = ir.Shape(["batch", 5])
    with pytest.raises(BadInputError, match="output dimension became static"):
        dimension_names.check_outputs(graph, (("batch", "tokens"),))


def test_other_sizes_stay_in_their_ranges_and_differ():
    small, large = verify.other_sizes(
        {"batch": 2, "tokens": 16, "rows": 8}, {"tokens": (2, 17), "rows": (6, None)}
    )
    assert small == {"batch": 1, "tokens": 8, "rows": 6}
    assert large == {"batch": 5, "tokens": 17, "rows": 11}


GATHER = """
    <ir_version: 10, opset_import: ["": 20]>
    g (bool[batch, tokens] mask, int64 b, int64 n)
      => (bool[batch, 1, tokens] y)
      <int64 zero = {0}, int64 one = {%d}, int64[2] after = {1, 2}, int64[2] around = {0, 1},
       int64[1] last = {-1}>
    {
        r0 = Range(zero, b, one)
        r1 = Range(zero, n, one)
        u0 = Unsqueeze(r0, after)
        u1 = Unsqueeze(r1, around)
        largest = Max(u0, u1)
        shape = Shape(largest)
        e0 = Expand(u0, shape)
        e1 = Expand(u1, shape)
        i0 = Unsqueeze(e0, last)
        i1 = Unsqueeze(e1, last)
        index = Concat<axis = -1>(%s)
        seen = GatherND(mask, index)
        y = Not(seen)
    }
"""


def gather_graph(step=1, order="i0, i1"):
    model = ir.from_onnx_text(GATHER % (step, order))
    shapes = {
        "r0": ["batch"],
        "r1": ["tokens"],
        "u0": ["batch", 1, 1],
        "u1": [1, 1, "tokens"],
        "e0": ["batch", 1, "tokens"],
        "e1": ["batch", 1, "tokens"],
        "i0": ["batch", 1, "tokens", 1],
        "i1": ["batch", 1, "tokens", 1],
        "seen": ["batch", 1, "tokens"],
    }
    for node in model.graph:
        if node.outputs[0].name in shapes:
            node.outputs[0].shape = ir.Shape(shapes[node.outputs[0].name])
    return model


def test_gather_over_whole_axes_becomes_an_unsqueeze():
    model = gather_graph()
    assert simplify.unsqueeze_instead_of_gather(model) == 1
    assert simplify.unsqueeze_instead_of_gather(model) == 0
    plain = model.graph.outputs[0].producer().inputs[0].producer()
    assert plain.op_type == "Unsqueeze"
    assert plain.inputs[0].name == "mask"
    assert plain.inputs[1].const_value.numpy().tolist() == [1]


@pytest.mark.parametrize(
    ("step", "order"), [(2, "i0, i1"), (1, "i1, i0")], ids=["every second", "transposed"]
)
def test_gather_that_moves_something_stays(step, order):
    model = gather_graph(step, order)
    assert simplify.unsqueeze_instead_of_gather(model) == 0
    assert "GatherND" in {node.op_type for node in model.graph}
