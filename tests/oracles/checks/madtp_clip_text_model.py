"""A small CLIP text transformer that MADTP prunes, end to end.

Under its causal mask the result depends on the order of the kept tokens, which in the published
code is that of an unsorted top-k on the CPU. PyTorch can be asked for the same; a graph cannot,
so the graph is held to PyTorch with the
kept tokens in their own order.
"""

from __future__ import annotations

import numpy as np
from tests.oracles import madtp_nets

from secateur.models.madtp import blocks
from secateur.models.madtp.encoder import Branch, Pruning, Start, encode
from secateur.models.madtp.published_names import CLIP_TEXT


def check(case) -> None:
    arrays = madtp_nets.tensors(case)
    net, queries = madtp_nets.clip(case, CLIP_TEXT, "text")
    inputs = {"x": arrays["x"].transpose(0, 1).contiguous()}

    def run(order):
        branch = Branch(net.layers, blocks.CLIP_TEXT, arrays["space_dict"], queries, order=order)

        def forward(x, *, aligned):
            start = Start(x, floor=int(arrays["max_keep"]))
            pruning = Pruning(float(arrays["temperature"]), coupled=True)
            made = encode(branch, start, pruning, aligned=aligned)
            return madtp_nets.results(made, made.hidden)

        return forward

    (published,) = madtp_nets.in_torch(run("published"), inputs, aligned=True)
    published["out"] = published["out"].swapaxes(0, 1)
    madtp_nets.compare(case, published, ordered=True)
    first, *others = madtp_nets.ways(case, run("position"), inputs, {"x": ("batch", "tokens")})
    for result in others:
        for name, value in result.items():
            np.testing.assert_allclose(value, first[name], rtol=1e-4, atol=1e-4)


IS_LONG = True  # its exports
