"""A small CLIP vision tower that MADTP prunes, end to end."""

from __future__ import annotations

import numpy as np
from tests.oracles import madtp_nets

from secateur.models.madtp import blocks
from secateur.models.madtp.encoder import Branch, Pruning, Start, encode
from secateur.models.madtp.published_names import CLIP_VISION

IS_LONG = True  # its exports


def check(case) -> None:
    arrays = madtp_nets.tensors(case)
    net, queries = madtp_nets.clip(case, CLIP_VISION, "vision")
    tower = net.vision_model
    branch = Branch(tower.encoder.layers, blocks.CLIP_VISION, arrays["space_dict"], queries)
    temperature = float(arrays["temperature"])

    def run(image, *, aligned):
        start = Start(tower.pre_layrnorm(tower.embeddings(image)), floor=1)
        made = encode(branch, start, Pruning(temperature, coupled=True), aligned=aligned)
        out = net.visual_projection(tower.post_layernorm(made.hidden[:, :1]))
        return madtp_nets.results(made, out)

    inputs, axes = {"image": arrays["image"]}, {"image": ("batch",)}
    for result in madtp_nets.ways(case, run, inputs, axes):
        result["out"] = np.squeeze(result["out"], 1)
        madtp_nets.compare(case, result, ordered=True)
