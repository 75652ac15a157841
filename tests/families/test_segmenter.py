"""A plain ViT whose certain patches leave early: every pixel gets the answer of its own head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from secateur import cli
from secateur.errors import BadInputError, PreconditionError
from secateur.export.source import LoadedModel, load
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.graph_passes.force_selection import force
from secateur.models.families.segmenter import HEADS_FILE, Segmenter
from secateur.models.reference import TokenSite
from secateur.models.reference import run as reference_run
from secateur.runtime.backend import BACKENDS, EngineSpec
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.profiles import profiles_from_dimensions
from secateur.workflow.golden import (
    budget_feeds,
    golden_from_torch,
    put_back_at,
    token_sites,
)
from secateur.workflow.model_session import open_model
from secateur.workflow.parity import Options, check
from secateur.workflow.selecting import Select, select_tokens

WIDTH, CLASSES, PATCHES_ACROSS, PIXELS_ACROSS = 32, 5, 4, 16
EARLY, LAST = (1, 2), 3
THRESHOLD, CONTEXT = 0.6, 1
OPTIONS = Options(token_axes={"masks_1": 2, "masks_2": 2})


def save(folder: Path, layers: tuple[int, ...] = (*EARLY, LAST), width: int = WIDTH) -> Path:
    """A ViT of four layers with heads whose weights are large enough to be certain."""
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_hidden_layers=LAST + 1,
        intermediate_size=48,
        image_size=PIXELS_ACROSS,
        patch_size=PIXELS_ACROSS // PATCHES_ACROSS,
    )
    seeded = torch.Generator().manual_seed(4)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        net = transformers.ViTModel(config, add_pooling_layer=False)
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded))
    net.save_pretrained(folder)
    sizes = {"norm": (width,), "mask": (CLASSES, width), "presence": (2 * CLASSES, width)}
    heads = {}
    for layer in layers:
        for name, size in sizes.items():
            heads[f"{layer}.{name}.weight"] = torch.randn(size, generator=seeded)
            heads[f"{layer}.{name}.bias"] = torch.randn(size[:1], generator=seeded)
    save_file(heads, folder / HEADS_FILE)
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(f"{save(tmp_path_factory.mktemp('segmenter'))}#segmentation")


@pytest.fixture(scope="module")
def dense(opened: LoadedModel) -> ir.Model:
    return from_torch(opened.net, opened.inputs, opened.dynamic)


@pytest.fixture(scope="module")
def selecting(dense: ir.Model) -> ir.Model:
    model = select_tokens(
        dense, [leaving(layer) for layer in EARLY], restore=(f"heads.{LAST}.mask",)
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def leaving(layer: int, leaves: str = "heads.{}.mask") -> Select:
    return Select(
        f"layers.{layer}",
        "dtop",
        options={"threshold": THRESHOLD, "keep_per_class": CONTEXT},
        signals={"mask_logits": f"masks_{layer}", "class_logits": f"presence_{layer}"},
        leaves=leaves.format(layer),
    )


def pictures() -> Tensor:
    return torch.randn(
        3, 3, PIXELS_ACROSS, PIXELS_ACROSS, generator=torch.Generator().manual_seed(6)
    )


def by_hand(net: Segmenter, picture: Tensor) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    """One picture, patch by patch: the answer, who stays behind each head, who answered."""
    hidden = net.get_submodule("embeddings")(picture[None])[0]
    alive = list(range(len(hidden)))
    canvas, presence = torch.zeros(len(hidden), CLASSES), torch.zeros(CLASSES, 2)
    answered, kept = np.full(len(hidden), LAST), []
    for i in range(LAST + 1):
        hidden = net.get_submodule(f"layers.{i}")(hidden[None])[0]
        if i not in (*EARLY, LAST):
            continue
        head = net.get_submodule(f"heads.{i}")
        masks, found = head(hidden[None])
        masks, presence = masks[0], found[0]
        canvas[alive] = masks
        if i == LAST:
            break
        stay = staying(masks, presence)
        for slot, place in enumerate(alive):
            if slot not in stay:
                answered[place] = i
        hidden, alive = hidden[stay], [alive[slot] for slot in stay]
        kept.append(alive)
    grid = canvas[1:].T.reshape(1, CLASSES, PATCHES_ACROSS, PATCHES_ACROSS)
    pixels = F.interpolate(grid, size=(PIXELS_ACROSS,) * 2, mode="bilinear")[0]
    there = presence.softmax(dim=1)[:, 0]
    return (there[:, None, None] * pixels.sigmoid()).numpy(), kept, answered


def staying(masks: Tensor, presence: Tensor) -> list[int]:
    """The class token, uncertain patches, and the surest of each class."""
    sure = masks.sigmoid() * presence.softmax(dim=1)[:, 0]
    value, label = sure.max(dim=1)
    certain = [n for n in range(len(masks)) if value[n] > THRESHOLD]
    context = set()
    for c in range(CLASSES):
        of_class = sorted((n for n in certain if label[n] == c), key=lambda n: -value[n].item())
        context.update(of_class[:CONTEXT])
    return [n for n in range(len(masks)) if n == 0 or n not in certain or n in context]


def test_dense_graph_gives_every_pixel_the_answer_of_the_last_head(
    opened: LoadedModel, dense: ir.Model
) -> None:
    x = pictures()
    with torch.no_grad():
        want = opened.net(x)
    got = run(dense, {"pixel_values": x.numpy()})
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)
    assert got["prediction"].shape == (3, CLASSES, PIXELS_ACROSS, PIXELS_ACROSS)


@torch.no_grad()
def test_a_patch_that_left_keeps_what_the_head_said_that_let_it_go(
    opened: LoadedModel, selecting: ir.Model
) -> None:
    assert isinstance(opened.net, Segmenter)
    x = pictures()
    got = run(selecting, {"pixel_values": x.numpy()})
    counts = set()
    for b in range(3):
        answer, kept, answered = by_hand(opened.net, x[b])
        for layer, want in zip(EARLY, kept, strict=True):
            row = got[f"layers.{layer}.kept"][b]
            assert row[row >= 0].tolist() == want
        assert set(answered.tolist()) == {*EARLY, LAST}, "the case tests too little"
        counts.add(len(kept[0]))
        np.testing.assert_allclose(got["prediction"][b], answer, rtol=1e-4, atol=1e-5)
    assert len(counts) > 1, "all pictures keep equally many: no validity is tested"


def test_a_picture_in_a_batch_gets_what_it_gets_alone(selecting: ir.Model) -> None:
    x = pictures().numpy()
    together = run(selecting, {"pixel_values": x})["prediction"]
    for b in range(3):
        alone = run(selecting, {"pixel_values": x[b : b + 1]})["prediction"]
        np.testing.assert_allclose(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_reference_knows_who_left_and_with_what(
    opened: LoadedModel, selecting: ir.Model
) -> None:
    assert opened.net is not None
    batch = {"pixel_values": pictures().numpy()}
    sites, feeds = token_sites(selecting, {}), budget_feeds(selecting, {})
    back = put_back_at(selecting)
    assert back == (f"heads.{LAST}.mask",)
    golden = golden_from_torch(opened.net, batch, sites, feeds=feeds, restore=back)
    with open_model(force(selecting)) as twin, open_model(selecting) as free:
        report = check([golden], twin, free=free, options=OPTIONS)
        answer = free(batch)["prediction"]
    assert report.passed, [(row.subject, row.note) for row in report.rows() if not row.passed]
    assert {row.subject for row in report.rows()} >= {"layers.1", "layers.2", "prediction"}
    np.testing.assert_allclose(golden.outputs["prediction"], answer, rtol=1e-4, atol=1e-5)
    lost = golden_from_torch(opened.net, batch, sites, feeds=feeds)
    with open_model(force(selecting)) as twin:
        assert not check([lost], twin, free=None, options=OPTIONS).passed


def test_a_signal_that_nothing_gives_stops_the_reference(opened: LoadedModel) -> None:
    assert opened.net is not None
    site = TokenSite("layers.1", "dtop", given={"mask_logits": "masks_9", "class_logits": "x"})
    with pytest.raises(BadInputError, match="no input, module or output") as caught:
        reference_run(opened.net, {"pixel_values": pictures()}, [site])
    assert "masks_9" in str(caught.value)


@pytest.mark.sweep
def test_an_engine_is_built(selecting: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(selecting), path)
    ranges = profiles_from_dimensions(read_outline(path).inputs, {"batch": (1, 2, 4)})
    spec = EngineSpec(profiles=ranges, compute_capabilities=("sm86",), timeout_s=240)
    assert len(BACKENDS["rtx"]().build(path, spec)) > 1000


RECIPE = """\
schema: 1
name: segmenter
model: {{source: "vit#segmentation"}}
select:
  - site: layers.1
    by: dtop
    keep: 0.5
    options: {{threshold: {threshold}, keep_per_class: {context}}}
    signals: {{mask_logits: masks_1, class_logits: presence_1}}
    leaves: heads.1.mask
restore: [heads.3.mask]
targets: [{targets}]
profile:
  min: {{pixel_values: [1, 3, 16, 16]}}
  opt: {{pixel_values: [2, 3, 16, 16]}}
  max: {{pixel_values: [4, 3, 16, 16]}}
output: out/bundle
"""


@pytest.mark.sweep
@pytest.mark.parametrize("targets", ["onnxruntime", '"rtx:sm86"'])
def test_a_recipe_puts_tokens_back_and_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], targets: str
) -> None:
    save(tmp_path / "vit")
    text = RECIPE.format(threshold=THRESHOLD, context=CONTEXT, targets=targets)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert cli.run(["deploy", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr()
    parity = json.loads((tmp_path / "out" / "bundle" / "parity.json").read_text("utf-8"))
    assert {check["part"] for check in parity["checks"]} >= {"score", "value"}
    assert all(check["passed"] for check in parity["checks"])


def test_what_tokens_leave_with_has_to_fit_where_they_come_back(dense: ir.Model) -> None:
    with pytest.raises(BadInputError, match=r"no value and no module 'heads\.9\.mask'"):
        select_tokens(dense, [leaving(1, "heads.9.mask")], restore=(f"heads.{LAST}.mask",))
    with pytest.raises(PreconditionError, match="what tokens leave with"):
        select_tokens(dense, [leaving(1, "layers.0")], restore=(f"heads.{LAST}.mask",))


def test_a_folder_without_heads_is_refused(tmp_path: Path) -> None:
    (save(tmp_path) / HEADS_FILE).unlink()
    with pytest.raises(BadInputError, match="no heads for segmentation"):
        load(f"{tmp_path}#segmentation")


@pytest.mark.parametrize(
    ("layers", "width", "message"),
    [
        ((1,), WIDTH, "no head to answer with"),
        ((LAST, 7), WIDTH, "no head to answer with"),
        ((LAST,), 8, "make no head of width 32"),
    ],
)
def test_heads_that_do_not_fit_the_tower_are_refused(
    layers: tuple[int, ...], width: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        load(f"{save(tmp_path, layers, width)}#segmentation")


def test_a_head_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path) / HEADS_FILE
    tensors = load_file(path)
    del tensors["3.mask.weight"]
    save_file(tensors, path)
    with pytest.raises(BadInputError, match="layer 3"):
        load(f"{tmp_path}#segmentation")
