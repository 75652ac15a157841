"""Multiply-adds from counts are those that a run of the sample by itself has."""

from __future__ import annotations

import pytest
import torch
from tests.madtp import small

from secateur.models.madtp.macs import macs
from secateur.models.madtp.tasks import Compression
from secateur.models.madtp.work import nlvr_macs


@torch.no_grad()
@pytest.mark.parametrize("rule", ["madtp", "attention", "class"])
@pytest.mark.parametrize("strength", [0.0, 0.8, 3.0])
def test_counts_give_the_multiply_adds_of_a_run(rule, strength):
    net, inputs = small.nlvr(), small.nlvr_inputs()
    compression = Compression.at(strength, by=rule)
    made = nlvr_macs(net, inputs, compression, rows=2)
    for b in range(3):
        length = int(inputs["attention_mask"][b].sum())
        alone = {name: value[b : b + 1] for name, value in inputs.items()}
        alone |= {n: alone[n][:, :length] for n in ("input_ids", "attention_mask")}
        assert made[b] == macs(lambda given: net(**given, compression=compression), alone)
