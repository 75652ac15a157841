"""One deployment of the small encoder, looked at by many tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.surface.conftest import encoder_onnx  # noqa: F401 (a fixture)

from secateur import cli

RECIPE = """\
schema: 1
name: small
model: {source: "tests.surface.small:encoder"}
data: {npz: data.npz}
remove:
  - {what: heads, ratio: 0.25, importance: output_norm}
  - {what: ffn, ratio: 0.25, round_to: 8}
select:
  - {site: layers.0, by: column_mean, keep: 0.6}
  - {site: layers.1, by: key_norm, keep: 0.6}
targets: [onnxruntime, "rtx:sm86"]
profile:
  min: input_ids:1x4,attention_mask:1x4
  opt: input_ids:2x16,attention_mask:2x16
  max: input_ids:8x32,attention_mask:8x32
parity: {task: embedding, batch: 4}
bench: {variants: [combined], batches: [1], tokens: 16, processes: 1, pairs: 2}
output: out/bundle
"""


@dataclass(frozen=True)
class Deployment:
    """A recipe's folder after ``secateur deploy``."""

    recipe: Path
    bundle: Path
    exit_code: int


def samples(folder: Path) -> Path:
    """Ragged samples: padding at the end, each of its own length."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (12, 20))
    mask = (np.arange(20) < rng.integers(5, 21, (12, 1))).astype(np.int64)
    np.savez(folder / "data.npz", input_ids=ids * mask, attention_mask=mask)
    return folder / "data.npz"


def deploy(folder: Path, text: str = RECIPE) -> Deployment:
    """Write a recipe and its data into a folder, and deploy it."""
    folder.mkdir(exist_ok=True)
    samples(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    return Deployment(recipe, folder / "out" / "bundle", cli.run(["deploy", str(recipe)]))


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The recipe above, deployed once."""
    return deploy(tmp_path_factory.mktemp("e2e"))
