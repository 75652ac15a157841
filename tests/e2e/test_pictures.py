"""A vision model's folder and a folder of pictures to a verified bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secateur import cli

RECIPE = """\
schema: 1
name: pictures
model: {source: vit}
data: {images: photos}
remove:
  - {what: heads, ratio: 0.25, importance: output_norm}
select:
  - {site: vit.layers.1, by: class_row, keep: 0.5}
targets: [onnxruntime]
parity: {task: top1, batch: 3}
output: out/bundle
"""


@pytest.fixture
def folder(tmp_path):
    import transformers
    from PIL import Image

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    picture = {"num_hidden_layers": 3, "image_size": 24, "patch_size": 6}
    config = transformers.ViTConfig(**sizes, **picture)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


@pytest.mark.sweep
def test_pictures_are_scaled_run_and_recorded(folder, capsys):
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert cli.run(["deploy", str(folder / "recipe.yaml")]) == 0, capsys.readouterr()
    bundle = folder / "out" / "bundle"
    facts = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["facts"]
    assert facts["data"]["samples"] == 5
    assert len(facts["data"]["sha256"]) == 64
    chosen = {"by": "first", "samples": [0, 1, 2, 3, 4], "sha256": facts["data"]["sha256"]}
    assert facts["calibration"] == chosen
    checks = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))["checks"]
    assert {check["part"] for check in checks} >= {"score", "value", "batch law"}
    assert "0.png" in (bundle / "report.html").read_text(encoding="utf-8")
