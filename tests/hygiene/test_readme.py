"""The Python in the README runs, on a small model of the kind that it speaks of."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest


class _Encoder:
    """A four-layer BERT with random weights, as a module that returns its hidden states."""

    def __new__(cls):
        import torch
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
        )

        class Encoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.bert = BertModel(config, add_pooling_layer=False)

            def forward(self, input_ids):
                mask = torch.ones_like(input_ids)
                return self.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state

        return Encoder().eval()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(root: Path, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", (root / "README.md").read_text(), re.M | re.S)
    ids = np.arange(24).reshape(2, 12)
    names = {
        "net": _Encoder(),
        "inputs": {"input_ids": torch.from_numpy(ids)},
        "arrays": {"input_ids": ids},
    }
    exec(compile(code, "README.md", "exec"), names)  # our own text
    assert np.isfinite(next(iter(names["outputs"].values()))).all()
    assert "secateur" in sys.modules
