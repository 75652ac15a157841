"""A dense model teaches a pruned one what its first tokens are to hold."""

from __future__ import annotations

import pytest
import torch
from tests.madtp.test_training import trained

from secateur.errors import BadInputError
from secateur.models.madtp.digits import make_examples
from secateur.models.madtp.distillation import Lesson, Taught, distillation_loss, taught_by
from secateur.models.madtp.loop import Training
from secateur.models.madtp.search import Target
from secateur.models.madtp.tasks import NO_COMPRESSION, Compression
from secateur.models.madtp.towers import Text
from secateur.models.madtp.training import train_distilled
from secateur.models.madtp.work import nlvr_macs

ROWS = torch.arange(8)


@pytest.fixture(scope="module")
def examples():
    return make_examples(24, "train", seed=0)


@torch.no_grad()
def _loss(net, examples, taught, compression):
    inputs = examples.inputs(ROWS)
    words = Text(inputs["input_ids"], inputs["attention_mask"])
    return float(
        distillation_loss(*net.encode(inputs["pixel_values"], words, compression), taught, ROWS)
    )


def test_a_dense_model_has_nothing_to_teach_itself_and_much_a_pruned_one(examples):
    net = trained()
    taught = taught_by(net, examples, rows=7)
    assert _loss(net, examples, taught, NO_COMPRESSION) < 1e-10
    assert _loss(net, examples, taught, Compression.at(20.0)) > 0.1


@pytest.mark.sweep
def test_a_taught_model_comes_closer_while_it_is_compressed(examples, tmp_path):
    net, pruned = trained(), Compression.at(1e3)
    taught = taught_by(net, examples)
    before = _loss(net, examples, taught, pruned)
    dense = float(nlvr_macs(net, examples.inputs(slice(0, 8)), NO_COMPRESSION).mean())
    training = Training(epochs=6, batch_size=8, target=Target(0.2 * dense), measured=8)
    train_distilled(net, Lesson(examples, taught), training, tmp_path / "run.pt")
    assert _loss(net, examples, taught, pruned) < 0.8 * before


def test_a_teacher_of_another_width_is_refused(examples):
    other = Taught(torch.zeros(24, 7), torch.zeros(24, 2, 7))
    with pytest.raises(BadInputError, match="width"):
        _loss(trained(), examples, other, NO_COMPRESSION)
