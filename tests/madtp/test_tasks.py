"""BLIP and CLIP models: dense they are Hugging Face's, pruned no sample depends on another."""

from __future__ import annotations

import pytest
import torch
from tests.madtp import small
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextModel,
    BlipVisionModel,
    CLIPModel,
)

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.tasks import (
    BlipCaption,
    BlipNlvr,
    BlipRetrieval,
    BlipVqa,
    ClipRetrieval,
    Compression,
)
from secateur.models.madtp.twin import make_twin

PRUNED = Compression.at(3.0)


def _concepts():
    torch.manual_seed(0)
    return Concepts(8, 32)


def _nlvr():
    config = small.blip_config()
    text = BlipTextModel(config.text_config, add_pooling_layer=False)
    make_twin(text.encoder, config.text_config)
    vision = BlipVisionModel(config.vision_config)
    return small.perturbed(BlipNlvr(vision, text, _concepts()))


def _inputs(name):
    inputs = small.inputs(end=49 if name == "clip" else None)
    if name == "nlvr":
        pixels = inputs["pixel_values"]
        inputs["pixel_values"] = torch.stack([pixels, pixels.flip(3)], dim=1)
    if name == "vqa":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4].clamp(min=3)
    if name == "caption":
        del inputs["attention_mask"]
        inputs["input_ids"] = inputs["input_ids"].clamp(min=3)
    return inputs


MAKERS = {
    "nlvr": _nlvr,
    "retrieval": lambda: BlipRetrieval(_dense("retrieval"), _concepts()),
    "vqa": lambda: BlipVqa(_dense("vqa"), _concepts()),
    "caption": lambda: BlipCaption(_dense("caption"), _concepts()),
    "clip": lambda: small.perturbed(ClipRetrieval(_dense("clip"), _concepts())),
}


def _dense(name):
    kinds = {
        "retrieval": BlipForImageTextRetrieval,
        "vqa": BlipForQuestionAnswering,
        "caption": BlipForConditionalGeneration,
    }
    torch.manual_seed(0)
    if name == "clip":
        return small.perturbed(CLIPModel(small.clip_config()))
    return small.perturbed(kinds[name](small.blip_config()))


@pytest.fixture(scope="module", params=list(MAKERS))
def model(request):
    return MAKERS[request.param](), _inputs(request.param)


@torch.no_grad()
def test_a_sample_in_a_batch_is_what_it_is_alone(model):
    net, inputs = model
    together = net(**inputs, compression=PRUNED)
    for b in range(3):
        alone = net(**{name: t[[b]] for name, t in inputs.items()}, compression=PRUNED)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][[b]], value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pruning_changes_the_result(model):
    net, inputs = model
    dense, pruned = net(**inputs), net(**inputs, compression=PRUNED)
    assert any(not torch.allclose(dense[name], pruned[name], atol=1e-4) for name in dense)


@torch.no_grad()
def test_dense_retrieval_is_that_of_hugging_face():
    dense, inputs = _dense("retrieval"), _inputs("retrieval")
    net = BlipRetrieval(dense, _concepts()).eval()
    want = dense(**inputs, use_itm_head=True).itm_score
    torch.testing.assert_close(net(**inputs)["itm_logits"], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dense_clip_is_that_of_hugging_face():
    dense, inputs = _dense("clip"), _inputs("clip")
    net = ClipRetrieval(dense, _concepts()).eval()
    made, want = net(**inputs), dense(**inputs)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(made[name], want[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dense_captions_are_those_of_hugging_face():
    dense, inputs = _dense("caption"), _inputs("caption")
    net = BlipCaption(dense, _concepts()).eval()
    torch.testing.assert_close(
        net(**inputs)["logits"], dense(**inputs).logits, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_published_form_lets_samples_decide_for_each_other():
    net, inputs = _nlvr(), _inputs("nlvr")
    coupled = Compression.at(3.0, coupled=True)
    together = net(**inputs, compression=coupled)["logits"][[2]]
    alone = net(**{name: t[[2]] for name, t in inputs.items()}, compression=coupled)["logits"]
    assert not torch.allclose(together, alone, atol=1e-4)


def test_an_image_of_another_size_is_refused():
    inputs = _inputs("nlvr")
    inputs["pixel_values"] = torch.zeros(3, 2, 3, 40, 32)
    with pytest.raises(BadInputError, match="40 x 32"):
        _nlvr()(**inputs)


def test_a_text_that_is_all_padding_is_refused():
    inputs = _inputs("nlvr")
    inputs["attention_mask"][1] = 0
    with pytest.raises(BadInputError, match="sample 1"):
        _nlvr()(**inputs)
