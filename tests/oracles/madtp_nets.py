"""The small MADTP networks of the vectors, rebuilt from the weights that come with them."""

from __future__ import annotations

import re

import torch
from torch import nn

from secateur.models.madtp import blocks, published_names
from secateur.models.madtp.encoder import Branch
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


__all__ = ["Branch", "blocks"]
