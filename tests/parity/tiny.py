"""Tiny transformers, and the same networks as plain loops that really gather tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.export.torch_export import from_torch

Array = NDArray[np.float64]
D, H, FFN = 16, 4, 24


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (H, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)) / (D // H) ** 0.5 + mask
            out = F.dropout(scores.softmax(dim=-1), 0.1, self.training) @ v
        return self.o(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.attention = Attention(fused)
        self.up, self.down = nn.Linear(D, FFN), nn.Linear(FFN, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class TinyBert(nn.Module):
    """Post-norm encoder with padding and masked mean pooling; also returns the hidden states."""

    def __init__(self, layers: int = 4, fused: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(40, D), nn.Embedding(32, D)
        self.layers = nn.ModuleList(Layer(fused) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        keep = attention_mask[:, None, None, :].to(x.dtype)
        mask = (1 - keep) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        weight = attention_mask[:, :, None].to(x.dtype)
        return {"pooled": (x * weight).sum(1) / weight.sum(1), "hidden": x}


class TinyVit(nn.Module):
    """Class token, nn.TransformerEncoderLayer blocks, class head and mean of the patches."""

    def __init__(self, layers: int = 3, patches: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(5, D)
        self.cls = nn.Parameter(torch.randn(1, 1, D))
        self.position = nn.Parameter(torch.randn(1, patches + 1, D))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(D, H, FFN, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(D, 7)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(patches)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0]), x[:, 1:].mean(dim=1)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build with a seed; no parameter stays zero or one."""
    torch.manual_seed(seed)
    net = build().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


BATCH = {
    "input_ids": np.arange(36).reshape(3, 12),
    "attention_mask": (np.arange(12) < np.array([[12], [7], [3]])).astype(np.int64),
}
"""Three sentences of different length."""


@cache
def bert(layers: int = 3, *, fused: bool = True) -> nn.Module:
    return seeded(lambda: TinyBert(layers, fused))


@cache
def exported(layers: int = 3, *, fused: bool = True, opset: int = 20) -> ir.Model:
    """The ONNX graph of ``bert``, made once per process; treat it as read-only."""
    return export(bert(layers, fused=fused), BATCH, opset)


def export(net: nn.Module, batch: Mapping[str, NDArray], opset: int = 20) -> ir.Model:
    inputs = {name: torch.from_numpy(x) for name, x in batch.items()}
    axes = {0: "batch", 1: "tokens"} if "input_ids" in batch else {0: "batch"}
    return from_torch(net, inputs, dict.fromkeys(inputs, axes), opset=opset)


def weights(net: nn.Module) -> dict[str, Array]:
    return {k: v.double().numpy() for k, v in net.state_dict().items()}


@dataclass(frozen=True)
class Block:
    """Names of one block's weights in a flat dictionary of arrays."""

    w: Mapping[str, Array]
    names: Mapping[str, str]

    def linear(self, role: str, x: Array) -> Array:
        return x @ self.w[f"{self.names[role]}.weight"].T + self.w[f"{self.names[role]}.bias"]

    def norm(self, role: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{self.names[role]}.weight"] + self.w[f"{self.names[role]}.bias"]


def attend(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """One sample, one token and one head at a time: (N, D) in, (N, D) and (H, N, N) out."""
    n, width = q.shape[0], D // H
    out, rows = np.zeros((n, D)), np.zeros((H, n, n))
    for h in range(H):
        part = slice(h * width, (h + 1) * width)
        for i in range(n):
            logits = np.array([q[i, part] @ k[j, part] for j in range(n)]) / np.sqrt(width)
            p = np.exp(logits - logits.max())
            rows[h, i] = p / p.sum()
            out[i, part] = rows[h, i] @ v[:, part]
    return out, rows


def budget(n_valid: int, permille: int, protected: int = 1) -> int:
    return min(max(-(-n_valid * permille // 1000), protected), n_valid)


def choose(score: Array, count: int, protected: int = 1) -> NDArray[np.int64]:
    """Ascending positions of the best ``count``, protected ones first."""
    ranked = sorted(range(len(score)), key=lambda i: (i >= protected, -score[i], i))
    return np.array(sorted(ranked[:count]), dtype=np.int64)


def gelu(x: Array) -> Array:
    return F.gelu(torch.from_numpy(x)).numpy()


@dataclass(frozen=True)
class Drop:
    """Drop tokens after layer ``layer``: ``score(rows, k, v, hidden) -> (n,)``."""

    layer: int
    permille: int
    score: Callable[[Array, Array, Array, Array], Array]
    bias: Array | None = None


@dataclass
class Loop:
    """One sample: the alive tokens' rows, their original positions, and each site's result."""

    hidden: Array
    positions: NDArray[np.int64]
    scores: list[Array]
    kept: list[NDArray[np.int64]]
    would_be: list[NDArray[np.int64]]

    def drop(self, drop: Drop, rows: Array, k: Array, v: Array) -> None:
        score = drop.score(rows, k, v, self.hidden)
        count = budget(len(score), drop.permille)
        self.scores.append(score)
        self.would_be.append(choose(score, count))
        chosen = choose(score + (0 if drop.bias is None else drop.bias[: len(score)]), count)
        self.hidden, self.positions = self.hidden[chosen], self.positions[chosen]
        self.kept.append(self.positions)


def loop_bert(
    net: nn.Module, ids: NDArray[np.int64], drops: tuple[Drop, ...]
) -> tuple[Array, Loop]:
    """One unpadded sentence through TinyBert, gathering tokens for good."""
    w = weights(net)
    x = w["tokens.weight"][ids] + w["positions.weight"][: len(ids)]
    state = Loop(x, np.arange(len(ids)), [], [], [])
    for i in range(len(net.layers)):
        names = {n: f"layers.{i}.{n}" for n in ("up", "down", "norm1", "norm2")}
        names |= {n: f"layers.{i}.attention.{n}" for n in "qkvo"}
        block = Block(w, names)
        x = state.hidden
        k, v = block.linear("k", x), block.linear("v", x)
        out, rows = attend(block.linear("q", x), k, v)
        x = block.norm("norm1", x + block.linear("o", out))
        state.hidden = block.norm("norm2", x + block.linear("down", gelu(block.linear("up", x))))
        for drop in drops:
            if drop.layer == i:
                state.drop(drop, rows, k, v)
    return state.hidden.mean(axis=0), state


def loop_vit(net: nn.Module, patches: Array, drops: tuple[Drop, ...]) -> tuple[Array, Array, Loop]:
    """One image through TinyVit, gathering tokens for good."""
    w = weights(net)
    x = patches @ w["embed.weight"].T + w["embed.bias"]
    rows = np.concatenate([w["cls"][0], x]) + w["position"][0]
    state = Loop(rows, np.arange(len(x) + 1), [], [], [])
    for i in range(len(net.blocks)):
        names = {"o": "self_attn.out_proj", "up": "linear1", "down": "linear2"}
        names |= {"norm1": "norm1", "norm2": "norm2"}
        block = Block(w, {role: f"blocks.{i}.{name}" for role, name in names.items()})
        x = state.hidden
        joined = block.norm("norm1", x) @ w[f"blocks.{i}.self_attn.in_proj_weight"].T
        q, k, v = np.split(joined + w[f"blocks.{i}.self_attn.in_proj_bias"], 3, axis=1)
        out, rows = attend(q, k, v)
        x = x + block.linear("o", out)
        up = np.maximum(block.linear("up", block.norm("norm2", x)), 0)
        state.hidden = x + block.linear("down", up)
        for drop in drops:
            if drop.layer == i:
                state.drop(drop, rows, k, v)
    logits = state.hidden[0] @ w["head.weight"].T + w["head.bias"]
    return logits, state.hidden[1:].mean(axis=0), state


def class_row(rows: Array, _k: Array, _v: Array, _hidden: Array) -> Array:
    return rows[:, 0].mean(axis=0)


def column_mean(rows: Array, _k: Array, _v: Array, _hidden: Array) -> Array:
    return rows.mean(axis=(0, 1))


def key_norm(_rows: Array, k: Array, _v: Array, _hidden: Array) -> Array:
    """Mean over heads of each key's length."""
    return np.linalg.norm(k.reshape(len(k), H, -1), axis=-1).mean(axis=1)


def hidden_norm(_rows: Array, _k: Array, _v: Array, hidden: Array) -> Array:
    return np.linalg.norm(hidden, axis=-1)
