"""Published files become files of tensors under Hugging Face's names, and models again."""

from __future__ import annotations

import json

import pytest
import torch
from tests.madtp import published, small
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPModel,
)

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.convert import convert, load_converted, main
from secateur.models.madtp.tasks import BlipCaption, BlipRetrieval, BlipVqa, ClipRetrieval

HEAD_WIDTH = 8
MAKERS = {
    "nlvr": lambda: small.nlvr(layers=7),
    "vqa": lambda: BlipVqa(BlipForQuestionAnswering(small.blip_config()), Concepts(8, 32)),
    "caption": lambda: BlipCaption(
        BlipForConditionalGeneration(small.blip_config()), Concepts(8, 32)
    ),
    "retrieval": lambda: BlipRetrieval(
        BlipForImageTextRetrieval(small.blip_config()), Concepts(8, 32)
    ),
    "clip": lambda: ClipRetrieval(CLIPModel(small.clip_config()), Concepts(8, 32)),
}


def _file(path, task, net=None, **more):
    """A made-up published file, and the model that it is of."""
    torch.manual_seed(0)
    net = MAKERS[task]() if net is None else net
    state = (published.clip if task == "clip" else published.blip)(net)
    state |= {"logit_scale": torch.tensor(1.0)} if task == "clip" else {}
    torch.save({"model": state, "epoch": 3, "temperature": 2.5} | more, path)
    return net


@pytest.mark.parametrize("task", list(MAKERS))
def test_a_converted_file_is_the_model_it_was(task, tmp_path):
    net = _file(tmp_path / "best.pth", task)
    convert(task, tmp_path / "best.pth", tmp_path / "out", HEAD_WIDTH)
    made = load_converted(tmp_path / "out")
    assert made.temperature == 2.5
    assert not made.net.training
    want, got = net.state_dict(), made.net.state_dict()
    assert set(got) == set(want)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


@torch.no_grad()
def test_a_converted_classifier_answers_as_before(tmp_path):
    net = _file(tmp_path / "best.pth", "nlvr", small.nlvr())
    convert("nlvr", tmp_path / "best.pth", tmp_path / "out", HEAD_WIDTH)
    made = load_converted(tmp_path / "out").net
    for part in (*net.modules(), *made.modules()):
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-5  # small models have another one than published models
    inputs = small.nlvr_inputs()
    torch.testing.assert_close(made(**inputs)["logits"], net(**inputs)["logits"])


def test_a_dense_file_gets_concepts_and_no_temperature(tmp_path):
    net = MAKERS["retrieval"]()
    state = published.blip(net)
    del state["space_dict"]
    torch.save({"model": state}, tmp_path / "dense.pth")
    made = convert("retrieval", tmp_path / "dense.pth", tmp_path / "out", HEAD_WIDTH)
    assert made.temperature == 0
    assert made.net.concepts.weight.shape == (100, 32)


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    _file(tmp_path / "best.pth", "retrieval")
    given = ["retrieval", str(tmp_path / "best.pth"), str(tmp_path / "out"), "--head-width", "8"]
    assert main(given) == 0
    assert "temperature 2.5" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "madtp.json").read_text())["schema"] == 1


def test_the_command_names_the_tensors_of_another_model(tmp_path, capsys):
    _file(tmp_path / "best.pth", "vqa")
    given = ["nlvr", str(tmp_path / "best.pth"), str(tmp_path / "out"), "--head-width", "8"]
    assert main(given) == 1
    said = capsys.readouterr().out
    assert "missing: cls_head.0.bias" in said
    assert "unexpected: text.encoder.layer.0.crossattention" in said
    assert not (tmp_path / "out").exists()


def test_a_file_without_the_tensors_that_sizes_are_read_from_is_refused(tmp_path):
    _file(tmp_path / "best.pth", "clip")
    with pytest.raises(BadInputError, match=r"missing: visual_encoder\.patch_embed"):
        convert("vqa", tmp_path / "best.pth", tmp_path / "out")


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="nlvr, vqa, caption, retrieval, clip"):
        convert("video", tmp_path / "best.pth", tmp_path / "out")


def test_a_folder_that_holds_no_converted_model_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        load_converted(tmp_path)
