"""A whole MADTP model as one graph: both token axes are pruned in it."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tests.madtp import small
from transformers import BlipTextModel, BlipVisionModel

from secateur.export.torch_export import from_torch
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.graph_forms import NlvrByTemperature
from secateur.models.madtp.tasks import BlipNlvr, Compression
from secateur.models.madtp.twin import make_twin


@pytest.fixture(scope="module")
def exported():
    """One layer per branch: an export takes half a minute per layer."""
    torch.manual_seed(0)
    config = small.blip_config()
    for part in (config.text_config, config.vision_config):
        part.num_hidden_layers = 1
    text = BlipTextModel(config.text_config, add_pooling_layer=False)
    make_twin(text.encoder, config.text_config)
    net = small.perturbed(BlipNlvr(BlipVisionModel(config.vision_config), text, Concepts(8, 32)))
    inputs = small.inputs()
    inputs["pixel_values"] = torch.stack([inputs["pixel_values"]] * 2, dim=1)
    tokens = {0: "batch", 1: "tokens"}
    dynamic = {"pixel_values": {0: "batch"}, "input_ids": tokens, "attention_mask": tokens}
    given = inputs | {"temperature": torch.tensor(3.0)}
    model = from_torch(NlvrByTemperature(net), given, dynamic)
    return net, inputs, ort.InferenceSession(ir.to_proto(model).SerializeToString())


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 3.0, 20.0])
def test_one_graph_serves_every_temperature(exported, temperature):
    net, inputs, session = exported
    feeds = {name: value.numpy() for name, value in inputs.items()}
    feeds["temperature"] = torch.tensor(temperature).numpy()
    (made,) = session.run(None, feeds)
    want = net(**inputs, compression=Compression.at(temperature))["logits"]
    torch.testing.assert_close(torch.as_tensor(made), want, rtol=1e-4, atol=1e-5)


def test_a_sample_of_the_graph_is_what_it_is_alone(exported):
    _, inputs, session = exported
    feeds = {name: value.numpy() for name, value in inputs.items()}
    feeds["temperature"] = torch.tensor(3.0).numpy()
    (together,) = session.run(None, feeds)
    for b in range(3):
        alone = {n: (v[b : b + 1] if n != "temperature" else v) for n, v in feeds.items()}
        (made,) = session.run(None, alone)
        torch.testing.assert_close(
            torch.as_tensor(made[0]), torch.as_tensor(together[b]), rtol=1e-4, atol=1e-5
        )
