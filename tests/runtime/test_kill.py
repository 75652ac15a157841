"""A build that is killed at any moment leaves the old bundle or the new one, never a half."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle

# Writes the bundle again and again; says so after each time.
WRITER = """
import sys
from secateur.runtime.bundle_writer import revised_bundle
for number in range(10_000):
    print(number, flush=True)
    with revised_bundle(sys.argv[1]) as draft:
        draft.write("recipe.yaml", f"number: {number}\\n" * 1000)
        draft.write("report.html", bytes(300_000))
"""


def _start(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)


@pytest.mark.parametrize("kind", ["bundle", "bundle.zip"])
def test_a_writer_killed_at_any_moment_leaves_a_whole_bundle(
    kind: str, bundle_path: Path, tmp_path: Path
) -> None:
    path = bundle_path
    if kind.endswith(".zip"):
        from secateur.runtime.archive import pack

        path = tmp_path / kind
        pack(bundle_path, path)
    seen = set()
    for written, fraction in enumerate((0.9, 0.1, 0.3, 0.5, 0.7)):
        process = _start("-c", WRITER, path)
        duration_s = _wait_until_written(process, written)
        time.sleep(fraction * duration_s)
        _kill(process)
        with open_bundle(path) as bundle:  # checks every hash
            recipe = bundle.file("recipe.yaml").read_text().splitlines()
        assert len(set(recipe)) == 1
        seen.add(recipe[0])
    assert len(seen) > 1, "kills came after new bundles were in place"
    with revised_bundle(path):
        pass
    assert not list(path.parent.glob(f".{path.name}.*")), "the next writer cleans up"


def test_a_killed_engine_build_leaves_the_old_bundle_and_no_builder(bundle_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in bundle_path.iterdir()}
    process = _start("-m", "secateur.runtime", "build", bundle_path, "--target", "rtx:sm86")
    worker = _wait_for_worker(process.pid)
    os.kill(worker, signal.SIGSTOP)  # so that it cannot end by itself
    _kill(process)
    assert {p.name: p.read_bytes() for p in bundle_path.iterdir()} == before
    assert set(open_bundle(bundle_path).manifest.engines) == {"onnxruntime"}
    deadline = time.monotonic() + 10
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    outlived = _is_running(worker)
    if outlived:
        os.kill(worker, signal.SIGKILL)
    assert not outlived, "the builder outlived the build that was killed"


def test_a_killed_builder_is_a_build_error(bundle_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur.runtime", "build", bundle_path, "--target", "rtx:sm86"],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.kill(_wait_for_worker(process.pid), signal.SIGKILL)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 4, told
    assert "the builder died: killed by SIGKILL" in told
    assert "out of memory" in told
    assert set(open_bundle(bundle_path).manifest.engines) == {"onnxruntime"}


@pytest.mark.parametrize(
    ("limit_bytes", "said"), [(100_000, "room for"), (1500, "no room for the bundle")]
)
def test_a_disk_that_is_full_leaves_the_old_bundle_and_says_so(
    limit_bytes: int, said: str, bundle_path: Path
) -> None:
    # A limit on the size of files stands in for the disk: below an engine, below a manifest.
    before = {p.name: p.read_bytes() for p in bundle_path.iterdir()}
    target = "rtx:sm86" if limit_bytes > 10_000 else "onnxruntime"
    done = subprocess.run(
        [sys.executable, "-m", "secateur.runtime", "build", bundle_path, "--target", target],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {2, 4}, done.stderr
    assert said in done.stderr
    assert "File too large" in done.stderr
    assert {p.name: p.read_bytes() for p in bundle_path.iterdir()} == before
    assert [p.name for p in bundle_path.parent.iterdir() if p.name.startswith(".")] == []


def _wait_until_written(process: subprocess.Popen[str], count: int) -> float:
    """Wait until ``count`` bundles are written; how long the last one took, in seconds."""
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    duration_s = 0.01
    for _ in range(count):
        start = time.monotonic()
        process.stdout.readline()
        duration_s = time.monotonic() - start
    return duration_s


def _wait_for_worker(parent: int) -> int:
    """Process id of the build worker once its main module has begun to run."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in children:
            maps = Path(f"/proc/{child}/maps")
            if maps.exists() and "tensorrt_rtx" in maps.read_text():
                return int(child)
        time.sleep(0.005)
    raise AssertionError("no build worker appeared")


def _is_running(process: int) -> bool:
    """Whether a process runs; one that is dead but not yet collected does not."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
