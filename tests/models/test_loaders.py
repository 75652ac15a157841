"""Every Hugging Face family: what was saved is what is loaded, fed and analysed.

A random network of two layers is saved as its authors save theirs, safetensors beside
config.json, and opened from the folder's name alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from secateur.export.source import LoadedModel, load
from secateur.export.torch_export import from_torch
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.sites import attention_of
from secateur.models.families import FAMILIES, siglip
from secateur.models.families.bert_like import TextEncoder
from secateur.models.families.clip import ImageTower, TextTower
from secateur.models.families.vit import ImageEncoder

LAYERS, HEADS, HEAD_SIZE = 2, 4, 8
PLACES, END = 24, 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sits", "."]

_SIZES = {
    "hidden_size": HEADS * HEAD_SIZE,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
}
_TEXT = _SIZES | {"vocab_size": len(WORDS), "max_position_embeddings": PLACES}
_IMAGE = _SIZES | {"image_size": 16, "patch_size": 8}

TEXT_AXES = {key: {0: "batch", 1: "tokens"} for key in ("input_ids", "attention_mask")}
IMAGE_AXES = {"pixel_values": {0: "batch"}}


@dataclass(frozen=True)
class Row:
    """One kind of folder.

    ``answers`` is what the family's loader wraps the network in, ``blocks`` the path of its
    layers, ``parts`` the modules that a tower has of the whole network, () for all of them.
    """

    build: Callable[[], nn.Module]
    answers: type[nn.Module]
    axes: dict[str, dict[int, str]]
    blocks: str
    part: str = ""
    parts: tuple[str, ...] = ()


def _distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        dim=HEADS * HEAD_SIZE,
        n_heads=HEADS,
        n_layers=LAYERS,
        hidden_dim=48,
        vocab_size=len(WORDS),
        max_position_embeddings=PLACES,
    )
    return transformers.DistilBertForQuestionAnswering(config)


def _clip() -> nn.Module:
    text = _TEXT | {"eos_token_id": END, "pad_token_id": 0}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=_IMAGE, projection_dim=24)
    )


def _siglip() -> nn.Module:
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=_TEXT, vision_config=_IMAGE)
    )


ROWS: dict[str, Row] = {
    "bert": Row(
        lambda: transformers.BertForTokenClassification(transformers.BertConfig(**_TEXT)),
        TextEncoder,
        TEXT_AXES,
        "bert.encoder.layer",
    ),
    "roberta": Row(
        lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(**_TEXT, pad_token_id=1)
        ),
        TextEncoder,
        TEXT_AXES,
        "roberta.encoder.layer",
    ),
    "xlm-roberta": Row(
        lambda: transformers.XLMRobertaModel(
            transformers.XLMRobertaConfig(**_TEXT, pad_token_id=1), add_pooling_layer=False
        ),
        TextEncoder,
        TEXT_AXES,
        "encoder.layer",
    ),
    "camembert": Row(
        lambda: transformers.CamembertForSequenceClassification(
            transformers.CamembertConfig(**_TEXT, pad_token_id=1)
        ),
        TextEncoder,
        TEXT_AXES,
        "roberta.encoder.layer",
    ),
    "distilbert": Row(_distilbert, TextEncoder, TEXT_AXES, "distilbert.transformer.layer"),
    "vit": Row(
        lambda: transformers.ViTModel(transformers.ViTConfig(**_IMAGE), add_pooling_layer=False),
        ImageEncoder,
        IMAGE_AXES,
        "layers",
    ),
    "deit": Row(
        lambda: transformers.DeiTForImageClassificationWithTeacher(
            transformers.DeiTConfig(**_IMAGE)
        ),
        ImageEncoder,
        IMAGE_AXES,
        "deit.layers",
    ),
    "clip-text": Row(
        _clip,
        TextTower,
        TEXT_AXES,
        "text_model.encoder.layers",
        part="#text",
        parts=("text_model.", "text_projection."),
    ),
    "clip-vision": Row(
        _clip,
        ImageTower,
        IMAGE_AXES,
        "vision_model.encoder.layers",
        part="#vision",
        parts=("vision_model.", "visual_projection."),
    ),
    "siglip-vision": Row(
        _siglip,
        siglip.ImageTower,
        IMAGE_AXES,
        "vision_model.encoder.layers",
        part="#vision",
        parts=("vision_model.",),
    ),
    "siglip_vision_model": Row(
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_IMAGE)),
        siglip.VisionModel,
        IMAGE_AXES,
        "encoder.layers",
    ),
}

every_row = pytest.mark.parametrize("name", ROWS)
exported_row = pytest.mark.parametrize(
    "name",
    ["deit", *(pytest.param(n, marks=pytest.mark.sweep) for n in ("xlm-roberta", "camembert"))],
)


def network(name: str) -> nn.Module:
    """Build with a seed; no parameter stays zero or one, or equal to another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ROWS[name].build().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def save(net: nn.Module, folder: Path, **options: object) -> Path:
    net.save_pretrained(folder, **options)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def loaded(name: str, folder: Path) -> LoadedModel:
    return load(f"{folder}{ROWS[name].part}")


def of_tower(name: str, net: nn.Module) -> dict[str, Tensor]:
    parts = ROWS[name].parts or ("",)
    return {n: p.detach() for n, p in net.named_parameters() if n.startswith(parts)}


def assert_same_parameters(got: nn.Module, wanted: dict[str, Tensor]) -> None:
    found = dict(got.named_parameters())
    assert found.keys() == wanted.keys()
    different = [n for n, tensor in wanted.items() if not torch.equal(found[n].detach(), tensor)]
    assert different == []


def test_every_family_has_a_row() -> None:
    """A family that is added without one is not held to anything here.

    LLaVA takes embeddings of two modalities; tests/selectors/test_llava.py holds its loader. A
    Vision Mamba is no model of transformers; tests/families/test_vision_mamba.py holds its own.
    """
    rows = {name.removesuffix("-text").removesuffix("-vision") for name in ROWS}
    assert rows | {"llava", "vim"} == set(FAMILIES)


@every_row
def test_the_loader_of_the_family_answers_with_the_saved_parameters(
    name: str, tmp_path: Path
) -> None:
    net = network(name)
    got = loaded(name, save(net, tmp_path)).net
    assert type(got) is ROWS[name].answers
    assert not got.training
    assert_same_parameters(got, of_tower(name, net))


@every_row
def test_example_inputs_run_and_every_axis_that_varies_is_named(name: str, tmp_path: Path) -> None:
    got = loaded(name, save(network(name), tmp_path))
    assert got.dynamic == ROWS[name].axes
    assert got.inputs.keys() == got.dynamic.keys()
    with torch.no_grad():
        outputs = got.net(**got.inputs)
        fewer = got.net(**{name: tensor[:1] for name, tensor in got.inputs.items()})
    assert outputs.keys() == fewer.keys()
    for output in outputs.values():
        assert len(output) == len(next(iter(got.inputs.values())))
        assert bool(output.isfinite().all())


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "camembert", "vit", "deit"])
def test_outputs_are_those_of_the_saved_network(name: str, tmp_path: Path) -> None:
    net = network(name)
    got = loaded(name, save(net, tmp_path))
    with torch.no_grad():
        outputs, wanted = got.net(**got.inputs), net(**got.inputs)
    rows = got.inputs.get("attention_mask")
    for output, tensor in outputs.items():
        per_token = rows is not None and tensor.shape[:2] == rows.shape
        chosen = rows.bool() if per_token else slice(None)
        torch.testing.assert_close(tensor[chosen], wanted[output][chosen], rtol=1e-5, atol=1e-6)


@exported_row
def test_analysis_of_the_export_names_the_heads_of_every_layer(name: str, tmp_path: Path) -> None:
    got = loaded(name, save(network(name), tmp_path))
    model = from_torch(got.net, got.inputs, got.dynamic)
    sites = [f"{ROWS[name].blocks}.{layer}" for layer in range(LAYERS)]
    heads = analyse(model).by_role("heads")
    assert {(group.name, group.size) for group in heads if group.removable} == {
        (f"heads of {site}", HEADS) for site in sites
    }
    found = find_sites(model)
    assert {site.name for site in found} == set(sites)
    there = [attention_of(site) for site in found]
    assert {(one.heads, one.head_dim) for one in there} == {(HEADS, HEAD_SIZE)}


def test_weights_in_several_files_are_all_read(tmp_path: Path) -> None:
    net = network("bert")
    folder = save(net, tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_same_parameters(loaded("bert", folder).net, of_tower("bert", net))


def test_weights_saved_in_half_precision_are_loaded_in_single(tmp_path: Path) -> None:
    net = network("camembert").half()
    got = loaded("camembert", save(net, tmp_path)).net
    assert_same_parameters(got, {n: p.float() for n, p in of_tower("camembert", net).items()})


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_long_texts_end_at_the_last_position_of_roberta(padding: int, tmp_path: Path) -> None:
    """Positions are numbered from the padding id + 1: the table has fewer than its rows."""
    config = transformers.RobertaConfig(**_TEXT, pad_token_id=padding)
    got = load(str(save(transformers.RobertaModel(config).eval(), tmp_path)))
    arrays = got.prepare(["a cat sits . " * 20])
    assert arrays["input_ids"].shape == (1, PLACES - padding - 1)
    with torch.no_grad():
        got.net(**{name: torch.from_numpy(array) for name, array in arrays.items()})
