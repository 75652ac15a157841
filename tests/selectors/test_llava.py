"""The prefill of a LLaVA from its folder gives the scores of transformers, sample by sample."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.selectors.targets import PATCHES, PIXELS, SIDE, save_words, seeded

from secateur.errors import BadInputError
from secateur.export.source import LoadedModel, load
from secateur.models.reference import TokenSite
from secateur.models.reference import run as reference_run

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE = 29


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vision = transformers.CLIPVisionConfig(
        **SIZES, num_hidden_layers=3, image_size=SIDE * PIXELS, patch_size=PIXELS
    )
    words = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = transformers.LlamaConfig(**SIZES, **words, num_key_value_heads=2, num_hidden_layers=1)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE
    )
    made = tmp_path_factory.mktemp("llava")
    seeded(lambda: transformers.LlavaForConditionalGeneration(config)).save_pretrained(made)
    save_words(made)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(str(folder))


def test_scores_are_those_of_transformers_without_padding(
    folder: Path, loaded: LoadedModel
) -> None:
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    fed = loaded.inputs
    with torch.no_grad():
        got = loaded.net(**fed)["logits"]
        for b in range(2):
            left = fed["before"][b][fed["before_mask"][b] > 0]
            right = fed["behind"][b][fed["behind_mask"][b] > 0]
            ids = torch.cat([left, torch.full((PATCHES,), IMAGE), right])[None]
            want = whole(input_ids=ids, pixel_values=fed["pixel_values"][b : b + 1]).logits
            torch.testing.assert_close(got[b], want[0, -1], rtol=1e-4, atol=1e-5)


def test_prompts_are_parted_where_the_picture_stands(loaded: LoadedModel) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    made = loaded.prepare([(picture, "a cat <image> what is this ?"), (picture, "<image> what")])
    assert made["pixel_values"].shape == (2, 3, SIDE * PIXELS, SIDE * PIXELS)
    assert made["before_mask"].sum(axis=1).tolist() == [4, 2]  # with [CLS] and [SEP]
    assert made["behind_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("prompt", ["no picture", "<image> and <image> too", "words <image>"])
def test_a_prompt_that_does_not_fit_is_refused(loaded: LoadedModel, prompt: str) -> None:
    with pytest.raises(BadInputError, match="has one <image>"):
        loaded.prepare([(np.zeros((8, 8, 3), np.uint8), prompt)])


def test_a_sample_that_is_no_pair_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="not a picture and a prompt"):
        loaded.prepare(["<image> what is this ?"])


def test_features_of_several_layers_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vision_feature_layer": [-2, -3]}))
    with pytest.raises(BadInputError, match="not known here"):
        load(str(copy))


def test_a_part_is_refused(folder: Path) -> None:
    with pytest.raises(BadInputError, match="no such part"):
        load(f"{folder}#vision")


@pytest.mark.sweep
def test_the_reference_finds_the_picture_among_the_words(loaded: LoadedModel) -> None:
    site = TokenSite(
        "model.vision_tower.encoder.layers.1", "class_row", cut="joined", protected=0, amount=500
    )
    told = replace(site, around=(3, 5))
    found = replace(site, among="model.multi_modal_projector")
    runs = [reference_run(loaded.net, loaded.inputs, [one]) for one in (told, found)]
    kept = [one.sites[site.site].kept for one in runs]
    assert kept[0].shape[1] == PATCHES // 2
    assert torch.equal(*kept)
    assert torch.equal(*(one.outputs["logits"] for one in runs))
    lost = replace(site, among="model.vision_tower.encoder.layers.1")
    with pytest.raises(BadInputError, match="not seen to be joined"):
        reference_run(loaded.net, loaded.inputs, [lost])
