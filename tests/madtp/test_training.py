"""Training: it learns, it can be interrupted, and it compresses to its target."""

from __future__ import annotations

import pytest
import torch
from tests.madtp import small

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.digits import VOCABULARY, make_examples
from secateur.models.madtp.macs import macs_per_sample
from secateur.models.madtp.search import Target
from secateur.models.madtp.tasks import BlipNlvr, Compression
from secateur.models.madtp.training import Training, accuracy, train
from secateur.models.madtp.twin import make_twin


@pytest.fixture(scope="module")
def examples():
    return make_examples(24, "train", seed=0)


def _net():
    from transformers import BlipTextModel, BlipVisionModel

    torch.manual_seed(0)
    config = small.blip_config()
    config.text_config.vocab_size = len(VOCABULARY)
    text = BlipTextModel(config.text_config, add_pooling_layer=False)
    make_twin(text.encoder, config.text_config)
    return BlipNlvr(BlipVisionModel(config.vision_config), text, Concepts(8, 32))


def _macs(net, examples, compression):
    run = macs_per_sample(lambda i: net(**i, compression=compression), examples.inputs(slice(0, 4)))
    return sum(run) / len(run)


@torch.no_grad()
def _target(examples):
    net = _net().eval()
    low, high = (_macs(net, examples, Compression.at(t)) for t in (1e3, 1e-3))
    return Target((low + high) / 2, tolerance=0.1, trials=6)


def test_a_run_that_was_interrupted_ends_with_the_same_weights(examples, tmp_path):
    training = Training(epochs=2, batch_size=8, target=_target(examples), measured=4)
    straight, broken, resumed = _net(), _net(), _net()
    whole = train(straight, examples, training, tmp_path / "straight.pt")

    def interrupt(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, examples, training, tmp_path / "broken.pt", interrupt)
    again = train(resumed, examples, training, tmp_path / "broken.pt")
    assert again == whole
    assert whole[0].temperature > 0
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_training_is_refused(examples, tmp_path):
    train(_net(), examples, Training(epochs=1, batch_size=24), tmp_path / "run.pt")
    with pytest.raises(BadInputError, match="another training"):
        train(_net(), examples, Training(epochs=2, batch_size=24), tmp_path / "run.pt")


def test_a_small_set_is_learnt_by_heart(tmp_path):
    net, seen, examples = _net(), [], make_examples(10, "train", seed=0)
    training = Training(epochs=120, batch_size=10, learning_rate=3e-3)
    train(net, examples, training, tmp_path / "run.pt", seen.append)
    assert seen[-1].loss < seen[0].loss
    assert accuracy(net, examples) == 1.0


def test_a_target_out_of_reach_is_refused(examples, tmp_path):
    training = Training(epochs=1, target=Target(1.0), measured=2)
    with pytest.raises(BadInputError, match="no temperature reaches"):
        train(_net(), examples, training, tmp_path / "run.pt")
