"""Model families: the same numbers as transformers gives, and an export that keeps them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.export.source import load
from secateur.export.torch_export import from_torch
from secateur.models.families import torch_encoder

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
}
TEXT = {**SIZES, "vocab_size": 12, "max_position_embeddings": 40}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
CLIP = {
    "text_config": {**TEXT, "eos_token_id": 11, "pad_token_id": 0},
    "vision_config": IMAGE,
    "projection_dim": 24,
}


@pytest.fixture(scope="module")
def roberta(save_folder):
    config = transformers.RobertaConfig(**TEXT, pad_token_id=0)
    return save_folder(transformers.RobertaModel(config, add_pooling_layer=False))


@pytest.fixture(scope="module")
def distilbert(save_folder):
    config = transformers.DistilBertConfig(
        dim=32, n_heads=4, n_layers=1, hidden_dim=48, vocab_size=12, max_position_embeddings=40
    )
    return save_folder(transformers.DistilBertForSequenceClassification(config))


@pytest.fixture(scope="module")
def vit(save_folder):
    return save_folder(transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE)))


@pytest.fixture(scope="module")
def clip(save_folder):
    return save_folder(transformers.CLIPModel(transformers.CLIPConfig(**CLIP)))


def outputs(loaded):
    with torch.no_grad():
        return loaded.net(**loaded.inputs)


def same_on_valid_rows(got, want, mask):
    rows = mask.bool()
    np.testing.assert_allclose(got[rows].numpy(), want[rows].numpy(), rtol=1e-5, atol=1e-6)


def test_sentence_embedding_is_what_the_pipeline_defines(sentence, bert):
    with torch.no_grad():
        hidden = bert(**sentence.inputs).last_hidden_state
    mask = sentence.inputs["attention_mask"]
    means = [row[keep.bool()].mean(dim=0) for row, keep in zip(hidden, mask, strict=True)]
    want = F.normalize(torch.stack(means), dim=1)
    got = outputs(sentence)["sentence_embedding"]
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)


def test_roberta_gives_the_hidden_states_of_transformers(roberta):
    loaded = load(str(roberta))
    with torch.no_grad():
        want = transformers.RobertaModel.from_pretrained(roberta)(**loaded.inputs)
    mask = loaded.inputs["attention_mask"]
    same_on_valid_rows(outputs(loaded)["last_hidden_state"], want.last_hidden_state, mask)


def test_distilbert_classifier_gives_the_logits_of_transformers(distilbert):
    loaded = load(str(distilbert))
    model = transformers.DistilBertForSequenceClassification.from_pretrained(distilbert)
    with torch.no_grad():
        want = model.eval()(**loaded.inputs).logits
    torch.testing.assert_close(outputs(loaded)["logits"], want, rtol=1e-5, atol=1e-6)


def test_clip_towers_give_the_embeddings_of_transformers(clip):
    text, vision = load(f"{clip}#text"), load(f"{clip}#vision")
    inputs = {**text.inputs, **vision.inputs}
    inputs["input_ids"][:, -1] = 11  # the end of text, where the tower reads its result
    inputs["attention_mask"][:] = 1
    with torch.no_grad():
        want = transformers.CLIPModel.from_pretrained(clip).eval()(**inputs)
    got = outputs(text)["text_embedding"], outputs(vision)["image_embedding"]
    torch.testing.assert_close(got[0], want.text_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1], want.image_embeds, rtol=1e-5, atol=1e-6)


def test_nn_transformer_encoder_is_fed_a_mask_of_real_tokens():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    wrapped = torch_encoder.wrap(encoder)
    inputs = wrapped.inputs
    padding = inputs["attention_mask"] == 0
    with torch.no_grad():
        want = encoder(inputs["hidden"], src_key_padding_mask=padding)
        got = wrapped.net(**inputs)["last_hidden_state"]
    same_on_valid_rows(got, want, inputs["attention_mask"])


def test_encoder_with_tokens_first_is_refused():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 1)
    with pytest.raises(BadInputError, match="batch_first"):
        torch_encoder.wrap(encoder)


@pytest.mark.parametrize(
    ("fixture", "part"),
    [("roberta", ""), ("distilbert", ""), ("vit", ""), ("clip", "#text"), ("clip", "#vision")],
    ids=["roberta", "distilbert", "vit", "clip-text", "clip-vision"],
)
def test_every_family_exports_with_its_parameter_names(fixture, part, request):
    loaded = load(f"{request.getfixturevalue(fixture)}{part}")
    model = from_torch(loaded.net, loaded.inputs, loaded.dynamic)
    recorded = json.loads(model.metadata_props["secateur.parameters"])
    named = {name for entry in recorded.values() for name in entry.get("names", [entry["name"]])}
    weights = {name for name, tensor in loaded.net.named_parameters() if tensor.dim() > 1}
    # Rows that the exporter folded into constants: token types, and tables that are added whole.
    lost = {name for name in weights - named if "embedding" not in name}
    assert lost == set()
    assert "GatherND" not in {node.op_type for node in model.graph} or fixture == "clip"


def test_nn_transformer_encoder_exports():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    wrapped = torch_encoder.wrap(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    model = from_torch(wrapped.net, wrapped.inputs, wrapped.dynamic)
    assert [node.op_type for node in model.graph].count("Softmax") == 1


def test_fused_attention_at_opset_23(sentence):
    model = from_torch(sentence.net, sentence.inputs, sentence.dynamic, opset=23)
    types = [node.op_type for node in model.graph]
    assert types.count("Attention") == 2
    assert "Softmax" not in types
    for node in model.graph:
        for value in node.outputs:
            assert all(isinstance(dim, int) or dim.value for dim in value.shape)


def test_transformers_own_mask_becomes_a_plain_unsqueeze(bert, sentence):
    model = from_torch(bert, sentence.inputs, sentence.dynamic)
    types = {node.op_type for node in model.graph}
    assert "GatherND" not in types
    assert [str(v.shape) for v in model.graph.outputs] == ["[batch,tokens,32]"]


def test_texts_become_padded_ids(sentence):
    arrays = sentence.prepare(["a cat sits .", "dog runs"])
    assert arrays["input_ids"].tolist() == [[2, 5, 6, 8, 11, 3], [2, 7, 9, 3, 0, 0]]
    assert arrays["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert arrays["input_ids"].dtype == np.int64


def test_long_texts_are_cut_at_the_pipelines_limit(sentence):
    assert sentence.prepare(["a cat sits . " * 20])["input_ids"].shape == (1, 8)


def test_images_become_normalised_pixels(vit):
    loaded = load(str(vit))
    pixels = loaded.prepare([np.full((20, 30, 3), 255, np.uint8)])["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels, 1.0)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), "cat.png"], ids=["float", "text"]
)
def test_what_is_not_an_image_is_refused(vit, image):
    with pytest.raises(BadInputError, match="image"):
        load(str(vit)).prepare([image])
