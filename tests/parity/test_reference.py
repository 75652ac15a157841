"""The masked PyTorch run equals loops that really gather the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.parity import tiny
from torch import Tensor, nn

from secateur.errors import BadInputError, PreconditionError
from secateur.models.reference import Removed, TokenSite, neutralised, run
from secateur.models.select_tokens import select_tokens_with

IDS = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([20, 13, 6])
MASK = (torch.arange(20) < LENGTHS[:, None]).long()


@dataclass(frozen=True)
class By:
    """A selector made of one signal."""

    signal: str
    reduce: Callable[[Tensor], Tensor]

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def score(self, **signals: Tensor) -> Tensor:
        return self.reduce(signals[self.signal])


SELECTORS = {
    "class_row": (By("class_row", lambda x: x), tiny.class_row),
    "column_mean": (By("column_mean", lambda x: x), tiny.column_mean),
    "key_norm": (By("keys", lambda x: x.norm(dim=-1).mean(dim=1)), tiny.key_norm),
    "hidden_norm": (By("hidden", lambda x: x.norm(dim=-1)), tiny.hidden_norm),
}


def check_site(got, drop_index, state, sample) -> None:
    """One sample's record of one site against the loop's."""
    kept = got.kept[sample]
    assert kept[kept >= 0].tolist() == state.kept[drop_index].tolist()
    eligible = got.eligible[sample].numpy()
    np.testing.assert_allclose(
        got.score[sample].numpy()[eligible], state.scores[drop_index], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("fused", [True, False], ids=["sdpa", "softmax"])
def test_two_sites_on_padded_sentences_equal_a_gathering_loop(name: str, fused: bool) -> None:
    selector, loop_score = SELECTORS[name]
    net = tiny.seeded(lambda: tiny.TinyBert(fused=fused))
    sites = [
        TokenSite("layers.0", selector, amount=700),
        TokenSite("layers.2", selector, amount=500),
    ]
    got = run(net, {"input_ids": IDS, "attention_mask": MASK}, sites)
    drops = (tiny.Drop(0, 700, loop_score), tiny.Drop(2, 500, loop_score))
    for sample, length in enumerate(LENGTHS.tolist()):
        pooled, state = tiny.loop_bert(net, IDS[sample, :length].numpy(), drops)
        for i, site in enumerate(got.sites.values()):
            check_site(site, i, state, sample)
        rows = got.outputs["hidden"][sample, state.positions].numpy()
        np.testing.assert_allclose(rows, state.hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.outputs["pooled"][sample], pooled, rtol=1e-4, atol=1e-5)


def test_class_token_and_mean_of_patches_equal_a_gathering_loop() -> None:
    net = tiny.seeded(tiny.TinyVit)
    patches = torch.randn(2, 12, 5)
    selector, loop_score = SELECTORS["class_row"]
    got = run(net, {"patches": patches}, [TokenSite("blocks.0", selector, amount=600)])
    for sample in range(2):
        logits, mean, state = tiny.loop_vit(
            net, patches[sample].double().numpy(), (tiny.Drop(0, 600, loop_score),)
        )
        check_site(got.sites["blocks.0"], 0, state, sample)
        np.testing.assert_allclose(got.outputs["output"][sample], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.outputs["output_1"][sample], mean, rtol=1e-4, atol=1e-5)


def test_without_sites_the_module_is_untouched() -> None:
    net = tiny.seeded(tiny.TinyBert)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        want = net(**inputs)["pooled"]
    torch.testing.assert_close(run(net, inputs).outputs["pooled"], want, rtol=1e-5, atol=1e-6)


def test_a_sample_in_a_batch_equals_the_sample_alone() -> None:
    net = tiny.seeded(tiny.TinyBert)
    site = TokenSite("layers.1", SELECTORS["class_row"][0], amount=500)
    batch = run(net, {"input_ids": IDS, "attention_mask": MASK}, [site])
    for i, n in enumerate(LENGTHS.tolist()):
        alone = run(
            net, {"input_ids": IDS[i : i + 1, :n], "attention_mask": MASK[i : i + 1, :n]}, [site]
        )
        torch.testing.assert_close(
            batch.outputs["pooled"][i], alone.outputs["pooled"][0], rtol=1e-5, atol=1e-6
        )
        assert batch.sites["layers.1"].count[i] == alone.sites["layers.1"].count[0]


@pytest.mark.parametrize(
    ("kind", "amount", "counts"),
    [("permille", 1, [1, 1, 1]), ("permille", 501, [11, 7, 4]), ("count", 9, [9, 9, 6])],
)
def test_counts_follow_the_valid_tokens(kind: str, amount: int, counts: list[int]) -> None:
    net = tiny.seeded(tiny.TinyBert)
    site = TokenSite("layers.0", SELECTORS["class_row"][0], kind, amount)  # type: ignore[arg-type]
    got = run(net, {"input_ids": IDS, "attention_mask": MASK}, [site]).sites["layers.0"]
    assert got.count.tolist() == counts
    assert got.kept.shape == (3, max(counts))
    assert (got.kept >= 0).sum(dim=1).tolist() == counts


def test_per_sample_counts_are_taken_from_a_tensor() -> None:
    net = tiny.seeded(tiny.TinyBert)
    site = TokenSite("layers.0", SELECTORS["class_row"][0], "count", torch.tensor([5, 2, 4]))
    got = run(net, {"input_ids": IDS, "attention_mask": MASK}, [site]).sites["layers.0"]
    assert got.count.tolist() == [5, 2, 4]


def test_forced_positions_replace_the_choice_and_leave_the_score() -> None:
    net = tiny.seeded(tiny.TinyBert)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    site = TokenSite("layers.0", SELECTORS["class_row"][0], "count", 3)
    forced = torch.tensor([[0, 7, 9], [0, 1, 2], [0, 4, -1]])
    free = run(net, inputs, [site])
    got = run(net, inputs, [site], forced={"layers.0": forced})
    assert got.sites["layers.0"].kept.tolist() == forced.tolist()
    assert torch.equal(got.sites["layers.0"].score, free.sites["layers.0"].score)
    assert not torch.allclose(got.outputs["pooled"], free.outputs["pooled"])


def test_margin_is_the_gap_between_kept_and_dropped() -> None:
    net = tiny.seeded(tiny.TinyBert)
    site = TokenSite("layers.0", SELECTORS["class_row"][0], "count", 4)
    got = run(net, {"input_ids": IDS, "attention_mask": MASK}, [site]).sites["layers.0"]
    ranked = got.score[0, 1:].sort(descending=True).values
    torch.testing.assert_close(got.margin[0], ranked[2] - ranked[3])


@pytest.mark.parametrize(
    ("parameter", "units", "width"),
    [("layers.1.attention.o.weight", 4, 4), ("layers.1.down.weight", tiny.FFN, 1)],
)
def test_removed_units_are_zero_at_their_consumer(parameter: str, units: int, width: int) -> None:
    net = tiny.seeded(tiny.TinyBert)
    cut = neutralised(net, [Removed(parameter, kept=(0, 2), units=units)])
    weight = cut.get_parameter(parameter)
    kept = [u * width + j for u in (0, 2) for j in range(width)]
    gone = [c for c in range(units * width) if c not in kept]
    assert torch.equal(weight[:, kept], net.get_parameter(parameter)[:, kept])
    assert not weight[:, gone].any()


def test_unknown_site_lists_the_modules() -> None:
    net = tiny.seeded(tiny.TinyBert)
    with pytest.raises(BadInputError, match=r"layers\.7(.|\n)*layers\.3"):
        run(net, {"input_ids": IDS, "attention_mask": MASK}, [TokenSite("layers.7", "x")])


def test_site_without_attention_is_refused() -> None:
    net = tiny.seeded(tiny.TinyBert)
    with pytest.raises(BadInputError, match="no self-attention"):
        run(
            net,
            {"input_ids": IDS, "attention_mask": MASK},
            [TokenSite("layers.0.up", SELECTORS["class_row"][0])],
        )


def test_nan_scores_are_refused() -> None:
    net = tiny.seeded(tiny.TinyBert)
    nan = By("hidden", lambda x: x[..., 0] * torch.nan)
    with pytest.raises(BadInputError, match="NaN"):
        run(net, {"input_ids": IDS, "attention_mask": MASK}, [TokenSite("layers.0", nan)])


def test_training_mode_is_refused() -> None:
    with pytest.raises(BadInputError, match="evaluation mode"):
        run(tiny.TinyBert(), {"input_ids": IDS, "attention_mask": MASK})


class PooledByConvolution(tiny.TinyBert):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = super().forward(input_ids, attention_mask)["hidden"]
        return torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 1)


def test_pooling_that_cannot_be_masked_is_refused() -> None:
    net = tiny.seeded(PooledByConvolution)
    site = TokenSite("layers.0", SELECTORS["class_row"][0], amount=500)
    with pytest.raises(PreconditionError, match="adaptive_avg_pool1d"):
        run(net, {"input_ids": IDS, "attention_mask": MASK}, [site])


class SelectingBert(tiny.TinyBert):
    """Calls the selector in its own forward, with padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        valid = attention_mask.bool()
        for i, layer in enumerate(self.layers):
            mask = (1 - valid[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
            attention, rows = layer.attention, x
            q, k = (
                f(rows).unflatten(-1, (tiny.H, -1)).transpose(1, 2)
                for f in (attention.q, attention.k)
            )
            x = layer(x, mask)
            if i in {0, 2}:
                signals = {"q": q, "k": k, "valid": valid}
                x, valid = select_tokens_with(
                    x, signals, by="class_row", site=f"layers.{i}", keep=0.6
                )
        weight = valid[:, :, None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


def test_a_module_that_selects_by_itself_equals_its_masked_run() -> None:
    net = tiny.seeded(SelectingBert)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        gathered = net(**inputs)
    got = run(net, inputs)
    torch.testing.assert_close(got.outputs["output"], gathered, rtol=1e-4, atol=1e-5)
    assert [site.count.tolist() for site in got.sites.values()] == [[12, 8, 4], [8, 5, 3]]


def test_a_named_site_overrides_the_budget_of_a_module_that_selects_by_itself() -> None:
    net = tiny.seeded(SelectingBert)
    sites = [TokenSite("layers.0", "class_row", amount=300)]
    got = run(net, {"input_ids": IDS, "attention_mask": MASK}, sites)
    assert got.sites["layers.0"].count.tolist() == [6, 4, 2]


class WithWeights(nn.Module):
    """nn.MultiheadAttention that is asked for its probabilities, and a causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(tiny.D, tiny.H, batch_first=True)
        self.second = tiny.Attention(fused=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x, x, x, need_weights=True)[0]
        q, k, v = (f(x)[:, None] for f in (self.second.q, self.second.k, self.second.v))
        return x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


def test_heads_folded_into_the_batch_and_causal_masks_are_seen() -> None:
    net = tiny.seeded(WithWeights)
    x = torch.randn(2, 9, tiny.D)
    kept = torch.tensor([[0, 2, 3, 7], [0, 1, 4, 8]])
    site = TokenSite("first", SELECTORS["column_mean"][0])
    got = run(net, {"x": x}, [site], forced={"first": kept})
    with torch.no_grad():
        after = x + net.first(x, x, x)[0]
        rows = after.gather(1, kept[:, :, None].expand(-1, -1, tiny.D))
        q, k, v = (f(rows)[:, None] for f in (net.second.q, net.second.k, net.second.v))
        want = rows + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
    out = got.outputs["output"].gather(1, kept[:, :, None].expand(-1, -1, tiny.D))
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    assert not bool(got.outputs["output"].isnan().any())
