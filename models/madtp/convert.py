"""Turn a published MADTP file into one that holds tensors only, under Hugging Face's names.

    python -m secateur.models.madtp.convert nlvr checkpoint_best.pth converted/

writes ``model.safetensors`` and ``madtp.json`` (sizes, and the temperature that the file was
trained to) into the directory; ``load_converted`` makes a model of them. Nothing but tensors and
plain numbers is unpickled.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from secateur.errors import BadInputError, SecateurError
from secateur.models.madtp.checkpoint import load_checked, load_published, read_published
from secateur.models.madtp.published_models import (
    HEAD_WIDTH,
    Sizes,
    Task,
    build,
    check_task,
    sizes_of,
)

_FILES = (_WEIGHTS, _SIZES) = ("model.safetensors", "madtp.json")


@dataclass(frozen=True, slots=True)
class Converted:
    """A model, and what was found beside it."""

    net: nn.Module
    temperature: float
    """That the file was trained to; 0 where it says none, as a dense one does."""
    left_out: tuple[str, ...] = ()
    """Tensors of the file that only training has."""


def convert(task: str, source: Path, directory: Path, head_width: int = HEAD_WIDTH) -> Converted:
    """Read a published file and write what it holds into ``directory``.

    Args:
        task: ``nlvr``, ``vqa``, ``caption``, ``retrieval`` (BLIP's) or ``clip``.
        source: the ``.pth`` file.
        directory: made if it is not there.
        head_width: of every attention head, which a state does not say.

    Raises:
        BadInputError: an unknown task, a file that holds more than tensors, or a file of another
            model, with the tensors that are missing and unexpected.
    """
    from safetensors.torch import save_file

    check_task(task)
    state = read_published(source)
    sizes = sizes_of(state, cast("Task", task), head_width)
    with torch.random.fork_rng(devices=[]):
        net = build(sizes)
    left_out = load_published(net, state)
    found = _temperature(source)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{_WEIGHTS}.partial"
    # tied weights are one tensor under two names, which the format does not take
    tensors = {name: tensor.clone().contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, partial)
    partial.replace(directory / _WEIGHTS)
    notes = {"schema": 1, "temperature": found, "sizes": sizes.to_json()}
    (directory / _SIZES).write_text(json.dumps(notes, indent=1) + "\n")
    return Converted(net, found, left_out)


def load_converted(directory: Path) -> Converted:
    """Make the model that ``convert`` wrote.

    Raises:
        BadInputError: no such files, or weights that are not those of the sizes beside them.
    """
    from safetensors.torch import load_file

    for name in _FILES:
        if not (directory / name).is_file():
            raise BadInputError("no converted model", where=str(directory), wanted=name)
    notes = json.loads((directory / _SIZES).read_text())
    with torch.random.fork_rng(devices=[]):
        net = build(Sizes.from_json(notes["sizes"]))
    load_checked(net, load_file(directory / _WEIGHTS))
    return Converted(net, float(notes["temperature"]))


def _temperature(source: Path) -> float:
    loaded = torch.load(source, map_location="cpu", weights_only=True)
    found = loaded.get("temperature", 0.0)
    return float(found) if isinstance(found, int | float) else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", help="nlvr, vqa, caption, retrieval or clip")
    parser.add_argument("source", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--head-width", type=int, default=HEAD_WIDTH)
    given = parser.parse_args(arguments)
    try:
        made = convert(given.task, given.source, given.directory, given.head_width)
    except SecateurError as error:
        print(error)  # noqa: T201 - what the command has to say
        return 1
    print(  # noqa: T201
        f"{len(made.net.state_dict())} tensors written to {given.directory}, temperature "
        f"{made.temperature:g}, {len(made.left_out)} of training only left out"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())


__all__ = ["Converted", "convert", "load_converted", "main"]
