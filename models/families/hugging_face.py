"""Reading Hugging Face folders: configuration, safetensors weights, tokenizer. Never pickles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import BadInputError, MissingDependencyError

if TYPE_CHECKING:
    from torch import nn

    from secateur.models.families.core import Tokenizer

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        BadInputError: the file is not there, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInputError(
            f"no {path.name} in the model's folder",
            where=str(path.parent),
            wanted="a Hugging Face model folder: config.json and *.safetensors",
        ) from error
    except ValueError as error:
        raise BadInputError(f"{path.name} is not JSON", where=str(path), got=str(error)) from error
    if not isinstance(content, dict):
        raise BadInputError(f"{path.name} holds no object", where=str(path))
    return content


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors; what is pickled is never opened.

    Raises:
        BadInputError: only pickles, or no weights at all.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise BadInputError(
            "the weights are pickles, which can run any code when they are opened",
            where=str(folder),
            got=", ".join(pickles),
            wanted="*.safetensors",
            next_step="convert them where you trust them: model.save_pretrained(folder) of "
            "transformers writes safetensors",
        )
    raise BadInputError(
        "no weights in the model's folder", where=str(folder), wanted="*.safetensors"
    )


def load_model(folder: Path, class_name: str, **options: object) -> nn.Module:
    """Load a class of transformers from a folder, in float32 and with SDPA attention.

    SDPA is what the exporter knows as one operator: it becomes MatMul, Softmax, MatMul below
    opset 23 and ``Attention`` from there on.

    Raises:
        BadInputError: transformers has no such class, or the weights do not fit it.
        MissingDependencyError: transformers is not installed, or does not import.
    """
    check_weights(folder)
    transformers = _transformers()
    from safetensors import SafetensorError

    try:
        model_class = getattr(transformers, class_name)
    except AttributeError as error:
        raise BadInputError(
            f"transformers has no class {class_name!r}", where=str(folder / "config.json")
        ) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"transformers cannot import {class_name}",
            got=str(error.__cause__ or error),
            next_step="pip install 'secateur[hf]'; a torchvision of another torch version is a "
            "frequent cause: uninstall it or install the matching one",
        ) from error
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="sdpa",
                dtype="float32",
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInputError(
            "the model cannot be loaded", where=str(folder), got=str(error)[:500]
        ) from error
    if report["missing_keys"]:
        raise BadInputError(
            f"the weights of {class_name} are not complete",
            where=str(folder),
            got="missing " + ", ".join(sorted(report["missing_keys"])[:5]),
            next_step="load a checkpoint that was saved from this class",
        )
    loaded: nn.Module = model.eval()
    return loaded


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the folder's tokenizer.

    Raises:
        BadInputError: there is none, or its files are damaged.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise BadInputError(
            "no tokenizer in the model's folder",
            where=str(folder),
            wanted="one of " + ", ".join(_TOKENIZER_FILES),
            next_step="save it there: tokenizer.save_pretrained(folder)",
        )
    try:
        tokenizer: Tokenizer = _transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            "the tokenizer cannot be loaded",
            where=str(folder),
            got=f"{type(error).__name__}: {error}"[:300],
            next_step="save it again: tokenizer.save_pretrained(folder)",
        ) from error
    return tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and its report of unused weights off the terminal."""
    from transformers.utils import logging

    level, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if progress:
            logging.enable_progress_bar()


def _transformers() -> Any:  # noqa: ANN401 - an optional module
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "transformers is needed to load a Hugging Face model",
            next_step="pip install 'secateur[hf]'",
        ) from error
    return transformers


__all__ = ["check_weights", "load_model", "load_tokenizer", "read_json"]
