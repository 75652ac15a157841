"""Small random models, saved as their authors would save them; each is exported once."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "cat",
    "dog",
    "sits",
    "runs",
    "fast",
    ".",
]
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}


def randomise(model):
    """Give every parameter values of its own, so that nothing is merged or trivially zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def bert_config(layers=2):
    return transformers.BertConfig(
        **{**SIZES, "num_hidden_layers": layers}, vocab_size=12, max_position_embeddings=40
    )


@pytest.fixture(scope="session")
def save_folder(tmp_path_factory):
    """Save a transformers model, with distinct values and a tokenizer, as a folder."""

    def save(model):
        folder = tmp_path_factory.mktemp(type(model).__name__)
        randomise(model).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def bert():
    return randomise(transformers.BertModel(bert_config(), add_pooling_layer=False))


@pytest.fixture(scope="session")
def sentence_folder(tmp_path_factory, bert):
    """A folder as sentence-transformers writes it: mean pooling, then normalisation."""
    folder = tmp_path_factory.mktemp("sentence")
    bert.save_pretrained(folder)
    save_tokenizer(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    steps = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    return folder


@pytest.fixture(scope="session")
def sentence(sentence_folder):
    from secateur.export.source import load

    return load(str(sentence_folder))


@pytest.fixture(scope="session")
def sentence_export(sentence):
    """The sentence encoder at opset 20; tests must not change it."""
    from secateur.export.torch_export import from_torch

    return from_torch(sentence.net, sentence.inputs, sentence.dynamic)
