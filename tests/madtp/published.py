"""Made-up states under the names of published files, from small models with random weights."""

from __future__ import annotations

import re

import torch

_BLIP = (
    (r"^vision\.", "visual_encoder."),
    (r"^text\.", "text_encoder."),
    (r"^concepts\.weight$", "space_dict"),
    (r"embeddings\.class_embedding$", "cls_token"),
    (r"embeddings\.position_embedding$", "pos_embed"),
    (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"visual_encoder\.post_layernorm\.", "visual_encoder.norm."),
    (r"visual_encoder\.encoder\.layers\.", "visual_encoder.blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
)
_CLIP = (
    (r"^concepts\.weight$", "space_dict"),
    (r"^image_queries\.(\d+)\.", r"visual.transformer.resblocks.\1.query_model.q_map.0."),
    (r"^text_queries\.(\d+)\.", r"transformer.resblocks.\1.query_model.q_map.0."),
    (r"^vision\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^vision\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^text\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_PART = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


def blip(net) -> dict[str, torch.Tensor]:
    """The state of a BLIP task model."""
    return {_renamed(name, _BLIP): tensor.clone() for name, tensor in net.state_dict().items()}


def clip(net) -> dict[str, torch.Tensor]:
    """The state of ``ClipRetrieval``: queries, keys and values in one, projections turned."""
    state, made = net.state_dict(), {}
    for name, tensor in state.items():
        if match := _PART.fullmatch(name):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            block = _renamed(f"{match[1]}.", _CLIP)
            made[f"{block}attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            turned = name in {"visual_projection.weight", "text_projection.weight"}
            made[_renamed(name, _CLIP)] = tensor.t().clone() if turned else tensor.clone()
    return made


def _renamed(name: str, rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
