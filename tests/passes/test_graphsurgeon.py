"""A model that goes through GraphSurgeon and back is the same model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx.reference import ReferenceEvaluator

from secateur.errors import BadInputError
from secateur.graph_passes.graphsurgeon import (
    from_graphsurgeon,
    on_graphsurgeon,
    to_graphsurgeon,
)

BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[batch, tokens, 4] x, float[1, 1] bias) => (float[batch, tokens, 3] y)
<float[4, 3] weight = {1, -2, 3, 4, 5, -6, 7, 8, 9, -1, 0.5, 2}, float[1, 1] bias = {0.25}>
{
    product = MatMul(x, weight)
    shifted = Add(product, bias)
    unused = Neg(shifted)
    y = Relu(shifted)
}
"""


@pytest.fixture
def model() -> ir.Model:
    model = ir.from_onnx_text(BLOCK)
    model.metadata_props["secateur.parameters"] = '{"weight": {"name": "proj.weight"}}'
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'proj', 'matmul']"
    return model


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(ir.to_proto(model)).run(["y"], {"x": x})[0]


def _x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)


def test_round_trip_computes_the_same(model):
    back = from_graphsurgeon(to_graphsurgeon(model))
    onnx.checker.check_model(ir.to_proto(back), full_check=True)
    np.testing.assert_array_equal(_run(back, _x()), _run(model, _x()))


def test_round_trip_keeps_the_metadata_of_model_and_nodes(model):
    back = from_graphsurgeon(to_graphsurgeon(model))
    assert back.metadata_props == model.metadata_props
    assert back.graph[0].metadata_props == model.graph[0].metadata_props


def test_round_trip_keeps_an_input_with_a_default(model):
    back = from_graphsurgeon(to_graphsurgeon(model))
    assert [value.name for value in back.graph.inputs] == ["x", "bias"]
    assert "bias" in back.graph.initializers


def test_round_trip_keeps_names_of_dynamic_dimensions(model):
    back = from_graphsurgeon(to_graphsurgeon(model))
    assert [str(size) for size in back.graph.inputs[0].shape] == ["batch", "tokens", "4"]


def test_conversion_leaves_the_model_alone(model):
    before = ir.to_proto(model).SerializeToString()
    graph = to_graphsurgeon(model)
    graph.nodes.clear()
    graph.outputs.clear()
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_in_a_side_file_are_loaded(model, tmp_path):
    path = tmp_path / "block.onnx"
    onnx.save(
        ir.to_proto(model), path, save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    external = ir.load(path)
    back = from_graphsurgeon(to_graphsurgeon(external))
    np.testing.assert_array_equal(_run(back, _x()), _run(model, _x()))


def test_a_function_runs_on_a_graph(model):
    def rename(model: ir.Model) -> ir.Model:
        model.graph.outputs[0].name = "z"
        return model

    assert on_graphsurgeon(rename, to_graphsurgeon(model)).outputs[0].name == "z"


def test_a_pass_object_runs_on_a_graph(model):
    graph = on_graphsurgeon(common.RemoveUnusedNodesPass(), to_graphsurgeon(model))
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Relu"]


def test_the_graph_that_was_given_stays(model):
    graph = to_graphsurgeon(model)
    on_graphsurgeon(common.RemoveUnusedNodesPass(), graph)
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Neg", "Relu"]


def test_metadata_survives_a_pass_and_an_edit(model):
    graph = on_graphsurgeon(common.RemoveUnusedNodesPass(), to_graphsurgeon(model))
    graph.nodes[-1].op = "Tanh"
    back = from_graphsurgeon(graph)
    assert back.metadata_props == model.metadata_props
    assert back.graph[-1].op_type == "Tanh"


def test_a_plain_graphsurgeon_graph_is_accepted(model):
    graph = gs.import_onnx(ir.to_proto(model))
    back = from_graphsurgeon(graph)
    np.testing.assert_array_equal(_run(back, _x()), _run(model, _x()))


def test_unsorted_nodes_are_put_in_order(model):
    graph = to_graphsurgeon(model)
    graph.nodes.reverse()
    onnx.checker.check_model(ir.to_proto(from_graphsurgeon(graph)))


def test_a_cycle_is_refused_with_what_to_do(model):
    graph = to_graphsurgeon(model)
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]
    with pytest.raises(BadInputError, match="break the cycle"):
        from_graphsurgeon(graph)


def test_an_output_without_a_data_type_is_refused(model):
    graph = to_graphsurgeon(model)
    graph.outputs[0].dtype = None
    with pytest.raises(BadInputError, match="dtype"):
        from_graphsurgeon(graph)
