"""Names of tensors in published MADTP and BLIP checkpoints, as Hugging Face names them.

Text layers have the same names on both sides and are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

Rules = tuple[tuple[str, str], ...]

VISION: Rules = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
"""Of BLIP's vision transformer."""

_CLIP_BLOCK: Rules = (
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)

CLIP_VISION: Rules = (
    (r"^class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^ln_post\.", "vision_model.post_layernorm."),
    (r"^proj$", "visual_projection.weight"),
    (r"^(?:transformer\.)?resblocks\.", "vision_model.encoder.layers."),
    *_CLIP_BLOCK,
)
"""Of CLIP's vision transformer, which Hugging Face keeps beside its projection."""

CLIP_TEXT: Rules = (
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^(?:transformer\.)?resblocks\.", "text_model.encoder.layers."),
    *_CLIP_BLOCK,
)
"""Of CLIP's text transformer, without the vision tower's ``visual.``."""

_QUERIES = re.compile(r"encoder\.layers\.(\d+)\.query_model\.q_map\.0\.(weight|bias)$")


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return the tensors under the names that the rules, applied in their order, give.

    Names that no rule matches stay; whoever loads the result reports them. A fused
    ``in_proj`` of CLIP becomes three tensors, a projection that is stored transposed is turned.
    """
    result: dict[str, Tensor] = {}
    for old, tensor in state.items():
        name = old
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece.clone()
        elif name in {"visual_projection.weight", "text_projection.weight"} and name != old:
            result[name] = tensor.t().contiguous()
        else:
            result[name] = tensor
    return result


def split_queries(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take the per-block projections to the concepts (CLIP) out: (the rest, ``<i>.weight`` ...)."""
    rest: dict[str, Tensor] = {}
    queries: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _QUERIES.search(name)
        if match is None:
            rest[name] = tensor
        else:
            queries[f"{match[1]}.{match[2]}"] = tensor
    return rest, queries


__all__ = ["CLIP_TEXT", "CLIP_VISION", "VISION", "Rules", "renamed", "split_queries"]
