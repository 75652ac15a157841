"""The small MADTP networks of the vectors, rebuilt from the weights that come with them."""

from __future__ import annotations

import re

import numpy as np
import torch
from tests.oracles.onnx_form import both_ways
from torch import nn

from secateur.models.madtp import blocks, published_names
from secateur.models.madtp.encoder import Branch, Pruning, Start, encode
from secateur.models.madtp.twin import make_twin


def tensors(case) -> dict[str, torch.Tensor]:
    return {
        name: torch.as_tensor(array)
        for name, array in case.arrays.items()
        if array.dtype.kind != "U" and not name.startswith("w.")
    }


def weights(case) -> dict[str, torch.Tensor]:
    return {n[2:]: torch.as_tensor(a) for n, a in case.arrays.items() if n.startswith("w.")}


def n_layers(state) -> int:
    return 1 + max(int(m[1]) for n in state if (m := re.search(r"(?:layers?|resblocks)\.(\d+)", n)))


def vision(case) -> nn.Module:
    from transformers import BlipVisionConfig, BlipVisionModel

    state = published_names.renamed(weights(case), published_names.VISION)
    patches = state["embeddings.patch_embedding.weight"]
    config = BlipVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=n_layers(state),
        num_attention_heads=int(case.arrays["num_heads"]),
        image_size=case.arrays["image"].shape[-1],
        patch_size=patches.shape[-1],
        layer_norm_eps=1e-6,
    )
    return _loaded(BlipVisionModel(config), state)


def text(case, images: int) -> nn.Module:
    """The layers of a text encoder that looks at 0, 1 or 2 images."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextEncoder

    state = weights(case)
    inner, width = state["layer.0.intermediate.dense.weight"].shape
    config = BlipTextConfig(
        hidden_size=width,
        encoder_hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=n_layers(state),
        num_attention_heads=int(case.arrays["num_heads"]),
        layer_norm_eps=1e-12,
        is_decoder=True,
    )
    net = BlipTextEncoder(config)
    return _loaded(make_twin(net, config) if images == 2 else net, state)


def clip(case, rules, kind: str) -> tuple[nn.Module, list[nn.Module]]:
    """A CLIP vision or text encoder, and its projections to the concepts."""
    from transformers import CLIPTextConfig, CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionModelWithProjection

    state, queries = published_names.split_queries(published_names.renamed(weights(case), rules))
    first = next(n for n in state if n.endswith("layers.0.mlp.fc1.weight"))
    inner, width = state[first].shape
    common = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": n_layers(state),
        "num_attention_heads": int(case.arrays["num_heads"]),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    if kind == "vision":
        patches = state["vision_model.embeddings.patch_embedding.weight"]
        config = CLIPVisionConfig(
            **common,
            image_size=case.arrays["image"].shape[-1],
            patch_size=patches.shape[-1],
            projection_dim=state["visual_projection.weight"].shape[0],
        )
        net = _loaded(CLIPVisionModelWithProjection(config), state)
    else:
        prefix = "text_model.encoder."
        net = _loaded(
            CLIPEncoder(CLIPTextConfig(**common)),
            {name.removeprefix(prefix): tensor for name, tensor in state.items()},
        )
    return net, _projections(queries)


def _projections(queries) -> list[nn.Module]:
    made = []
    for i in range(len(queries) // 2):
        weight = queries[f"{i}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": queries[f"{i}.bias"]})
        made.append(linear)
    return made


def _loaded(net: nn.Module, state) -> nn.Module:
    net.load_state_dict(state, strict=True)
    return net.eval()


def ways(case, function, inputs, axes):
    """PyTorch's result, and for the first case of a set (an export takes long) the graph's.

    Graphs are made without the alignment features, which only training needs.
    """
    inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}
    made = in_torch(function, inputs, aligned=True)
    if case.path.stem == "case0":
        made += both_ways(function, inputs, axes, aligned=False)
    return made


def in_torch(function, inputs, **options):
    with torch.no_grad():
        outputs = function(**inputs, **options)
    return [{name: np.asarray(value) for name, value in outputs.items()}]


def compare(case, result, *, ordered: bool = False) -> None:
    """Lengths of all layers, the output (rows as a set), and the alignment features."""
    arrays = case.arrays
    after = arrays.get("tokens_after_block", arrays.get("tokens_after_layer"))
    np.testing.assert_array_equal(result["lengths"], after)
    want, got = torch.as_tensor(arrays["out"]), torch.as_tensor(result["out"])
    tolerance = 1e-4 * float(want.abs().max())
    if ordered:
        assert float((got - want).abs().max()) < tolerance
    else:
        assert float((got[:, 0] - want[:, 0]).abs().max()) < tolerance
        assert max(map(rows_match, got, want)) < tolerance
    if "features" in result and arrays["concept_ft_sum"].size:
        np.testing.assert_allclose(
            result["features"], arrays["concept_ft_sum"], rtol=1e-4, atol=1e-4
        )


def results(encoded, out) -> dict[str, torch.Tensor]:
    lengths = [(1 + cut.kept + (cut.kept < cut.available).long())[0] for cut in encoded.cuts]
    features = {} if encoded.features is None else {"features": encoded.features}
    return {
        "out": out,
        **features,
        "lengths": torch.stack(lengths) if lengths else torch.empty(0, dtype=torch.long),
    }


def rows_match(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest distance of a wanted row to its nearest among the rows that are left; (N, D) both."""
    assert got.shape == want.shape
    left = torch.ones(len(got), dtype=torch.bool)
    worst = 0.0
    for row in want:
        gaps = (got - row).abs().amax(dim=1).masked_fill(~left, torch.inf)
        at = int(gaps.argmin())
        left[at] = False
        worst = max(worst, float(gaps[at]))
    return worst


def check_text(case, n_images: int) -> None:
    """Hold a BLIP text encoder to its vectors."""
    arrays, net = tensors(case), text(case, n_images)
    branch = Branch(net.layer, blocks.BLIP_TEXT, arrays["space_dict"])
    temperature = float(arrays["temperature"])
    images = [f"image{i}" for i in range(n_images)]

    def run(hidden, attention_mask, image0=None, image1=None, *, aligned):
        given = [image for image in (image0, image1) if image is not None]
        contexts = tuple(blocks.Context(image, None) for image in given)
        start = Start(hidden, attention_mask > 0, contexts)
        made = encode(branch, start, Pruning(temperature, coupled=True), aligned=aligned)
        return results(made, made.hidden)

    axes = {"hidden": ("batch", "tokens"), "attention_mask": ("batch", "tokens")}
    axes |= dict.fromkeys(images, ("batch", "image_tokens"))
    for result in ways(case, run, {name: arrays[name] for name in axes}, axes):
        compare(case, result)
