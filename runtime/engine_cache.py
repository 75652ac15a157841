"""Engines that were built before, found again by all that decides what an engine is.

An entry is a folder named by the hash of its ingredients: model and weights, profiles, versions,
GPU, flags. It is written beside its place and renamed, and its engine's hash is checked whenever
it is read, so that a killed build, a full disk or a flipped bit costs a build and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from secateur.errors import MissingDependencyError
from secateur.runtime import cuda_driver
from secateur.runtime.backend import Built, EngineSpec
from secateur.runtime.file_lock import locked, locked_if_free
from secateur.runtime.files import (
    partial_path,
    remove,
    remove_stale_partials,
    replace,
    sha256_of,
    sync,
)
from secateur.runtime.onnx_outline import ModelOutline
from secateur.runtime.versions import installed_version

logger = logging.getLogger(__name__)

Ingredients: TypeAlias = Mapping[str, Any]

CACHE_VARIABLE = "SECATEUR_CACHE"
OFF = "off"
DEFAULT_MAX_BYTES = 16 << 30

_ENTRY, _ENGINE = "entry.json", "engine"
# What decides how long a build may take, not what it makes.
_NOT_OF_THE_ENGINE = {"timeout_s"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """An engine, whether it was found, and why or why not, in words."""

    built: Built
    is_hit: bool
    why: str


@dataclass(frozen=True, slots=True)
class EngineCache:
    """A folder of engines; above ``max_bytes`` those that were not used longest go."""

    folder: Path
    max_bytes: int = DEFAULT_MAX_BYTES

    def fetch(self, ingredients: Ingredients, build: Callable[[], Built]) -> Fetched:
        """The engine made from exactly these ingredients, or one that is built now and kept.

        Of two processes that ask for one engine at once the second waits and finds it. What
        ``build`` raises goes through. A folder that cannot be written is no error: the engine
        is built and not kept, and ``why`` says so.
        """
        key = key_of(ingredients)
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self._lock(key), partial(_say_waiting, key)))
                found, damage = self._read(key, ingredients)
                why = damage or self._why_missed(ingredients)
            except OSError as error:
                logger.warning("the engine cache cannot be used: %s", error)
                return Fetched(build(), False, f"built; the cache cannot be used: {error}")
            if found is not None:
                return Fetched(found, True, f"from the cache, {key[:12]}")
            logger.info("engine cache: %s", why)
            return self._build(key, ingredients, build, why)

    def _build(
        self, key: str, ingredients: Ingredients, build: Callable[[], Built], why: str
    ) -> Fetched:
        built = build()
        try:
            self._store(key, ingredients, built)
        except OSError as error:
            logger.warning("the engine is not kept: %s", error)
            return Fetched(built, False, f"built: {why}; not kept: {error}")
        return Fetched(built, False, f"built: {why}")

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _read(self, key: str, ingredients: Ingredients) -> tuple[Built | None, str]:
        """The entry, or what is wrong with it ("" where there is none)."""
        folder = self.folder / key
        if not folder.is_dir():
            return None, ""
        try:
            found = _load(folder, ingredients)
            os.utime(folder / _ENTRY)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("a damaged entry of the engine cache is built again: %s", error)
            remove(folder)
            return None, f"the entry was damaged ({error})"
        return found, ""

    def _store(self, key: str, ingredients: Ingredients, built: Built) -> None:
        folder = self.folder / key
        remove_stale_partials(folder)
        unfinished = partial_path(folder)
        try:
            unfinished.mkdir()
            (unfinished / _ENGINE).write_bytes(built.engine)
            entry = {"ingredients": dict(ingredients), "record": dict(built.record)}
            (unfinished / _ENTRY).write_text(json.dumps(entry, indent=1), encoding="utf-8")
            sync(unfinished)
            replace(unfinished, folder)
        finally:
            if unfinished.exists():
                remove(unfinished)
        self._make_room(key)

    def _make_room(self, spared: str) -> None:
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        for _, size, folder in entries:
            if total <= self.max_bytes:
                return
            if folder.name == spared:
                continue
            with locked_if_free(self._lock(folder.name)) as is_held:
                if is_held:
                    logger.info("engine cache: %s is removed to make room", folder.name)
                    remove(folder)
                    total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When each entry was used last, its size, its folder."""
        for file in self.folder.glob(f"*/{_ENTRY}"):
            size = sum(part.stat().st_size for part in file.parent.iterdir())
            if not file.parent.name.startswith("."):
                yield file.stat().st_mtime, size, file.parent

    def _why_missed(self, wanted: Ingredients) -> str:
        """What is different in the entry that is nearest to what was asked for."""
        nearest: list[str] | None = None
        for _, _, folder in self._entries():
            try:
                found = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))["ingredients"]
            except (OSError, ValueError, KeyError):
                continue  # it is told of when it is asked for
            different = _differences(found, wanted)
            if nearest is None or len(different) < len(nearest):
                nearest = different
        if nearest is None:
            return "the cache is empty"
        if any(text.startswith("model") for text in nearest):
            return "no engine of this model and weights is in the cache"
        return "the nearest engine in the cache has another " + "; another ".join(nearest)


def engine_cache(text: str) -> EngineCache | None:
    """The cache that a person names: a folder, ``off`` for none, or "" for the usual one.

    The usual one is the folder in the variable SECATEUR_CACHE (which may be ``off``), else
    ``secateur/engines`` in the user's cache folder.
    """
    chosen = text or os.environ.get(CACHE_VARIABLE, "")
    if chosen == OFF:
        return None
    return EngineCache(Path(chosen).expanduser() if chosen else _user_cache() / "secateur/engines")


def ingredients(
    backend: str, outline: ModelOutline, model: Path, *, spec: EngineSpec
) -> Ingredients:
    """All that decides what an engine is, as JSON values.

    TensorRT builds for the GPU of the machine, so that the GPU counts; TensorRT-RTX builds for
    the compute capabilities in the specification.
    """
    files = [model.name, *sorted({data.location for data in outline.external})]
    settings = {k: v for k, v in spec.to_json().items() if k not in _NOT_OF_THE_ENGINE}
    found = {
        "model": {name: sha256_of(model.parent / name) for name in files},
        **settings,
        "library": f"{backend} {installed_version(backend) or 'of the system'}",
        "secateur": version("secateur"),
        "platform": f"{platform.system()} {platform.machine()}",
        "GPU": _device() if backend == "tensorrt" else "any of compute_capabilities",
    }
    return dict(json.loads(json.dumps(found)))


def key_of(found: Ingredients) -> str:
    """Name of the entry: the sha256 of the ingredients."""
    text = json.dumps(dict(found), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _load(folder: Path, ingredients: Ingredients) -> Built:
    """Read and check an entry; ValueError, or what reading it raises, for a damaged one."""
    entry = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
    if entry["ingredients"] != dict(ingredients):
        raise ValueError("its ingredients are not those of its name")
    record: dict[str, Any] = entry["record"]
    if sha256_of(folder / _ENGINE) != record["engine_sha256"]:
        raise ValueError("its engine has another hash than when it was written")
    return Built((folder / _ENGINE).read_bytes(), record)


def _say_waiting(key: str) -> None:
    logger.info("waiting for another process that builds %s", key[:12])


def _differences(found: Ingredients, wanted: Ingredients) -> list[str]:
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return [
        f"{name} ({found.get(name)} there, {wanted[name]} here)"
        if isinstance(wanted[name], str)
        else name
        for name in names
    ]


def _device() -> str:
    """The GPU, or that there is none: such a build fails, with its own message."""
    try:
        return cuda_driver.describe_device()
    except MissingDependencyError:
        return "none"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


__all__ = [
    "CACHE_VARIABLE",
    "OFF",
    "EngineCache",
    "Fetched",
    "engine_cache",
    "ingredients",
    "key_of",
]
