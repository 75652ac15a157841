"""Input that MADTP has to refuse, or to stand: a test for each line of it, at the models."""

from __future__ import annotations

import pytest
import torch
from tests.madtp import published, small
from tests.madtp.test_tasks import MAKERS, _inputs

from secateur.errors import BadInputError
from secateur.models.madtp.checkpoint import load_published
from secateur.models.madtp.digits import make_examples
from secateur.models.madtp.digits_model import digits_model
from secateur.models.madtp.loop import Training
from secateur.models.madtp.search import Target
from secateur.models.madtp.tasks import Compression
from secateur.models.madtp.training import find_temperature, train

WITH_MASK = [name for name in MAKERS if name != "caption"]


@pytest.fixture(scope="module", params=list(MAKERS))
def task(request):
    return request.param, MAKERS[request.param](), _inputs(request.param)


@pytest.mark.parametrize("temperature", [-1.0, -1e-9])
def test_a_temperature_below_zero_is_refused(task, temperature):
    _, net, inputs = task
    with pytest.raises(BadInputError, match="temperature"):
        net(**inputs, compression=Compression.at(temperature))


@torch.no_grad()
def test_a_temperature_of_zero_prunes_nothing(task):
    _, net, inputs = task
    dense, made = net(**inputs), net(**inputs, compression=Compression.at(0.0))
    for name, value in dense.items():
        assert torch.equal(value, made[name])


@pytest.mark.parametrize("name", WITH_MASK)
def test_a_text_that_is_all_padding_is_refused_by_its_number(name):
    inputs = _inputs(name)
    inputs["attention_mask"][2] = 0
    with pytest.raises(BadInputError, match="sample 2"):
        MAKERS[name]()(**inputs, compression=Compression.at(3.0))


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in WITH_MASK if n != "clip"])
@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_text_of_one_token_is_answered_and_the_same_in_a_batch(name, temperature):
    """Nothing but position 0 is left to keep, to merge or to divide by."""
    net, inputs = MAKERS[name](), _inputs(name)
    inputs["attention_mask"][1, 1:] = 0
    compression = Compression.at(temperature)
    together = net(**inputs, compression=compression)
    alone = {n: value[[1]] for n, value in inputs.items()}
    alone |= {n: alone[n][:, :1] for n in ("input_ids", "attention_mask")}
    for output, value in net(**alone, compression=compression).items():
        assert value.isfinite().all()
        torch.testing.assert_close(together[output][[1]], value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_of_one_token_is_answered_by_clip():
    inputs = _inputs("clip")
    for text in ("input_ids", "attention_mask"):
        inputs[text] = inputs[text][:, -1:]
    inputs["input_ids"][:] = 49
    inputs["attention_mask"][:] = 1
    made = MAKERS["clip"]()(**inputs, compression=Compression.at(3.0))
    assert made["text_embeds"].isfinite().all()


@pytest.mark.parametrize("size", [(32, 24), (40, 40)], ids=str)
def test_images_of_another_size_are_refused_with_both_sizes(task, size):
    _, net, inputs = task
    pixels = inputs["pixel_values"]
    other = inputs | {"pixel_values": pixels.new_zeros(*pixels.shape[:-2], *size)}
    with pytest.raises(BadInputError, match=f"{size[0]} x {size[1]}") as caught:
        net(**other, compression=Compression.at(3.0))
    assert "32 x 32" in caught.value.wanted


def test_the_checkpoint_of_another_task_is_refused_with_what_is_missing_and_too_much():
    with pytest.raises(BadInputError, match="another model") as caught:
        load_published(small.nlvr(), published.blip(MAKERS["vqa"]()))
    assert "missing: cls_head.0.bias" in caught.value.got
    assert "unexpected: " in caught.value.got


def test_a_target_that_no_temperature_reaches_is_refused_with_what_is_in_reach():
    inputs = make_examples(4, "train", seed=0).inputs(slice(0, 4))
    with pytest.raises(BadInputError, match="reaches") as caught:
        find_temperature(digits_model(), inputs, Target(1e12))
    low, high = (float(bound) for bound in caught.value.wanted.split(" to "))
    assert 0 < low < high < 1e12


def test_training_to_more_than_the_dense_model_has_is_refused_at_once(tmp_path):
    examples = make_examples(4, "train", seed=0)
    training = Training(epochs=1, target=Target(1e12), measured=4)
    with pytest.raises(BadInputError, match=r"\(dense\)"):
        train(digits_model(), examples, training, tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()
