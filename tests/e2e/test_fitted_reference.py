"""Weights fitted in the graph go back into a copy of the PyTorch module."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.surface import small

import secateur as sc
from secateur.workflow.fitted_reference import fitted_module
from secateur.workflow.model_session import open_model


@pytest.fixture(scope="module")
def exported():
    net, inputs, dynamic = small.encoder()
    return net.eval(), inputs, sc.from_torch(net, inputs, dynamic)


def scaled(model, *, only=lambda _: True):
    """The graph with every float weight a little larger."""
    fitted = model.clone()
    for name, value in fitted.graph.initializers.items():
        if only(name) and value.dtype == ir.DataType.FLOAT and value.const_value.size > 1:
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.05))
    return fitted


def test_the_copy_gives_the_numbers_of_the_fitted_graph(exported):
    net, inputs, dense = exported
    fitted = scaled(dense, only=lambda name: "layers" in name)
    made = fitted_module(net, dense, fitted)
    with torch.no_grad():
        want, plain = made(**inputs)["vector"].numpy(), net(**inputs)["vector"].numpy()
    with open_model(fitted) as run:
        got = run({name: tensor.numpy() for name, tensor in inputs.items()})["vector"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - want).max() > 1e-2


def test_the_module_itself_stays_as_it_was(exported):
    net, _, dense = exported
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fitted_module(net, dense, scaled(dense))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_graph_with_a_node_more_has_no_module(exported):
    net, _, dense = exported
    fitted = dense.clone()
    last = fitted.graph.outputs[0]
    fitted.graph.append(ir.Node("", "Identity", [last], name="more"))
    assert fitted_module(net, dense, fitted) is None


def test_a_weight_that_no_parameter_is_has_no_module(exported):
    net, _, dense = exported
    bare = dense.clone()
    bare.metadata_props["secateur.parameters"] = "{}"
    assert fitted_module(net, bare, scaled(bare)) is None
