"""Engines are found again by all that made them, and by nothing less."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.runtime.conftest import make_dense

from secateur.errors import BuildError
from secateur.runtime.__main__ import main
from secateur.runtime.backend import Built, EngineSpec, ShapeRange
from secateur.runtime.bundle import open_bundle
from secateur.runtime.engine_cache import EngineCache, engine_cache, ingredients, key_of
from secateur.runtime.file_lock import locked, locked_if_free
from secateur.runtime.onnx_outline import read_outline

MADE = {"model": {"model.onnx": "a"}, "profiles": {"x": 1}, "library": "rtx 1.7"}


def built(content: bytes = b"engine") -> Built:
    import hashlib

    return Built(content, {"engine_sha256": hashlib.sha256(content).hexdigest()})


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def never() -> Built:
    raise AssertionError("the engine is in the cache")


def test_an_engine_is_found_again(cache):
    first = cache.fetch(MADE, built)
    again = cache.fetch(MADE, never)
    assert (first.is_hit, again.is_hit) == (False, True)
    assert again.built == first.built
    assert "the cache is empty" in first.why
    assert again.why.startswith("from the cache")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"profiles": {"x": 2}}, "has another profiles"),
        ({"library": "rtx 1.8"}, r"another library \(rtx 1.7 there, rtx 1.8 here\)"),
        ({"model": {"model.onnx": "b"}}, "no engine of this model and weights"),
    ],
)
def test_a_miss_says_what_is_different(cache, changed, said):
    cache.fetch(MADE, built)
    missed = cache.fetch({**MADE, **changed}, lambda: built(b"other"))
    assert not missed.is_hit
    assert missed.built.engine == b"other"
    import re

    assert re.search(said, missed.why), missed.why


def save(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / name)
    return folder / name


def made_from(path: Path, spec: EngineSpec, backend: str = "rtx") -> str:
    return key_of(ingredients(backend, read_outline(path), path, spec=spec))


def other_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] += np.float32(1e-7)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
    return model


def other_spec(spec: EngineSpec) -> Iterator[EngineSpec]:
    yield replace(spec, profiles={"x": ShapeRange((1, 4, 8), (1, 8, 8), (4, 17, 8))})
    yield replace(spec, shape_values={"k": ShapeRange((1,), (2,), (3,))})
    yield replace(spec, compute_capabilities=("sm86",))
    yield replace(spec, workspace_bytes=1 << 20)
    yield replace(spec, decomposable_attention=False)


def test_everything_that_makes_an_engine_changes_its_key(tmp_path, spec, monkeypatch):
    path = save(tmp_path / "a", make_dense())
    keys = [made_from(path, spec)]
    keys += [made_from(path, other) for other in other_spec(spec)]
    keys.append(made_from(save(tmp_path / "b", other_weight(make_dense())), spec))
    keys.append(made_from(save(tmp_path / "c", make_dense(), "model.forced.onnx"), spec))
    import secateur.runtime.engine_cache as module

    monkeypatch.setattr(module, "installed_version", lambda _: "1.8")
    keys.append(made_from(path, spec))
    keys.append(made_from(path, spec, "tensorrt"))
    monkeypatch.setattr(module.cuda_driver, "describe_device", lambda: "Orin (sm87, 7620 MiB)")
    keys.append(made_from(path, spec, "tensorrt"))
    assert len(set(keys)) == len(keys)


def test_external_weights_are_part_of_the_key(external_path, spec):
    before = made_from(external_path, spec)
    data = external_path.parent / "weights.data"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    assert made_from(external_path, spec) != before


def test_the_same_file_elsewhere_and_another_time_limit_have_the_same_key(tmp_path, spec):
    here, there = (save(tmp_path / name, make_dense()) for name in "ab")
    assert made_from(here, spec) == made_from(there, replace(spec, timeout_s=7.0))


DAMAGE = {
    "a flipped bit": lambda f: (f / "engine").write_bytes(b"fngine"),
    "a truncated engine": lambda f: (f / "engine").write_bytes(b"eng"),
    "no engine": lambda f: (f / "engine").unlink(),
    "a truncated record": lambda f: (f / "entry.json").write_text("{"),
    "a record of nothing": lambda f: (f / "entry.json").write_text("[]"),
    "an entry under another's name": lambda f: (f / "entry.json").write_text(
        (f / "entry.json").read_text().replace("rtx 1.7", "rtx 1.6")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_again_and_said_to_be(cache, damage):
    cache.fetch(MADE, built)
    DAMAGE[damage](cache.folder / key_of(MADE))
    again = cache.fetch(MADE, lambda: built(b"again"))
    assert again.built.engine == b"again"
    assert "the entry was damaged" in again.why
    assert cache.fetch(MADE, never).built.engine == b"again"


def test_a_build_that_fails_leaves_no_entry_and_no_lock(cache):
    def fail() -> Built:
        raise BuildError("no")

    with pytest.raises(BuildError):
        cache.fetch(MADE, fail)
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]
    assert cache.fetch(MADE, built).built.engine == b"engine"


def test_an_error_of_the_system_in_the_build_is_not_taken_for_the_caches(cache):
    calls = []

    def fail() -> Built:
        calls.append(1)
        raise OSError("the build's own")

    with pytest.raises(OSError, match="the build's own"):
        cache.fetch(MADE, fail)
    assert len(calls) == 1


def test_a_folder_that_cannot_be_made_costs_the_cache_and_not_the_build(tmp_path):
    (tmp_path / "file").write_text("")
    fetched = EngineCache(tmp_path / "file" / "cache").fetch(MADE, built)
    assert fetched.built.engine == b"engine"
    assert "the cache cannot be used" in fetched.why


def test_a_full_disk_costs_the_entry_and_not_the_build(tmp_path):
    # A limit on the size of files stands in for a disk that is full before the engine ends.
    program = """
import resource, signal, sys
from pathlib import Path
from secateur.runtime.engine_cache import EngineCache
sys.path.insert(0, sys.argv[2])
from tests.runtime.test_engine_cache import MADE, built
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
fetched = EngineCache(Path(sys.argv[1])).fetch(MADE, lambda: built(bytes(100_000)))
assert len(fetched.built.engine) == 100_000
print(fetched.why)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache"), str(root)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "not kept" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000, "the limit was the child's"


def test_what_was_not_used_longest_goes_first(tmp_path):
    entry = len(json.dumps({"ingredients": MADE, "record": dict(built().record)}, indent=1))
    cache = EngineCache(tmp_path, max_bytes=3 * (entry + 40) + 3 * 1000)
    names = [{**MADE, "library": f"rtx 1.{n}"} for n in range(4)]
    for made in names[:3]:
        cache.fetch(made, lambda: built(bytes(1000)))
        time.sleep(0.02)
    cache.fetch(names[0], never)  # now the one of 1.1 is the oldest
    cache.fetch(names[3], lambda: built(bytes(1000)))
    kept = {made["library"] for made in names if (tmp_path / key_of(made)).is_dir()}
    assert kept == {"rtx 1.0", "rtx 1.2", "rtx 1.3"}


def test_an_entry_in_use_is_not_removed(tmp_path):
    cache = EngineCache(tmp_path, max_bytes=1)
    cache.fetch(MADE, built)
    with locked(tmp_path / f"{key_of(MADE)}.lock", lambda: None):
        cache.fetch({**MADE, "library": "rtx 2"}, built)
    assert (tmp_path / key_of(MADE)).is_dir()


@pytest.mark.parametrize(
    ("text", "variable", "folder"),
    [
        ("off", "/variable", None),
        ("", "off", None),
        ("", "/variable", "/variable"),
        ("/told", "/variable", "/told"),
        ("", "", "/caches/secateur/engines"),
    ],
)
def test_the_cache_is_told_or_in_the_variable_or_the_users(text, variable, folder, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", variable)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    found = engine_cache(text)
    assert (str(found.folder) if found else None) == folder


# --- with the real builder ------------------------------------------------------------------


def build(bundle: Path, cache: Path, capsys) -> str:
    """Build through the command line; what it says of the engine."""
    command = ["build", str(bundle), "--target", "rtx:sm86", "--cache", str(cache), "--json"]
    assert main(command) == 0
    return str(json.loads(capsys.readouterr().out)["notes"]["rtx:sm86"])


def test_a_bundle_built_twice_is_built_once(bundle_path, tmp_path, capsys):
    first = build(bundle_path, tmp_path / "cache", capsys)
    engine = open_bundle(bundle_path).file("engines/rtx-sm86/model.engine").read_bytes()
    second = build(bundle_path, tmp_path / "cache", capsys)
    assert "built: the cache is empty" in first
    assert "from the cache" in second
    assert open_bundle(bundle_path).file("engines/rtx-sm86/model.engine").read_bytes() == engine
    assert open_bundle(bundle_path).engine("rtx")


def start(bundle: Path, cache: Path) -> subprocess.Popen[str]:
    command = ["-m", "secateur.runtime", "build", str(bundle), "--target", "rtx:sm86"]
    return subprocess.Popen(
        [sys.executable, *command, "--cache", str(cache), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def copy(bundle: Path, name: str) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, bundle.parent / name))


def test_of_two_processes_that_build_at_once_one_builds_and_both_have_it(bundle_path, tmp_path):
    bundles = [bundle_path, copy(bundle_path, "other")]
    running = [start(bundle, tmp_path / "cache") for bundle in bundles]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    notes = sorted(json.loads(out)["notes"]["rtx:sm86"].partition("; ")[2] for out, _ in told)
    assert notes[0].startswith("built: the cache is empty")
    assert notes[1].startswith("from the cache")
    engines = [b / "engines/rtx-sm86/model.engine" for b in bundles]
    assert engines[0].read_bytes() == engines[1].read_bytes()
    assert len(list((tmp_path / "cache").glob("*/entry.json"))) == 1


def is_free(lock: Path) -> bool:
    with locked_if_free(lock) as is_held:
        return is_held


def test_a_build_that_is_killed_leaves_no_entry_and_the_next_one_builds(bundle_path, tmp_path):
    cache = tmp_path / "cache"
    killed = start(bundle_path, cache)
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.005)
    (lock,) = cache.glob("*.lock")
    while is_free(lock):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    assert [p.suffix for p in cache.iterdir()] == [".lock"]
    (cache / f".{lock.stem}.{killed.pid}-0.partial").mkdir()  # as if killed while it wrote
    after = start(bundle_path, cache)
    out, told = after.communicate(timeout=120)
    assert after.returncode == 0, told
    assert "built: the cache is empty" in out
    assert {p.name for p in cache.iterdir()} == {lock.stem, lock.name, "timings"}
    assert not os.path.lexists(bundle_path.parent / ".bundle.partial")
