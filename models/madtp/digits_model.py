"""The small BLIP classifier of the digits task, and its weights in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.digits import CELL, GRID, LENGTH, VOCABULARY
from secateur.models.madtp.tasks import BlipNlvr
from secateur.models.madtp.twin import make_twin

WIDTH, CONCEPTS = 48, 16
_SHARED = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
_VISION = _SHARED | {
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "image_size": GRID * CELL,
    "patch_size": CELL,
}
_TEXT = _SHARED | {
    "encoder_hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,  # 0.02 is meant for wide layers; here attention would stay uniform
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}


def digits_model(seed: int = 0) -> BlipNlvr:
    """A new model: six vision layers, three text layers, one patch per cell of the images."""
    from transformers import BlipConfig, BlipTextModel, BlipVisionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BlipConfig(text_config=_TEXT, vision_config=_VISION)
        text = BlipTextModel(config.text_config, add_pooling_layer=False)
        make_twin(text.encoder, config.text_config)
        vision = BlipVisionModel(config.vision_config)
        return BlipNlvr(vision, text, Concepts(CONCEPTS, WIDTH)).eval()


def save_weights(net: BlipNlvr, path: Path, notes: Mapping[str, str]) -> None:
    """Write the weights in half precision, with notes beside them (safetensors)."""
    state = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    _write(state, path, notes)


def save_difference(net: BlipNlvr, base: BlipNlvr, path: Path, notes: Mapping[str, str]) -> None:
    """Write how the weights differ from those of ``base``, as 8 bits, one scale per row.

    Fine-tuning moves weights little, so this is closer to them than half precision is far.
    """
    state: dict[str, Tensor] = {}
    origin = base.state_dict()
    for name, tensor in net.state_dict().items():
        moved = tensor - origin[name]
        rows = moved.reshape(moved.shape[0], -1)
        scale = rows.abs().amax(dim=1) / 127
        state[f"{name}.scale"] = scale
        steps = rows / scale.clamp(min=1e-30)[:, None]
        state[name] = steps.round().to(torch.int8).reshape(moved.shape)
    _write(state, path, notes)


def load_weights(path: Path, base: BlipNlvr | None = None) -> tuple[BlipNlvr, dict[str, str]]:
    """Read a model and its notes; ``base`` for a file of differences."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        notes = dict(file.metadata())
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    net = digits_model()
    if base is not None:
        origin = base.state_dict()
        state = {n: t + _moved(state, n) for n, t in origin.items()}
    net.load_state_dict(state)
    return net, notes


def _moved(state: dict[str, Tensor], name: str) -> Tensor:
    steps, scale = state[name], state[f"{name}.scale"]
    return steps * scale.reshape(-1, *[1] * (steps.ndim - 1))


def _write(state: dict[str, Tensor], path: Path, notes: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    partial = path.with_name(f"{path.name}.partial")
    save_file(state, partial, metadata=dict(notes))
    partial.replace(path)


__all__ = ["CONCEPTS", "WIDTH", "digits_model", "load_weights", "save_difference", "save_weights"]
