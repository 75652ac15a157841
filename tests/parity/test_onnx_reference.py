"""The masked ONNX graph and the masked torch module are two answers to one question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.parity import tiny

from secateur.errors import BadInputError, PreconditionError
from secateur.models.reference import TokenSite
from secateur.workflow.golden import Golden, golden_from_torch
from secateur.workflow.onnx_reference import golden_from_onnx


def assert_equal(got: Golden, want: Golden) -> None:
    for name, site in want.sites.items():
        np.testing.assert_array_equal(got.sites[name].kept, site.kept)
        finite = np.isfinite(site.score)
        np.testing.assert_allclose(
            got.sites[name].score[finite], site.score[finite], rtol=1e-4, atol=1e-6
        )
    kept = want.kept()
    rows = np.nonzero(kept >= 0)[0], kept[kept >= 0]
    for a, b in zip(got.outputs.values(), want.outputs.values(), strict=True):
        compared = (a[rows], b[rows]) if a.ndim == 3 else (a, b)
        np.testing.assert_allclose(*compared, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("selector", "opset"),
    [
        ("class_row", 20),
        ("column_mean", 20),
        ("key_norm", 20),
        ("value_norm", 20),
        ("hidden_norm", 20),
        ("class_row", 23),
        ("value_norm", 23),
    ],
)
def test_two_sites_equal_the_torch_reference(selector: str, opset: int) -> None:
    sites = [
        TokenSite("layers.0", selector, amount=700),
        TokenSite("layers.1", selector, "count", 4),
    ]
    got = golden_from_onnx(tiny.exported(opset=opset), tiny.BATCH, sites)
    assert_equal(got, golden_from_torch(tiny.bert(), tiny.BATCH, sites))


class MeanOfAll(tiny.TinyVit):
    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = self.embed(patches)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=1)


def test_a_mean_over_all_tokens_is_weighted() -> None:
    net = tiny.seeded(MeanOfAll)
    batch = {"patches": np.random.default_rng(0).standard_normal((2, 12, 5)).astype(np.float32)}
    sites = [TokenSite("blocks.0", "class_row", amount=500)]
    got = golden_from_onnx(tiny.export(net, batch), batch, sites)
    assert_equal(got, golden_from_torch(net, batch, sites))


class MaxPooled(tiny.TinyBert):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids, attention_mask)["hidden"].amax(dim=1)


def test_pooling_that_is_not_masked_here_is_refused() -> None:
    model = tiny.export(tiny.seeded(lambda: MaxPooled(layers=2)), tiny.BATCH)
    with pytest.raises(PreconditionError, match="ReduceMax"):
        golden_from_onnx(model, tiny.BATCH, [TokenSite("layers.0", "class_row")])


@pytest.mark.parametrize(
    ("names", "message"), [(["layers.9"], r"layers\.9"), (["layers.1", "layers.0"], "order")]
)
def test_sites_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    sites = [TokenSite(name, "class_row") for name in names]
    with pytest.raises(BadInputError, match=message):
        golden_from_onnx(tiny.exported(), tiny.BATCH, sites)
