"""BERT, RoBERTa, DistilBERT, MiniLM: text encoders, and sentence embeddings made from them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.families.core import (
    FAMILIES,
    Adopter,
    Arrays,
    Config,
    FamilyModel,
    Tokenizer,
)
from secateur.models.families.hugging_face import load_model, load_tokenizer, read_json

INPUTS = ("input_ids", "attention_mask")
DYNAMIC = {name: {0: "batch", 1: "tokens"} for name in INPUTS}

_BASE_CLASSES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
}


class TextEncoder(Adopter):
    """A transformers encoder that takes ids and a padding mask.

    The mask is handed on as (B, 1, 1, N): made inside transformers it becomes an indexing by
    arange over batch and tokens. Token types are all 0, as one row for the whole batch.
    """

    def __init__(self, model: nn.Module, *, has_token_types: bool) -> None:
        super().__init__(model)
        self._has_token_types = has_token_types

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(B, N) ids and mask to the outputs of the model by name."""
        return self._run(input_ids, attention_mask)

    def _run(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        options = {}
        if self._has_token_types:
            options["token_type_ids"] = torch.zeros((1, 1), dtype=torch.int64)
        visible = attention_mask.to(torch.bool)[:, None, None]
        outputs = self._adopted(input_ids=input_ids, attention_mask=visible, **options)
        return dict(outputs.items())


class SentenceEncoder(TextEncoder):
    """A text encoder whose token outputs become one embedding per sentence."""

    def __init__(
        self, model: nn.Module, *, has_token_types: bool, pooling: str, normalise: bool
    ) -> None:
        super().__init__(model, has_token_types=has_token_types)
        self._pooling = pooling
        self._normalise = normalise

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(B, N) ids and mask to ``sentence_embedding`` (B, D)."""
        hidden = self._run(input_ids, attention_mask)["last_hidden_state"]
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = attention_mask[:, :, None].to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        if self._normalise:
            pooled = F.normalize(pooled, dim=1)
        return {"sentence_embedding": pooled}


@FAMILIES.register(*_BASE_CLASSES)
def load(folder: Path, config: Config, part: str) -> FamilyModel:
    """Load an encoder; a folder of sentence-transformers gives sentence embeddings.

    Raises:
        BadInputError: see ``hugging_face.load_model``; also for a sentence-transformers
            pipeline with a step other than mean or class pooling and normalisation.
    """
    if part:
        raise BadInputError("this model has no parts", where=str(folder), got=part)
    model_type = str(config["model_type"])
    has_token_types = model_type != "distilbert"
    sentence = (folder / "modules.json").is_file()
    base = _BASE_CLASSES[model_type]
    names = config.get("architectures")
    class_name = str(names[0]) if isinstance(names, list) and names and not sentence else base
    headless = class_name == base and has_token_types
    model = load_model(folder, class_name, **({"add_pooling_layer": False} if headless else {}))
    net: nn.Module
    if sentence:
        pooling, normalise = _pipeline(folder)
        net = SentenceEncoder(
            model, has_token_types=has_token_types, pooling=pooling, normalise=normalise
        )
    else:
        net = TextEncoder(model, has_token_types=has_token_types)
    tokenizer = load_tokenizer(folder)
    limit = _longest(folder, config)
    prepare = functools.partial(tokenise, tokenizer, limit)
    return FamilyModel(net.eval(), example_inputs(config), DYNAMIC, prepare, tokenizer)


def example_inputs(config: Config) -> dict[str, Tensor]:
    """Two rows of 16 ids, the second padded from 11 on."""
    n_words = int(str(config["vocab_size"]))
    ids = torch.randint(3, n_words, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    padding = config.get("pad_token_id")
    ids[1, 11:] = int(str(padding)) if padding is not None else 0
    mask[1, 11:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tokenise(tokenizer: Tokenizer, limit: int, texts: list[object]) -> Arrays:
    """Turn texts into int64 ids and masks, padded to the longest of them."""
    encoded = tokenizer(
        [str(text) for text in texts], padding=True, truncation=True, max_length=limit
    )
    return {name: np.asarray(encoded[name], dtype=np.int64) for name in INPUTS}


def _pipeline(folder: Path) -> tuple[str, bool]:
    """Return pooling ("mean" or "cls") and whether embeddings are normalised."""
    import json

    steps = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kinds = [str(step["type"]).rpartition(".")[2] for step in steps]
    unknown = [kind for kind in kinds if kind not in {"Transformer", "Pooling", "Normalize"}]
    if unknown or kinds[:2] != ["Transformer", "Pooling"]:
        raise BadInputError(
            "a sentence-transformers pipeline that is not known here",
            where=str(folder / "modules.json"),
            got=", ".join(kinds),
            wanted="Transformer, Pooling, and Normalize or not",
            next_step="write the pipeline as a module and load it as package.module:function",
        )
    settings = read_json(folder / str(steps[1]["path"]) / "config.json")
    chosen = [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, value in settings.items()
        if key.startswith("pooling_mode_") and value is True
    ] or [str(settings.get("pooling_mode"))]
    if chosen not in (["mean"], ["cls"]):
        raise BadInputError(
            "a pooling that is not known here",
            where=str(folder / str(steps[1]["path"])),
            got=", ".join(chosen),
            wanted="mean or cls",
        )
    return chosen[0], "Normalize" in kinds


def _longest(folder: Path, config: Config) -> int:
    """Return the largest number of tokens of a text."""
    limits = [int(str(config["max_position_embeddings"]))]
    if config["model_type"] not in {"bert", "distilbert"}:
        padding = config.get("pad_token_id")
        first = (1 if padding is None else int(str(padding))) + 1  # as the RoBERTa family counts
        limits = [limits[0] - first]
    settings = folder / "sentence_bert_config.json"
    if settings.is_file():
        limits.append(int(read_json(settings).get("max_seq_length", limits[0])))
    return min(limits)


__all__ = ["SentenceEncoder", "TextEncoder", "example_inputs", "load", "tokenise"]
