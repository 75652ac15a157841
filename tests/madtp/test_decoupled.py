"""Decoupled MADTP: what a sample gets does not depend on who else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.oracles import madtp_layer, sets

from secateur.models.madtp import blocks
from secateur.models.madtp.encoder import Branch, Pruning, Start, encode


def _case(name):
    """A batch of two tokens sets (10) and its samples alone (11, 12), by the published code."""
    return sets.read(sets.HERE / "data" / "madtp_vit" / f"{name}.npz")


@pytest.fixture(scope="module")
def batch():
    return madtp_layer.run(_case("case10"), coupled=False)


@pytest.mark.parametrize(("sample", "alone"), [(0, "case11"), (1, "case12")])
@pytest.mark.parametrize("way", [0, 1], ids=["torch", "onnx"])
def test_a_sample_in_a_batch_gets_its_published_result_alone(batch, way, sample, alone):
    result, want = batch[way], _case(alone).arrays
    k = want["out"].shape[1] - 1
    got = result["hidden"][sample][result["mask_out"][sample]]
    assert result["kept"][sample] == k
    index = result["index"][sample][:k]
    np.testing.assert_array_equal(np.sort(index), np.sort(want["kept_unsorted"][0]))
    ours, theirs = np.argsort(index), np.argsort(want["kept_unsorted"][0])
    madtp_layer.close(got[:k][ours], want["out"][0][:k][theirs])
    madtp_layer.close(got[k], want["out"][0][k])


def test_the_published_code_lets_the_batch_decide():
    for result in madtp_layer.run(_case("case10")):
        alone = [_case(name).arrays["out"].shape[1] - 1 for name in ("case11", "case12")]
        assert result["kept"].tolist() == [max(alone), max(alone)]
        assert min(alone) < max(alone)


@pytest.fixture(scope="module")
def text():
    """Layers of a BLIP text encoder that looks at images, concepts, three padded texts."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextEncoder

    torch.manual_seed(0)
    config = BlipTextConfig(
        hidden_size=32,
        encoder_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        is_decoder=True,
    )
    net = BlipTextEncoder(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(3, 14, 32)
    mask = torch.arange(14)[None, :] < torch.tensor([14, 9, 1])[:, None]
    images = torch.randn(3, 10, 32)
    shown = torch.arange(10)[None, :] < torch.tensor([7, 10, 4])[:, None]
    branch = Branch(net.layer, blocks.BLIP_TEXT, torch.randn(8, 32))
    return branch, hidden, mask, images, shown


def _encode(branch, hidden, mask, context, pruning):
    with torch.no_grad():
        return encode(branch, Start(hidden, mask, (context,)), pruning)


@pytest.mark.parametrize(
    "pruning",
    [Pruning(temperature=2.0), Pruning(counts=torch.tensor([8, 6, 4]))],
    ids=["threshold", "schedule"],
)
@pytest.mark.parametrize("sample", [0, 1, 2], ids=["full", "padded", "one token"])
def test_padding_of_text_and_image_changes_nothing(text, pruning, sample):
    branch, hidden, mask, images, shown = text
    both = _encode(branch, hidden, mask, blocks.Context(images, shown), pruning)
    length, seen = int(mask[sample].sum()), int(shown[sample].sum())
    context = blocks.Context(images[[sample], :seen], None)
    alone = _encode(branch, hidden[[sample], :length], None, context, pruning)
    left = alone.hidden[0] if alone.mask is None else alone.hidden[0][alone.mask[0]]
    assert [int(cut.kept[0]) for cut in alone.cuts] == [int(c.kept[sample]) for c in both.cuts]
    torch.testing.assert_close(both.hidden[sample][both.mask[sample]], left, rtol=1e-4, atol=1e-5)


def test_a_threshold_prunes_the_longest_text_here(text):
    branch, hidden, mask, images, shown = text
    context = blocks.Context(images, shown)
    made = _encode(branch, hidden, mask, context, Pruning(temperature=2.0))
    assert made.hidden.shape[1] < hidden.shape[1]
    assert made.cuts[0].available.tolist() == [13, 8, 0]
