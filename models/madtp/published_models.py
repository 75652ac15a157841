"""Task models of the sizes that a published state has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.tasks import (
    BlipCaption,
    BlipNlvr,
    BlipRetrieval,
    BlipVqa,
    ClipRetrieval,
)
from secateur.models.madtp.twin import make_twin

Task = Literal["nlvr", "vqa", "caption", "retrieval", "clip"]
"""``clip`` is retrieval with CLIP, the others are BLIP's."""

HEAD_WIDTH = 64
"""Of every published model; a state does not say how many heads its layers have."""

_PUBLISHED_CONCEPTS = 100


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model is built from."""

    task: Task
    vision: dict[str, Any]
    """Of ``BlipVisionConfig`` or ``CLIPVisionConfig``."""
    text: dict[str, Any]
    """Of ``BlipTextConfig`` or ``CLIPTextConfig``."""
    projection: int
    """Width of embeddings; only retrieval has them."""
    concepts: tuple[int, int]
    """T, Ds."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Sizes:
        """What ``to_json`` wrote."""
        count, width = record["concepts"]
        return Sizes(**(dict(record) | {"concepts": (int(count), int(width))}))


def check_task(task: str) -> None:
    """Refuse an unknown task.

    Raises:
        BadInputError: with the tasks that exist.
    """
    if task not in get_args(Task):
        raise BadInputError("unknown task", got=task, wanted=", ".join(get_args(Task)))


def sizes_of(state: Mapping[str, Tensor], task: Task, head_width: int = HEAD_WIDTH) -> Sizes:
    """Read the sizes off a published state.

    Args:
        state: tensors by their published names.
        task: of the model.
        head_width: of every attention head.

    Raises:
        BadInputError: a state that lacks the tensors that sizes are read from.
    """
    try:
        return (_clip_sizes if task == "clip" else _blip_sizes)(state, task, head_width)
    except KeyError as error:
        raise BadInputError(
            "the checkpoint is of another model",
            where=f"a file for the task {task}",
            got=f"missing: {error.args[0]}",
            next_step="check the task, and that the file is that of the model",
        ) from error


def build(sizes: Sizes) -> nn.Module:
    """A model with random weights."""
    concepts = Concepts(*sizes.concepts)
    if sizes.task == "clip":
        return ClipRetrieval(_clip(sizes), concepts).eval()
    return _blip(sizes, concepts).eval()


def _blip_sizes(state: Mapping[str, Tensor], task: Task, head_width: int) -> Sizes:
    patches = state["visual_encoder.patch_embed.proj.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    positions = state["visual_encoder.pos_embed"].shape[1] - 1
    vision = {
        "hidden_size": width,
        "intermediate_size": state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _depth(state, r"visual_encoder\.blocks\."),
        "num_attention_heads": width // head_width,
        "image_size": math.isqrt(positions) * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }
    tower = "text_decoder.bert" if task == "caption" else "text_encoder"
    words = state[f"{tower}.embeddings.word_embeddings.weight"]
    text = {
        "hidden_size": words.shape[1],
        "encoder_hidden_size": width,
        "intermediate_size": state[f"{tower}.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _depth(state, re.escape(tower) + r"\.encoder\.layer\."),
        "num_attention_heads": words.shape[1] // head_width,
        "vocab_size": words.shape[0],
        "max_position_embeddings": state[f"{tower}.embeddings.position_embeddings.weight"].shape[0],
        "is_decoder": True,
        "layer_norm_eps": 1e-12,
    }
    projection = state["vision_proj.weight"].shape[0] if task == "retrieval" else width
    return Sizes(task, vision, text, projection, _concepts(state, width))


def _clip_sizes(state: Mapping[str, Tensor], task: Task, head_width: int) -> Sizes:
    patches = state["visual.conv1.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    positions = state["visual.positional_embedding"].shape[0] - 1
    words = state["token_embedding.weight"]
    towers = (
        ("visual.transformer.resblocks", width),
        ("transformer.resblocks", words.shape[1]),
    )
    vision, text = (
        {
            "hidden_size": size,
            "intermediate_size": state[f"{tower}.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _depth(state, re.escape(tower) + r"\."),
            "num_attention_heads": size // head_width,
            "hidden_act": "quick_gelu",
        }
        for tower, size in towers
    )
    vision |= {"image_size": math.isqrt(positions) * patch, "patch_size": patch}
    text |= {
        "vocab_size": words.shape[0],
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "eos_token_id": words.shape[0] - 1,
    }
    concepts = _concepts(state, state["text_projection"].shape[1])
    return Sizes(task, vision, text, state["text_projection"].shape[1], concepts)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    found = [re.match(rf"{prefix}(\d+)\.", name) for name in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _concepts(state: Mapping[str, Tensor], width: int) -> tuple[int, int]:
    """A dense file has none; a new model gets as many as the published ones have."""
    if "space_dict" not in state:
        return _PUBLISHED_CONCEPTS, width
    count, size = state["space_dict"].shape
    return int(count), int(size)


def _blip(sizes: Sizes, concepts: Concepts) -> nn.Module:
    import transformers
    from transformers import BlipConfig, BlipTextModel, BlipVisionModel

    config = BlipConfig(
        text_config=sizes.text,
        vision_config=sizes.vision,
        projection_dim=sizes.projection,
        image_text_hidden_size=sizes.projection,
    )
    if sizes.task == "nlvr":
        text = BlipTextModel(config.text_config, add_pooling_layer=False)
        make_twin(text.encoder, config.text_config)
        return BlipNlvr(BlipVisionModel(config.vision_config), text, concepts)
    if sizes.task == "vqa":
        return BlipVqa(transformers.BlipForQuestionAnswering(config), concepts)
    if sizes.task == "caption":
        return BlipCaption(transformers.BlipForConditionalGeneration(config), concepts)
    return BlipRetrieval(transformers.BlipForImageTextRetrieval(config), concepts)


def _clip(sizes: Sizes) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config=sizes.text, vision_config=sizes.vision, projection_dim=sizes.projection
    )
    model: nn.Module = CLIPModel(config)
    return model


__all__ = ["HEAD_WIDTH", "Sizes", "Task", "build", "check_task", "sizes_of"]
