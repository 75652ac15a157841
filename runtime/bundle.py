"""Bundles: a folder or a zip with a model, its engines and the proof that they are right.

A bundle holds ``model.onnx`` (and its external data), ``engines/<target>/``, ``recipe.yaml``,
``goldens.npz``, ``parity.json``, ``bench.json``, ``report.html`` and ``manifest.json``.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from secateur.errors import BadInputError
from secateur.runtime.archive import extract
from secateur.runtime.files import inside, restore_previous, sha256_of
from secateur.runtime.manifest import MANIFEST_NAME, EngineEntry, FileRecord, Manifest
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.targets import parse_target
from secateur.runtime.versions import check_requirement

MODEL_NAME = "model.onnx"
FORCED_NAME = "model.forced.onnx"
DENSE_NAME = "model.dense.onnx"
GOLDENS_NAME = "goldens.npz"
PARITY_NAME = "parity.json"
BENCH_NAME = "bench.json"
REPORT_NAME = "report.html"
RECIPE_NAME = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened and checked bundle; ``folder`` holds its files, unpacked if it is a zip.

    A context manager, which removes what was unpacked; so does garbage collection.
    """

    path: Path
    folder: Path
    manifest: Manifest
    unpacked: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was unpacked from a zip."""
        if self.unpacked is not None:
            self.unpacked.cleanup()

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files; BadInputError when it has none of that name."""
        if name not in self.manifest.files:
            raise BadInputError(
                f"the bundle holds no {name}",
                where=str(self.path),
                got=", ".join(self.manifest.files),
                next_step="build the bundle again with the step that writes this file",
            )
        return self.folder / name

    @property
    def model(self) -> Path:
        """The ONNX model."""
        return self.file(MODEL_NAME)

    def engine(self, target: str) -> EngineEntry:
        """The entry of a target that this machine's library fits.

        Raises BadInputError for a target that was not built or another version of its
        library, MissingDependencyError for no library. No backend is imported.
        """
        parsed = parse_target(target)
        name = "onnxruntime" if parsed.backend == "onnxruntime" else str(parsed)
        entries = self.manifest.engines
        if name not in entries:
            name = _only_of_backend(name, entries)
        if name not in entries:
            raise BadInputError(
                f"the bundle has no engine for target {target!r}",
                where=str(self.path),
                wanted="one of " + (", ".join(entries) or "none: it was built for no target"),
                next_step=f"python -m secateur.runtime build {self.path} --target {target}",
            )
        entry = entries[name]
        where = f"target {name!r} of {self.path}"
        check_requirement(parse_target(name).backend, entry.requires, where=where)
        if entry.record:
            self._check_origin(entry, where)
        return entry

    def _check_origin(self, entry: EngineEntry, where: str) -> None:
        """An engine must be of this very model: another with the same shapes runs, wrongly."""
        record = json.loads(self.file(entry.record).read_text(encoding="utf-8"))
        for name, digest in record.get("onnx_sha256", {}).items():
            if name not in self.manifest.files or self.manifest.files[name].sha256 != digest:
                raise BadInputError(
                    "the engine was built from another model than the bundle holds",
                    where=where,
                    got=f"{name} with sha256 {digest}",
                    next_step="build it again: python -m secateur.runtime build BUNDLE",
                )


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle and check its schema, its paths and the sha256 of every file.

    Raises BadInputError that says what does not fit. No backend is imported or touched.
    """
    path = Path(path)
    restore_previous(path)
    if not path.exists():
        raise BadInputError(
            "the bundle does not exist",
            where=str(path),
            next_step="check the path; secateur deploy RECIPE.yaml makes a bundle",
        )
    if path.is_dir():
        return _checked(path, path, None)
    unpacked = tempfile.TemporaryDirectory(prefix="secateur-bundle-")
    try:
        extract(path, Path(unpacked.name))
        return _checked(path, Path(unpacked.name), unpacked)
    except BaseException:
        unpacked.cleanup()
        raise


def is_bundle(path: Path) -> bool:
    """Whether a folder or zip holds a manifest; says nothing about whether it is whole."""
    if path.is_dir():
        return (path / MANIFEST_NAME).is_file()
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return MANIFEST_NAME in archive.namelist()


def _checked(path: Path, folder: Path, unpacked: tempfile.TemporaryDirectory[str] | None) -> Bundle:
    file = folder / MANIFEST_NAME
    if not file.is_file():
        raise BadInputError(
            "this is not a bundle",
            where=str(path),
            wanted=f"a folder or zip with a {MANIFEST_NAME}",
            next_step="give the folder or zip that secateur build or deploy wrote",
        )
    text = file.read_bytes().decode("utf-8", errors="replace")
    manifest = Manifest.from_json(text, where=f"{path}: {MANIFEST_NAME}")
    for name, record in manifest.files.items():
        _check_file(path, folder, name, record=record)
    _check_external(path, folder, manifest.files)
    return Bundle(path, folder, manifest, unpacked)


def _check_file(path: Path, folder: Path, name: str, *, record: FileRecord) -> None:
    where = f"{name} in {path}"
    file = inside(folder, name, where=where)
    again = "copy the bundle again, or build it again"
    if not file.is_file():
        raise BadInputError("a file of the bundle is missing", where=where, next_step=again)
    size_bytes = file.stat().st_size
    if size_bytes != record.size_bytes:
        raise BadInputError(
            "a file of the bundle has another size than when it was made",
            where=where,
            got=f"{size_bytes} bytes",
            wanted=f"{record.size_bytes} bytes",
            next_step=again,
        )
    digest = sha256_of(file)
    if digest != record.sha256:
        raise BadInputError(
            "a file of the bundle was changed after it was made",
            where=where,
            got=f"sha256 {digest}",
            wanted=f"sha256 {record.sha256}",
            next_step=again,
        )


def _check_external(path: Path, folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Every model's external data is a file of the bundle, so its hash was checked too."""
    for name in files:
        if not name.endswith(".onnx"):
            continue
        for data in read_outline(folder / name).external:
            location = (Path(name).parent / data.location).as_posix()
            if location not in files:
                raise BadInputError(
                    "external data of a model is not listed in the manifest",
                    where=f"{name} in {path}, tensor {data.tensor!r}",
                    got=repr(data.location),
                    wanted="one of " + ", ".join(files),
                    next_step="build the bundle again",
                )


def _only_of_backend(name: str, entries: Mapping[str, EngineEntry]) -> str:
    """``rtx`` means the bundle's only ``rtx:...`` engine when there is exactly one."""
    fitting = [entry for entry in entries if parse_target(entry).backend == name]
    return fitting[0] if len(fitting) == 1 else name


__all__ = [
    "BENCH_NAME",
    "DENSE_NAME",
    "FORCED_NAME",
    "GOLDENS_NAME",
    "MODEL_NAME",
    "PARITY_NAME",
    "RECIPE_NAME",
    "REPORT_NAME",
    "Bundle",
    "is_bundle",
    "open_bundle",
]
