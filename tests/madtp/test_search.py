"""Counting multiply-adds, finding a temperature, calibrating a schedule, exporting it."""

from __future__ import annotations

import pytest
import torch
from tests.madtp import small
from tests.oracles.onnx_form import both_ways
from torch import nn

from secateur.errors import BadInputError
from secateur.models.madtp.budget import Scheduled
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.cut import Evidence, Tokens, countable, cut
from secateur.models.madtp.encoder import Pruning
from secateur.models.madtp.macs import macs, macs_per_sample
from secateur.models.madtp.search import Target, calibrated_counts, search_temperature
from secateur.models.madtp.towers import blip_image


@pytest.fixture(scope="module")
def vision():
    from transformers import BlipVisionModel

    torch.manual_seed(0)
    return small.perturbed(BlipVisionModel(small.blip_config().vision_config)), Concepts(8, 32)


@torch.no_grad()
def _encode(vision, pruning, pixels):
    net, concepts = vision
    return blip_image(net, concepts.weight, pixels, pruning)


def test_multiply_adds_are_those_of_the_products():
    net = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3))
    made = macs(lambda inputs: net(inputs["x"]), {"x": torch.zeros(2, 4, 5)})
    assert made == 8 * (5 * 7 + 7 * 3)


def test_a_vision_encoder_costs_what_its_shapes_say(vision):
    pixels = small.inputs()["pixel_values"]
    made = macs_per_sample(lambda i: _encode(vision, Pruning(), i["x"]), {"x": pixels})
    n, d, inner = 17, 32, 64
    layer = n * d * 4 * d + 2 * n * n * d + 2 * n * d * inner
    assert made == (16 * d * 3 * 64 + 2 * layer,) * 3


def test_a_found_temperature_meets_the_target(vision):
    pixels = small.inputs()["pixel_values"]

    def macs_at(temperature):
        run = macs_per_sample(
            lambda i: _encode(vision, Pruning(temperature), i["x"]), {"x": pixels}
        )
        return sum(run) / len(run)

    low, high = macs_at(1e3), macs_at(1e-3)
    seen = []
    target = Target((low + high) / 2, tolerance=0.05)
    found = search_temperature(macs_at, target, lambda *trial: seen.append(trial))
    assert abs(found.macs - target.macs) <= 0.05 * target.macs
    assert (found.temperature, found.macs) in seen


def test_a_target_out_of_reach_is_refused_with_the_reachable_range():
    with pytest.raises(BadInputError, match="30 to 100"):
        search_temperature(lambda t: 30 if t > 1 else 100, Target(10))


def test_a_schedule_from_the_widest_sample_keeps_as_many(vision):
    pixels = small.inputs()["pixel_values"]
    adaptive = _encode(vision, Pruning(2.0), pixels)
    counts = calibrated_counts([adaptive.cuts])
    assert counts.tolist() == [int(made.kept.max()) for made in adaptive.cuts]
    scheduled = _encode(vision, Pruning(counts=counts), pixels)
    assert scheduled.mask is None
    assert scheduled.cuts[0].kept.tolist() == [counts[0]] * 3


@pytest.mark.parametrize("quantile", [-0.1, 1.1])
def test_a_quantile_outside_its_range_is_refused(vision, quantile):
    made = _encode(vision, Pruning(2.0), small.inputs()["pixel_values"])
    with pytest.raises(BadInputError, match="quantile"):
        calibrated_counts([made.cuts], quantile)


def test_a_schedule_without_data_is_refused():
    with pytest.raises(BadInputError, match="0 batches"):
        calibrated_counts([])


def _scheduled(hidden, importance, count):
    tokens = Tokens(hidden)
    evidence = Evidence(importance[:, :, None], importance, countable(tokens, coupled=False))
    made = cut(tokens, evidence, Scheduled(count), coupled=False, order="importance")
    return {"hidden": made.tokens.hidden, "index": made.index, "kept": made.kept}


@pytest.mark.parametrize("count", [3, 9, 11, 40])
def test_the_count_of_a_schedule_is_an_input_of_the_graph(count):
    seeded = torch.Generator().manual_seed(0)
    inputs = {
        "hidden": torch.randn(2, 12, 6, generator=seeded),
        "importance": torch.rand(2, 12, generator=seeded),
        "count": torch.tensor([count]),
    }
    axes = {"hidden": ("batch", "tokens", ""), "importance": ("batch", "tokens")}
    torch_made, graph_made = both_ways(_scheduled, inputs, axes)
    length = 12 if count > 9 else 1 + count + 1
    for made in (torch_made, graph_made):
        assert made["hidden"].shape == (2, length, 6)
    for name, value in torch_made.items():
        torch.testing.assert_close(torch.as_tensor(graph_made[name]), torch.as_tensor(value))
