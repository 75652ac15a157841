"""Small models with random weights, and inputs for them."""

from __future__ import annotations

import torch
from torch import nn

TEXT = {
    "hidden_size": 32,
    "encoder_hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def blip_config():
    from transformers import BlipConfig

    return BlipConfig(
        text_config=TEXT, vision_config=VISION, projection_dim=16, image_text_hidden_size=16
    )


def clip_config():
    from transformers import CLIPConfig

    text = {name: value for name, value in TEXT.items() if name != "encoder_hidden_size"}
    return CLIPConfig(
        text_config=text | {"eos_token_id": 49}, vision_config=VISION, projection_dim=16
    )


def perturbed(net: nn.Module) -> nn.Module:
    """Weights large enough for tokens, and their importance, to differ."""
    seeded = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded))
    return net.eval()


def inputs(batch: int = 3, *, end: int | None = None) -> dict[str, torch.Tensor]:
    """Images and padded texts; ``end`` puts that token last in every text."""
    seeded = torch.Generator().manual_seed(1)
    lengths = torch.tensor([12, 9, 5])[:batch]
    ids = torch.randint(3, 49, (batch, 12), generator=seeded)
    mask = torch.arange(12)[None, :] < lengths[:, None]
    ids = ids * mask
    if end is not None:
        ids[torch.arange(batch), lengths - 1] = end
    return {
        "pixel_values": torch.randn(batch, 3, 32, 32, generator=seeded),
        "input_ids": ids,
        "attention_mask": mask.long(),
    }


def nlvr(concepts: int = 8, *, layers: int = 2, words: int = 50) -> nn.Module:
    """``BlipNlvr`` with random weights."""
    from transformers import BlipTextModel, BlipVisionModel

    from secateur.models.madtp.concepts import Concepts
    from secateur.models.madtp.tasks import BlipNlvr
    from secateur.models.madtp.twin import make_twin

    torch.manual_seed(0)
    config = blip_config()
    config.text_config.vocab_size = words
    for part in (config.text_config, config.vision_config):
        part.num_hidden_layers = layers
    text = BlipTextModel(config.text_config, add_pooling_layer=False)
    make_twin(text.encoder, config.text_config)
    return perturbed(BlipNlvr(BlipVisionModel(config.vision_config), text, Concepts(concepts, 32)))


def nlvr_inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    """Pairs of different images, and padded texts."""
    made = inputs(batch)
    made["pixel_values"] = torch.stack([made["pixel_values"], made["pixel_values"].flip(0)], dim=1)
    return made
