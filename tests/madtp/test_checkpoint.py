"""Checkpoints: Hugging Face directories, published files, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from tests.madtp import published, small
from transformers import BlipForImageTextRetrieval

from secateur.errors import BadInputError
from secateur.models.madtp.checkpoint import from_hugging_face, load_published, read_published
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.tasks import BlipRetrieval


def _net(seed: int = 0):
    torch.manual_seed(seed)
    return BlipRetrieval(BlipForImageTextRetrieval(small.blip_config()), Concepts(8, 32))


def test_a_published_file_fills_the_model(tmp_path):
    source, target = _net(0), _net(1)
    state = published.blip(source) | {"image_queue": torch.zeros(3), "temp": torch.tensor(0.07)}
    state["visual_encoder_m.cls_token"] = torch.zeros(1)
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pth")
    skipped = load_published(target, read_published(tmp_path / "model.pth"))
    assert sorted(skipped) == ["image_queue", "temp", "visual_encoder_m.cls_token"]
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_a_dense_published_file_leaves_the_concepts_alone():
    source, target = _net(0), _net(1)
    before = target.concepts.weight.clone()
    state = published.blip(source)
    del state["space_dict"]
    load_published(target, state)
    assert torch.equal(target.concepts.weight, before)


def test_a_file_of_another_model_is_refused_by_name():
    state = published.blip(_net())
    del state["visual_encoder.cls_token"]
    state["text_decoder.cls.bias"] = torch.zeros(2)
    with pytest.raises(BadInputError, match="another model") as error:
        load_published(_net(), state)
    assert "missing: vision.embeddings.class_embedding" in error.value.got
    assert "unexpected: text_decoder.cls.bias" in error.value.got


def test_a_file_of_another_size_is_refused_by_name():
    state = published.blip(_net())
    state["space_dict"] = torch.zeros(9, 32)
    with pytest.raises(BadInputError, match=r"concepts.weight \[9, 32\] for \[8, 32\]"):
        load_published(_net(), state)


class _Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_that_holds_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save({"model": _Evil()}, tmp_path / "model.pth")
    with pytest.raises(BadInputError, match="not a checkpoint of tensors"):
        read_published(tmp_path / "model.pth")
    assert "unpickled" not in capsys.readouterr().out


def test_a_file_without_named_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "model.pth")
    with pytest.raises(BadInputError, match="tensors by name"):
        read_published(tmp_path / "model.pth")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip")
    torch.manual_seed(0)
    BlipForImageTextRetrieval(small.blip_config()).save_pretrained(path)
    return path


def test_a_hugging_face_directory_loads(directory):
    net = from_hugging_face(directory, "retrieval", Concepts(8, 32))
    assert net(**small.inputs())["itm_logits"].shape == (3, 2)


def test_a_directory_of_another_task_is_refused_by_name(directory):
    with pytest.raises(BadInputError, match="text_decoder"):
        from_hugging_face(directory, "vqa", Concepts(8, 32))


def test_an_unknown_task_is_refused(directory):
    with pytest.raises(BadInputError, match="vqa, caption, retrieval, clip"):
        from_hugging_face(directory, "nlvr3", Concepts(8, 32))


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"config\.json"):
        from_hugging_face(tmp_path, "vqa", Concepts(8, 32))
