"""A small BLIP vision transformer that MADTP prunes, end to end."""

from __future__ import annotations

import numpy as np
from tests.oracles import madtp_nets

from secateur.models.madtp import blocks
from secateur.models.madtp.encoder import Branch, Pruning, Start, encode

IS_LONG = True  # its exports


def check(case) -> None:
    arrays, net = madtp_nets.tensors(case), madtp_nets.vision(case)
    branch = Branch(net.encoder.layers, blocks.BLIP_VISION, arrays["space_dict"])
    temperature = float(arrays["temperature"])

    def run(image, *, aligned):
        pruning = Pruning(temperature, coupled=True)
        made = encode(branch, Start(net.embeddings(image)), pruning, aligned=aligned)
        return madtp_nets.results(made, net.post_layernorm(made.hidden))

    inputs, axes = {"image": arrays["image"]}, {"image": ("batch",)}
    for result in madtp_nets.ways(case, run, inputs, axes):
        if not temperature:  # nothing is pruned, and no length reported
            result["lengths"] = np.full(len(branch.layers), result["out"].shape[1])
        madtp_nets.compare(case, result)
