"""Frames and crops: the tower sees each picture by itself, a selector sees all of a prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from tests.selectors.targets import PATCHES, PIXELS, SIDE, save_words, seeded
from torch import Tensor

from secateur.errors import BadInputError, PreconditionError
from secateur.export.source import LoadedModel, load
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.models.families.several_pictures import Layout
from secateur.models.selectors import resolve_selector
from secateur.workflow.selecting import Select, select_tokens

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE, FRAMES, LAYERS = 29, 3, 3
TOKENS = FRAMES * PATCHES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vision = transformers.CLIPVisionConfig(
        **SIZES, num_hidden_layers=LAYERS, image_size=SIDE * PIXELS, patch_size=PIXELS
    )
    words = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = transformers.LlamaConfig(**SIZES, **words, num_key_value_heads=2, num_hidden_layers=2)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE
    )
    made = tmp_path_factory.mktemp("frames")
    seeded(lambda: transformers.LlavaForConditionalGeneration(config)).save_pretrained(made)
    save_words(made)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(f"{folder}#frames={FRAMES}")


@pytest.fixture(scope="module")
def dense(loaded: LoadedModel) -> ir.Model:
    return from_torch(loaded.net, loaded.inputs, loaded.dynamic)


def test_frames_are_read_as_transformers_reads_as_many_pictures(
    folder: Path, loaded: LoadedModel, dense: ir.Model
) -> None:
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    fed = loaded.inputs
    got = run(dense, {name: x.numpy() for name, x in fed.items()})["logits"]
    for b in range(2):
        left = fed["before"][b][fed["before_mask"][b] > 0]
        right = fed["behind"][b][fed["behind_mask"][b] > 0]
        ids = torch.cat([left, torch.full((TOKENS,), IMAGE), right])[None]
        with torch.no_grad():
            want = whole(input_ids=ids, pixel_values=fed["pixel_values"][b]).logits[0, -1]
        np.testing.assert_allclose(got[b], want.numpy(), rtol=1e-4, atol=1e-5)


def chosen(by: str, **options: bool | float | str) -> Select:
    given = {"quota": {"relevance": f"input:{FRAMES}"}}
    return Select(
        f"model.vision_tower.encoder.layers.{LAYERS - 2}",
        by,
        0.3,
        protected=0,
        budget="constant",
        cut="joined",
        among="in_line",
        options=options,
        signals=given.get(by, {}),
    )


def signals_of(loaded: LoadedModel, b: int) -> dict[str, Tensor]:
    """What the tower says of one sample's frames, laid out one behind the other."""
    tower = loaded.net.get_submodule("model.vision_tower")
    layer = tower.get_submodule(f"encoder.layers.{LAYERS - 2}")
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.no_grad():
        tower(loaded.inputs["pixel_values"][b], output_hidden_states=True)
        handle.remove()
        normed = layer.get_submodule("layer_norm1")(inputs[0])
        query, key, value = (
            layer.get_submodule(f"self_attn.{name}_proj")(normed)
            .unflatten(2, (4, 8))
            .transpose(1, 2)
            for name in ("q", "k", "v")
        )
    attention = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=3)
    return {
        "class_row": attention[:, :, 0, 1:].mean(dim=1).flatten()[None],
        "column_mean": attention.mean(dim=(1, 2))[:, 1:].flatten()[None],
        "keys": key[:, :, 1:].transpose(0, 1).flatten(1, 2)[None],
        "values": value[:, :, 1:].transpose(0, 1).flatten(1, 2)[None],
    }


@pytest.mark.parametrize(
    "by",
    [
        "fastervlm",
        "key_norm",
        pytest.param("column_mean", marks=pytest.mark.sweep),
        pytest.param("value_norm", marks=pytest.mark.sweep),
    ],
)
def test_tokens_of_all_frames_are_ranked_together(
    loaded: LoadedModel, dense: ir.Model, by: str
) -> None:
    model = select_tokens(dense, [chosen(by)])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = run(model, {name: x.numpy() for name, x in loaded.inputs.items()})
    selector, kept = resolve_selector(by), -(-TOKENS * 3 // 10)
    for b in range(2):
        signals = signals_of(loaded, b)
        made = selector.score(**{name: signals[name] for name in selector.signals})
        want = sorted(made[0].topk(kept).indices.tolist())
        row = got[next(name for name in got if name.endswith(".kept"))][b]
        inside = [p - 3 for p in row.tolist() if 3 <= p < 3 + TOKENS]  # behind three words
        assert inside == want
        assert len({place // PATCHES for place in want}) == FRAMES


def test_a_frame_gets_as_many_tokens_as_it_matters(loaded: LoadedModel, dense: ir.Model) -> None:
    """The quota of a frame that does not matter at all is nothing."""
    model = select_tokens(dense, [chosen("quota")])
    relevance = np.array([[0.0, 1.0, 3.0], [1.0, 1.0, 1.0]], np.float32)
    fed = {name: x.numpy() for name, x in loaded.inputs.items()}
    site = chosen("quota").site
    got = run(model, fed | {f"{site}.relevance": relevance})[f"{site}.kept"]
    for b, row in enumerate(got):
        frames = [(p - 3) // PATCHES for p in row.tolist() if 3 <= p < 3 + TOKENS]
        counts = [frames.count(frame) for frame in range(FRAMES)]
        share = relevance[b] / relevance[b].sum()
        assert counts == [int(x) for x in share * -(-TOKENS * 3 // 10)]


def test_a_map_over_all_frames_does_not_exist(dense: ir.Model) -> None:
    with pytest.raises(PreconditionError, match=r"'full' of .* is about other tokens"):
        select_tokens(dense, [chosen("fopru")])


def test_a_picture_is_seen_whole_and_then_crop_by_crop(folder: Path) -> None:
    side = SIDE * PIXELS
    picture = np.zeros((2 * side, 3 * side, 3), np.uint8)
    picture[side:, 2 * side :] = 255
    made = load(f"{folder}#crops=2x3").prepare([(picture, "<image> what is this ?")])
    pixels = made["pixel_values"][0]
    assert pixels.shape == (7, 3, side, side)
    assert [bool((crop > 0).all()) for crop in pixels[1:]] == [False] * 5 + [True]
    assert 0.05 < (pixels[0] > 0).mean() < 0.3


@pytest.mark.parametrize("part", ["vision", "frames=0", "crops=2", "crops=2x0", "frames=x"])
def test_another_layout_is_refused(folder: Path, part: str) -> None:
    with pytest.raises(BadInputError, match="no such part"):
        load(f"{folder}#{part}")


@pytest.mark.parametrize("given", [[np.zeros((8, 8, 3), np.uint8)] * 2, 5], ids=["two", "none"])
def test_another_number_of_frames_is_refused(loaded: LoadedModel, given: object) -> None:
    with pytest.raises(BadInputError, match="another number of frames"):
        loaded.prepare([(given, "<image> what is this ?")])


@pytest.mark.parametrize("given", [np.zeros((0, 4, 3), np.uint8), "a cat", np.zeros((4, 4, 3))])
def test_nothing_cannot_be_cropped(given: object) -> None:
    with pytest.raises(BadInputError, match="not a picture that can be cropped"):
        Layout(rows=2, columns=2).pictures(given, 8)
