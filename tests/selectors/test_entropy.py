"""A signal that a model computes of its pixels: the entropy of each patch."""

from __future__ import annotations

import pytest
import torch
from tests.selectors.targets import PATCHES, PIXELS, Vit, pictures, seeded
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.models import reference
from secateur.models.reference import TokenSite
from secateur.models.selectors.vflowopt import patch_entropy
from secateur.workflow.selecting import Select, select_tokens

OPTIONS = {"threshold": 1.5, "base": 3, "columns": 9, "cell": 2.5, "entropy_weight": 5.0}


class WithEntropy(nn.Module):
    """Scores of classes, and the entropy of patches behind a 0 for the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = seeded(Vit)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        made = patch_entropy(pixel_values.sigmoid(), patch=PIXELS)
        return {"logits": self.vit(pixel_values), "entropy": nn.functional.pad(made, (1, 0))}


def select(net: nn.Module, pixels: Tensor, value: str) -> tuple[dict, str]:
    dense = from_torch(net, {"pixel_values": pixels}, {"pixel_values": {0: "batch"}})
    wanted = Select(
        "vit.blocks.2",
        "vflowopt_entropy",
        0.5,
        budget="constant",
        options=OPTIONS,
        signals={"patch_entropy": value} if value else {},
    )
    return run(select_tokens(dense, [wanted]), {"pixel_values": pixels.numpy()}), wanted.site


@pytest.mark.sweep
def test_a_graph_takes_the_entropy_of_patches_from_its_own_pixels() -> None:
    net, pixels = WithEntropy().eval(), pictures(6 * PIXELS)
    pixels[:, :, : 3 * PIXELS] = 0.3  # an even half
    got, site = select(net, pixels, "entropy")
    with torch.no_grad():
        entropy = net(pixels)["entropy"]
    there = TokenSite(
        site,
        "vflowopt_entropy",
        amount=500,
        protected=1,
        options=OPTIONS,
        given={"patch_entropy": entropy},
    )
    want = reference.run(net, {"pixel_values": pixels}, (there,)).sites[site].kept
    for b in range(3):
        row = got[f"{site}.kept"][b]
        assert row[row >= 0].tolist() == want[b][want[b] >= 0].tolist()
        later = [place for place in row.tolist() if place > PATCHES // 2]
        assert len(later) > 0.7 * (row >= 0).sum()  # uneven patches are preferred


def test_a_site_that_cannot_give_it_says_which_signal_is_missing() -> None:
    with pytest.raises(BadInputError, match="'patch_entropy'"):
        select(WithEntropy().eval(), pictures(6 * PIXELS), "")
