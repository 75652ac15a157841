"""The user's inputs as arrays: one sample each, padded only when a batch is asked for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.errors import BadInputError
from secateur.recipe import Data
from secateur.runtime.backend import Array, Arrays
from secateur.workflow.image_files import read_images

if TYPE_CHECKING:
    from secateur.workflow.sources import Source


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs of a model, one mapping of name to (1, ...) array a sample.

    ``padding`` gives the value that fills an input up to the longest sample of a batch, and
    ``beside`` what selections are handed of each sample, which the dense model does not take.
    """

    arrays: tuple[dict[str, Array], ...]
    labels: tuple[str, ...]
    pieces: tuple[tuple[str, ...], ...] = ()
    """The tokens of each sample as text; empty when the inputs are no texts."""
    padding: Mapping[str, float] = field(default_factory=dict)
    beside: tuple[dict[str, Array], ...] = ()

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def sha256(self) -> str:
        """Hash of names, types, shapes and numbers of all samples, in their order."""
        digest = hashlib.sha256()
        for number in range(len(self)):
            for name, array in sorted(self.whole(number).items()):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def longest(self) -> int:
        """Largest second axis of any input: the tokens of the longest sample."""
        sizes = (a.shape[1] for arrays in self.arrays for a in arrays.values() if a.ndim > 1)
        return max(sizes, default=1)

    def subset(self, indices: Sequence[int]) -> Samples:
        """Some of the samples, in the order given."""
        pieces = tuple(self.pieces[i] for i in indices) if self.pieces else ()
        beside = tuple(self.beside[i] for i in indices) if self.beside else ()
        arrays = tuple(self.arrays[i] for i in indices)
        labels = tuple(self.labels[i] for i in indices)
        return replace(self, arrays=arrays, labels=labels, pieces=pieces, beside=beside)

    def whole(self, number: int) -> dict[str, Array]:
        """One sample with what selections are handed."""
        return self.arrays[number] | (self.beside[number] if self.beside else {})

    def batch(self, indices: Sequence[int]) -> dict[str, Array]:
        """Some samples as one batch, padded at the end to the longest of them."""
        return self._stacked([self.arrays[index] for index in indices])

    def batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """All samples (or the first ``limit``) in order, ``size`` at a time."""
        for indices in self._ranges(size, limit):
            yield self.batch(indices)

    def whole_batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """The same with what selections are handed, as the shipped model takes it."""
        for indices in self._ranges(size, limit):
            yield self._stacked([self.whole(index) for index in indices])

    def _ranges(self, size: int, limit: int | None) -> Iterator[range]:
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, size):
            yield range(start, min(start + size, count))

    def _stacked(self, chosen: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        return {name: self._stack(name, [a[name] for a in chosen]) for name in chosen[0]}

    def _stack(self, name: str, arrays: Sequence[Array]) -> Array:
        shape = np.max([array.shape for array in arrays], axis=0)
        fill = self.padding.get(name, 0)
        padded = []
        for array in arrays:
            missing = [(0, int(size - have)) for size, have in zip(shape, array.shape, strict=True)]
            if any(after for _, after in missing) and name not in self.padding:
                raise BadInputError(
                    f"samples of input {name!r} have different shapes",
                    got=f"{list(array.shape)} beside {shape.tolist()}",
                    wanted="one shape; only tokenised texts are padded",
                )
            padded.append(np.pad(array, missing, constant_values=fill))
        return np.concatenate(padded)


def load_samples(data: Data, model: Source) -> Samples:
    """Read what the recipe's ``data`` names.

    Args:
        data: one of texts, images, npz, loader.
        model: says how texts and pictures become its inputs.

    Raises:
        BadInputError: no samples, a name that is missing, texts without a tokenizer, or
            pictures for a model that does not say how it takes them.
        MissingDependencyError: pictures without Pillow.
    """
    if data.texts is not None:
        samples = _from_texts(data, model)
    elif data.images is not None:
        samples = _from_images(data, model)
    elif data.npz is not None:
        samples = _from_npz(data.npz, data.limit)
    else:
        samples = _from_loader(data.loader or "", data.limit)
    where = str(data.texts or data.images or data.npz or data.loader)
    if not len(samples):
        raise BadInputError("the data holds no samples", where=where)
    if missing := [name for name in model.inputs if name not in samples.arrays[0]]:
        raise BadInputError(
            f"the data has no array for input {missing[0]!r}",
            where=where,
            got=", ".join(samples.arrays[0]),
            wanted=", ".join(model.inputs),
        )
    return samples


def named_data(name: str) -> Data:
    """Read a kind off a name: texts, an .npz, a folder of texts or pictures, a loader function.

    Raises:
        BadInputError: no such file, or none of these kinds.
    """
    path = Path(name)
    if ":" in name or path.suffix == ".py":
        return Data(loader=name)
    if path.is_dir():
        has_texts = next(path.rglob("*.txt"), None) is not None
        return Data(texts=path) if has_texts else Data(images=path)
    if not path.is_file():
        raise BadInputError("no such data", where=name, wanted="a file, a folder, or FILE.py:NAME")
    if path.suffix == ".npz":
        return Data(npz=path)
    if path.suffix == ".txt":
        return Data(texts=path)
    raise BadInputError(
        "the data is of no kind that is known",
        where=name,
        got=path.suffix or "a name without an ending",
        wanted=".txt, .npz, .py:FUNCTION, or a folder of texts or pictures",
    )


def example_samples(inputs: Arrays) -> Samples:
    """A model's own example inputs as samples, for a recipe without data."""
    count = len(next(iter(inputs.values())))
    split = tuple({k: np.asarray(v)[i : i + 1] for k, v in inputs.items()} for i in range(count))
    return Samples(split, tuple(f"example {i}" for i in range(count)))


def _from_texts(data: Data, model: Source) -> Samples:
    inputs, tokenizer = model.inputs, model.tokenizer
    if tokenizer is None:
        raise BadInputError(
            "texts need the model's tokenizer, and this model has none",
            where=str(data.texts),
            next_step="give arrays instead: data: {npz: ...} or data: {loader: file.py:function}",
        )
    lines = read_texts(Path(data.texts or ""))[: data.limit]
    encoded: Mapping[str, Any] = tokenizer(lines, truncation=True, max_length=data.max_length)
    arrays = tuple(
        {name: np.asarray([encoded[name][i]], np.int64) for name in encoded if name in inputs}
        for i in range(len(lines))
    )
    pieces = tuple(tuple(tokenizer.convert_ids_to_tokens(ids)) for ids in encoded["input_ids"])
    pad = tokenizer.pad_token_id or 0
    padding = {name: float(pad if name == "input_ids" else 0) for name in inputs}
    return Samples(arrays, tuple(lines), pieces, padding)


def _from_images(data: Data, model: Source) -> Samples:
    prepare = model.prepare
    if prepare is None or model.tokenizer is not None:
        raise BadInputError(
            "the model does not say how it takes pictures",
            where=str(data.images),
            next_step="give arrays instead: data: {npz: ...} or data: {loader: file.py:function}",
        )
    labels, arrays = [], []
    for label, picture in read_images(Path(data.images or ""), data.limit):
        labels.append(label)
        arrays.append(dict(prepare([picture])))
    return Samples(tuple(arrays), tuple(labels))


def read_texts(path: Path) -> list[str]:
    """The lines of a text file, or of all .txt files of a folder in the order of their names.

    Empty lines and headings (#) are left out.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    texts = (file.read_text(encoding="utf-8") for file in files)
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays by name; a file with pickled objects is refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInputError(
            "the file holds no NumPy arrays by name",
            where=str(path),
            got=str(error).split("\n")[0],
            wanted="an .npz file written by numpy.savez",
        ) from None


def _from_npz(path: Path, limit: int) -> Samples:
    arrays = read_npz(path)
    if len(sizes := {len(array) if array.ndim else 0 for array in arrays.values()}) > 1:
        raise BadInputError(
            "the arrays hold different numbers of samples",
            where=str(path),
            got=", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()),
            wanted="the same first axis everywhere",
        )
    count = min(sizes.pop() if sizes else 0, limit)
    split = tuple({name: a[i : i + 1] for name, a in arrays.items()} for i in range(count))
    return Samples(split, tuple(f"sample {i}" for i in range(count)))


def _from_loader(spec: str, limit: int) -> Samples:
    """``file.py:function`` as Polygraphy's loader scripts: yields dicts of name to array."""
    arrays: list[dict[str, Array]] = []
    for batch in load_function(spec)():
        named = {str(name): np.asarray(array) for name, array in batch.items()}
        count = len(next(iter(named.values())))
        arrays += [{name: a[i : i + 1] for name, a in named.items()} for i in range(count)]
        if len(arrays) >= limit:
            break
    kept = tuple(arrays[:limit])
    return Samples(kept, tuple(f"sample {i}" for i in range(len(kept))))


def load_function(spec: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
    """The function that ``file.py:function``, ``file.py`` or ``pkg.module:function`` names.

    A script alone means its ``load_data``, as for Polygraphy.
    """
    module_name, _, name = (f"{spec}:load_data" if spec.endswith(".py") else spec).rpartition(":")
    try:
        module = _script(module_name) if module_name.endswith(".py") else _module(module_name)
        function: Callable[[], Iterable[Mapping[str, Any]]] = getattr(module, name)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise BadInputError(
            "the loader function cannot be found",
            where=spec,
            got=str(error),
            wanted="file.py:function or pkg.module:function, without arguments",
        ) from None
    return function


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _script(path: str) -> ModuleType:
    found = importlib.util.spec_from_file_location("secateur_loader", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python script")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def read_arrays(path: Path) -> dict[str, Array]:
    """Inputs of one run: an .npz, or JSON with nested lists by name."""
    if path.suffix == ".npz":
        return read_npz(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): np.asarray(values) for name, values in record.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInputError(
            "the inputs cannot be read",
            where=str(path),
            got=str(error),
            wanted="an .npz, or a .json with nested lists by input name",
        ) from None


__all__ = [
    "Samples",
    "example_samples",
    "load_function",
    "load_samples",
    "named_data",
    "read_arrays",
    "read_npz",
    "read_texts",
]
