"""Weights: Hugging Face directories, published MADTP files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.published_names import (
    CLIP_TEXT,
    CLIP_VISION,
    VISION,
    renamed,
    split_queries,
)
from secateur.models.madtp.tasks import BlipCaption, BlipRetrieval, BlipVqa, ClipRetrieval

_CLASSES = {
    "vqa": ("BlipForQuestionAnswering", BlipVqa),
    "caption": ("BlipForConditionalGeneration", BlipCaption),
    "retrieval": ("BlipForImageTextRetrieval", BlipRetrieval),
    "clip": ("CLIPModel", ClipRetrieval),
}
_TRAINING_ONLY = re.compile(r"_m\.|_queue$|^temp$|^logit_scale$|position_ids$")


def from_hugging_face(directory: Path, task: str, concepts: Concepts) -> nn.Module:
    """Wrap a checkpoint in ``directory`` (safetensors only, nothing is fetched).

    Args:
        directory: with ``config.json`` and ``model.safetensors``.
        task: ``vqa``, ``caption``, ``retrieval`` or ``clip``.
        concepts: new ones; a dense checkpoint has none, they are trained while it is pruned.

    Raises:
        BadInputError: unknown task, no such files, or a checkpoint of another model.
    """
    import transformers

    if task not in _CLASSES:
        raise BadInputError("unknown task", got=task, wanted=", ".join(_CLASSES))
    name, wrapper = _CLASSES[task]
    for file in ("config.json", "model.safetensors"):
        if not (directory / file).is_file():
            raise BadInputError("no checkpoint", where=str(directory), wanted=file)
    kind = getattr(cast("Any", transformers), name)
    model, report = kind.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    _refuse(str(directory), report["missing_keys"], report["unexpected_keys"])
    return wrapper(model, concepts).eval()


def read_published(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published ``.pth``, unpickling nothing but tensors.

    Raises:
        BadInputError: the file is missing, holds other objects, or no tensors by name.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInputError(
            "not a checkpoint of tensors", where=str(path), got=str(error).split("\n")[0]
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise BadInputError(
            "not a checkpoint of tensors",
            where=str(path),
            got=type(state).__name__,
            wanted="tensors by name, or a dictionary with them under 'model'",
        )
    return state


def load_published(net: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Fill a task model from a published MADTP (or dense) state; return what was not needed.

    What only training has (momentum copies, queues) is left out. A state without concept tokens
    is that of a dense model; the model keeps its own, and CLIP's projections to them.

    Raises:
        BadInputError: names the tensors that are missing, unexpected or of another shape.
    """
    skipped = tuple(name for name in state if _TRAINING_ONLY.search(name))
    kept = {name: tensor for name, tensor in state.items() if name not in skipped}
    made = _clip_names(kept) if isinstance(net, ClipRetrieval) else _blip_names(kept)
    if "concepts.weight" not in made:
        own = re.compile(r"concepts\.weight$|(image|text)_queries\.")
        made = {n: t for n, t in net.state_dict().items() if own.match(n)} | made
    load_checked(net, made)
    return skipped


def _blip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "visual_encoder."
    vision = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    made = {f"vision.{name}": tensor for name, tensor in renamed(vision, VISION).items()}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            made[_ours(name)] = tensor
    return made


def _clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "visual."
    vision = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    text = {n: t for n, t in state.items() if not n.startswith(prefix)}
    made: dict[str, Tensor] = {}
    for part, rules, queries in (
        (vision, CLIP_VISION, "image_queries"),
        (text, CLIP_TEXT, "text_queries"),
    ):
        rest, found = split_queries(renamed(part, rules))
        made |= {f"{queries}.{name}": tensor for name, tensor in found.items()}
        for name, tensor in rest.items():
            made[_ours(re.sub(r"^(vision|text)_model\.", r"\1.", name))] = tensor
    return made


def _ours(name: str) -> str:
    if name == "space_dict":
        return "concepts.weight"
    return re.sub(r"^text_encoder\.", "text.", name)


def load_checked(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state that has to fit exactly.

    Raises:
        BadInputError: names the tensors that are missing, unexpected or of another shape.
    """
    wanted = net.state_dict()
    other = [
        f"{name} {list(state[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if other:
        raise BadInputError(
            "the checkpoint is of another size",
            where=type(net).__name__,
            got=_some(other),
            next_step="build the model with the sizes of the checkpoint",
        )
    missing, unexpected = set(wanted) - set(state), set(state) - set(wanted)
    _refuse(type(net).__name__, missing, unexpected)
    net.load_state_dict(dict(state))


def _refuse(where: str, missing: set[str], unexpected: set[str]) -> None:
    if missing or unexpected:
        raise BadInputError(
            "the checkpoint is of another model",
            where=where,
            got=f"missing: {_some(sorted(missing))}; unexpected: {_some(sorted(unexpected))}",
            next_step="check the task, and that the file is that of the model",
        )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + rest) or "none"


__all__ = ["from_hugging_face", "load_checked", "load_published", "read_published"]
