"""Writing bundles: all the work happens beside the old one, then one step replaces it."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.archive import pack
from secateur.runtime.backend import Built
from secateur.runtime.bundle import FORCED_NAME, GOLDENS_NAME, MODEL_NAME, is_bundle, open_bundle
from secateur.runtime.files import (
    inside,
    partial_path,
    remove,
    remove_stale_partials,
    restore_previous,
    sha256_of,
    sync,
)
from secateur.runtime.files import replace as replace_path
from secateur.runtime.loader_script import LOADER, LOADER_NAME
from secateur.runtime.manifest import MANIFEST_NAME, EngineEntry, FileRecord, Manifest
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.sites import sites_from_metadata
from secateur.runtime.targets import parse_target
from secateur.runtime.versions import ONNXRUNTIME_REQUIREMENT

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(slots=True)
class Draft:
    """A bundle in the making: files in a hidden folder, and the manifest so far.

    Set ``manifest`` (``dataclasses.replace``) to say what files alone do not. What the model
    itself says (inputs, outputs, operators, sites) and the hashes are filled in at the end.
    """

    folder: Path
    manifest: Manifest

    def place(self, name: str, source: Path) -> Path:
        """Copy a file into the bundle under a name; the copy's path."""
        target = self._target(name)
        shutil.copyfile(source, target)
        return target

    def place_model(self, name: str, source: Path) -> Path:
        """Copy an ONNX file and its external data, whose paths must not leave its folder."""
        for location in sorted({data.location for data in read_outline(source).external}):
            self.place((Path(name).parent / location).as_posix(), source.parent / location)
        return self.place(name, source)

    def write(self, name: str, content: bytes | str) -> Path:
        """Write bytes or UTF-8 text under a name."""
        target = self._target(name)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def write_json(self, name: str, content: Any) -> Path:  # noqa: ANN401 (any JSON value)
        """Write a JSON value, keys sorted."""
        return self.write(name, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def add_engine(self, target: str, built: Built, *, requires: str) -> None:
        """Write a target's engine and side-car and enter them in the manifest."""
        folder = f"engines/{parse_target(target).folder}"
        self.write(f"{folder}/model.engine", built.engine)
        self.write_json(f"{folder}/model.engine.json", dict(built.record))
        entry = EngineEntry(f"{folder}/model.engine", f"{folder}/model.engine.json", requires)
        self.manifest = self.manifest.with_engine(target, entry)

    def add_forced_engine(self, target: str, built: Built) -> None:
        """Write the engine of the forced twin beside a target's own."""
        name = f"engines/{parse_target(target).folder}/forced.engine"
        self.write(name, built.engine)
        self.write_json(f"{name}.json", dict(built.record))
        entry = replace(self.manifest.engines[target], forced=name)
        self.manifest = self.manifest.with_engine(target, entry)

    def add_onnxruntime(self, *, optimisation: str) -> None:
        """Enter ONNX Runtime, which runs the model file itself, as a target.

        Place the forced twin before this, so that parity finds it.
        """
        forced = FORCED_NAME if (self.folder / FORCED_NAME).is_file() else ""
        options = {"optimisation": optimisation}
        entry = EngineEntry(MODEL_NAME, "", ONNXRUNTIME_REQUIREMENT, forced, options)
        self.manifest = self.manifest.with_engine("onnxruntime", entry)

    def _target(self, name: str) -> Path:
        target = inside(self.folder, name, where="the bundle")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A revised bundle shares its files with the old one until they are written anew.
        target.unlink(missing_ok=True)
        return target


@contextmanager
def new_bundle(path: Path | str) -> Generator[Draft]:
    """Yield an empty draft that becomes the bundle at ``path`` when the block ends well.

    ``path`` is a folder, or a zip when it ends in ``.zip``. An error in the block, a full disk
    or a kill at any moment leaves what was there before.
    """
    with _draft(Path(path)) as draft:
        yield draft


@contextmanager
def revised_bundle(path: Path | str) -> Generator[Draft]:
    """Yield a draft with all files of the bundle at ``path``, which it replaces at the end."""
    with open_bundle(path) as bundle, _draft(Path(path)) as draft:
        draft.manifest = bundle.manifest
        for name in bundle.manifest.files:
            target = draft.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(bundle.folder / name, target)
        yield draft


@contextmanager
def _draft(path: Path) -> Generator[Draft]:
    path = path.resolve()
    restore_previous(path)
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_partials(path)
    folder = partial_path(path)
    folder.mkdir()
    try:
        draft = Draft(folder, Manifest())
        yield draft
        _seal(draft)
        _publish(folder, path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise BadInputError(
            "there is no room for the bundle",
            where=str(path),
            got=str(error),
            next_step="free some space or choose another folder; what was there is unchanged",
        ) from error
    finally:
        if folder.exists():
            remove(folder)


def _check_replaceable(path: Path) -> None:
    """Refuse to put a bundle in the place of something that is not one."""
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not is_bundle(path):
        raise BadInputError(
            "there is something else where the bundle should go",
            where=str(path),
            wanted="a new path, an empty folder, or an older bundle",
            next_step="choose another path, or move what is there away",
        )


def _seal(draft: Draft) -> None:
    """Fill in what the model says and the hash of every file; write the manifest."""
    manifest = draft.manifest
    model = draft.folder / MODEL_NAME
    if model.is_file():
        outline = read_outline(model)
        manifest = replace(
            manifest,
            inputs=outline.inputs,
            outputs=outline.outputs,
            operators=outline.operators,
            sites=sites_from_metadata(outline.metadata),
        )
    if (draft.folder / GOLDENS_NAME).is_file():
        draft.write(LOADER_NAME, LOADER)
    names = sorted(
        file.relative_to(draft.folder).as_posix()
        for file in draft.folder.rglob("*")
        if file.is_file() and file.name != MANIFEST_NAME
    )
    files = {name: _record(draft.folder / name) for name in names}
    created = {**_own_versions(), **manifest.created_with}
    sealed = replace(manifest, files=files, created_with=created)
    (draft.folder / MANIFEST_NAME).write_text(sealed.to_json(), encoding="utf-8")


def _publish(folder: Path, path: Path) -> None:
    if path.suffix != ".zip":
        sync(folder)
        replace_path(folder, path)
        return
    archive = partial_path(path)
    try:
        pack(folder, archive)
        sync(archive)
        replace_path(archive, path)
    finally:
        archive.unlink(missing_ok=True)


def _record(file: Path) -> FileRecord:
    return FileRecord(sha256_of(file), file.stat().st_size)


def _own_versions() -> dict[str, str]:
    return {
        "secateur": version("secateur"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


__all__ = ["Draft", "new_bundle", "revised_bundle"]
