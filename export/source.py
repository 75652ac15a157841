"""Where a model comes from: a module, a Hugging Face folder or name, a function, or ONNX."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError, MissingDependencyError
from secateur.export.onnx_file import from_onnx

if TYPE_CHECKING:  # an .onnx file is opened without torch
    from torch import Tensor, nn

    from secateur.models.families import Tokenizer

_WANTED = (
    "an .onnx file, a Hugging Face folder or hub name, package.module:function, "
    "or package:NAME/FOLDER"
)
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and how it is fed.

    Exactly one of ``net`` (to be exported) and ``model`` (came as ONNX) is there. ``inputs``
    and ``dynamic`` are what ``from_torch`` takes; ``prepare`` turns texts or images into
    arrays, where the family knows how.
    """

    source: str
    net: nn.Module | None
    model: ir.Model | None
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    prepare: Callable[[list[object]], dict[str, np.ndarray]] | None
    tokenizer: Tokenizer | None


def load(spec: str | Path | nn.Module) -> LoadedModel:
    """Load a model from what a user would write down.

    ``folder#part`` names a tower of a model that has several.

    Raises:
        BadInputError: nothing is there, the model is of no known family, or its weights are
            pickles.
        MissingDependencyError: a package that has to be installed first.
    """
    if not isinstance(spec, str | Path):
        return LoadedModel(type(spec).__name__, spec, None, {}, {}, None, None)
    text = str(spec)
    if text.startswith("package:"):
        text = str(_package_path(text.removeprefix("package:")))
    location, _, part = text.partition("#")
    path = Path(location)
    if path.is_dir():
        return _from_folder(path, part)
    if path.suffix == ".onnx" or path.is_file():
        return LoadedModel(text, None, from_onnx(path), {}, {}, None, None)
    if ":" in text:
        return _from_function(text)
    return _from_folder(_from_hub(location), part)


def _from_folder(folder: Path, part: str) -> LoadedModel:
    from secateur.models.families import FAMILIES
    from secateur.models.families.hugging_face import check_weights, read_json

    config = read_json(folder / "config.json")
    check_weights(folder)
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise BadInputError(
            f"no family for models of type {model_type!r}",
            where=str(folder / "config.json"),
            wanted="one of " + ", ".join(sorted(FAMILIES)),
            next_step="write package.module:function that returns (module, inputs, dynamic)",
        )
    found = FAMILIES[model_type](folder, config, part)
    return LoadedModel(
        str(folder), found.net, None, found.inputs, found.dynamic, found.prepare, found.tokenizer
    )


def _package_path(text: str) -> Path:
    """Find a file inside an installed package without importing the package."""
    name, _, inner = text.partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            f"package {name!r} is not installed",
            where=f"package:{text}",
            next_step=f"pip install {name.replace('_', '-')}",
        )
    root = Path(found.submodule_search_locations[0]).resolve()
    path = (root / inner).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise BadInputError(
            "no such file in the package", where=f"package:{text}", got=inner or "no path"
        )
    return path


def _from_function(spec: str) -> LoadedModel:
    """Call ``package.module:function``, which returns (module, inputs[, dynamic])."""
    from torch import Tensor, nn

    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise BadInputError(
            "cannot import the model's module", where=spec, got=str(error), wanted=_WANTED
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise BadInputError(f"module {module_name!r} has no function {name!r}", where=spec)
    made = function()
    parts = made if isinstance(made, tuple) else (made,)
    fits = (
        len(parts) in {2, 3}
        and isinstance(parts[0], nn.Module)
        and isinstance(parts[1], dict)
        and all(isinstance(tensor, Tensor) for tensor in parts[1].values())
    )
    if not fits:
        raise BadInputError(
            "the function does not return a model and its example inputs",
            where=spec,
            got=", ".join(type(part).__name__ for part in parts),
            wanted="(nn.Module, {argument name: tensor}) or (..., ..., {argument: {axis: name}})",
        )
    dynamic = parts[2] if len(parts) == 3 else {}
    return LoadedModel(spec, parts[0], None, parts[1], dynamic, None, None)


def _from_hub(name: str) -> Path:
    """Download (or find in the cache) the safetensors and settings of a hub model."""
    owner, _, repository = name.partition("/")
    if not repository or "/" in repository or not owner or name.startswith((".", "~")):
        raise BadInputError("no model found", where=name, wanted=_WANTED)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependencyError(
            "huggingface_hub is needed to load a model by name",
            next_step="pip install 'secateur[hf]'",
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadInputError(
            f"no folder {name!r} here, and the hub does not give a model of that name",
            where=name,
            got=str(error).splitlines()[0],
            wanted=_WANTED,
            next_step="check the name and the network, or download the folder",
        ) from error


__all__ = ["LoadedModel", "load"]
