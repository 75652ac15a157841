"""What loading a model gives, and the table of families that can be loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from secateur.registry import Registry

Arrays = dict[str, np.ndarray]
Config = Mapping[str, object]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    pad_token_id: int | None

    def __call__(self, text: list[str], **options: object) -> Mapping[str, object]:
        """Return lists of ids and masks by input name."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the tokens as text."""
        ...


@dataclass(frozen=True, slots=True)
class FamilyModel:
    """A module that is ready to be exported, and how it is fed.

    ``inputs`` are example inputs by argument name, ``dynamic`` names the axes that vary,
    ``prepare`` turns texts or images into input arrays.
    """

    net: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    prepare: Callable[[list[object]], Arrays]
    tokenizer: Tokenizer | None


Loader = Callable[[Path, Config, str], FamilyModel]

FAMILIES: Registry[Loader] = Registry("model family")
"""Loaders by the ``model_type`` of a Hugging Face configuration.

``load(folder, config, part)``: ``part`` names a tower of a model that has several, else "".
"""


class Adopter(nn.Module):
    """A wrapper whose parameters and sites keep the names they have in what it wraps.

    Held as a child, the wrapped model would put its attribute's name before every name that
    the user knows. Here its children become the wrapper's own, and the model itself is kept
    where ``nn.Module`` does not look.
    """

    _adopted: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        object.__setattr__(self, "_adopted", model)


__all__ = ["FAMILIES", "Adopter", "Arrays", "Config", "FamilyModel", "Loader", "Tokenizer"]
