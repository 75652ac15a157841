"""A build on the machine that runs the engine: memory, progress, timings, proof, trtexec."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import secateur
from secateur.errors import BadInputError
from secateur.recipe import parse_shapes
from secateur.runtime import on_device
from secateur.runtime.__main__ import main
from secateur.runtime.backend import EngineSpec, Profile, ShapeRange
from secateur.runtime.backends.tensorrt import TensorRt
from secateur.runtime.build_job import BuildJob, Memory, Step, StepPrinter, memory_for
from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.goldens import goldens_to_bytes, read_goldens
from secateur.runtime.on_device import fitting_workspace
from secateur.runtime.trtexec import trtexec_line

K = "encoder.layer.0.k"
MIB = 1 << 20
SPEC = EngineSpec(
    profiles={"x": ShapeRange((1, 4, 8), (1, 8, 8), (4, 16, 8))},
    shape_values={K: ShapeRange((1,), (4,), (16,))},
    compute_capabilities=("sm86",),
)


# --- trtexec --------------------------------------------------------------------------------


def options(line: str) -> list[tuple[str, str]]:
    words = shlex.split(line.replace("\\\n", " "))
    assert words[0] == "trtexec"
    return [
        (name, value) for name, _, value in (w.removeprefix("--").partition("=") for w in words)
    ]


def test_the_trtexec_line_has_the_bundles_shapes_and_budgets(bundle_path, capsys):
    assert main(["build", str(bundle_path), "--trtexec"]) == 0
    found = dict(options(capsys.readouterr().out))
    assert found["onnx"] == "model.onnx"
    assert "stronglyTyped" in found
    assert found["memPoolSize"] == "workspace:4096"
    assert parse_shapes(found["minShapes"]) == {"x": (1, 4, 8), K: (1,)}
    assert parse_shapes(found["optShapes"]) == {"x": (1, 8, 8), K: (4,)}
    assert parse_shapes(found["maxShapes"]) == {"x": (4, 16, 8), K: (16,)}


def test_the_trtexec_line_numbers_several_profiles():
    spec = replace(SPEC, more=(Profile({"x": ShapeRange.fixed(8, 8, 8)}, SPEC.shape_values),))
    found = options(trtexec_line("a b.onnx", spec, spec.shape_values))
    assert ("onnx", "a b.onnx") in found
    assert [value for name, value in found if name == "profile"] == ["0", "1"]
    lowest = [parse_shapes(value) for name, value in found if name == "minShapes"]
    assert lowest == [{"x": (1, 4, 8), K: (1,)}, {"x": (8, 8, 8), K: (1,)}]


def test_a_name_with_a_colon_is_quoted_for_trtexec():
    line = trtexec_line("m.onnx", EngineSpec(profiles={"x:0": ShapeRange.fixed(1, 2)}), {})
    assert ("minShapes", "'x:0':1x2") in options(line)


# --- memory ---------------------------------------------------------------------------------

MEMINFO = "MemTotal: 7802 kB\nMemAvailable:  {free} kB\nSwapFree: {swap} kB\nHugePages_Total: 0\n"


def test_free_memory_is_what_is_available_and_swap():
    memory = memory_for(100 * MIB, MEMINFO.format(free=1024 * 1024, swap=512 * 1024))
    assert memory.free_bytes == 1536 * MIB
    assert memory.needed_bytes == 900 * MIB


@pytest.mark.parametrize(
    ("free_mib", "workspace_mib"),
    [(64_000, 4096), (9000, 4096), (5000, 2048), (1100, 128), (900, 64)],
)
def test_the_workspace_is_what_memory_leaves(free_mib, workspace_mib):
    memory = Memory(free_mib * MIB, 800 * MIB)
    assert fitting_workspace(EngineSpec(), memory) == workspace_mib * MIB


def test_too_little_memory_is_refused_before_the_build_and_can_be_overruled(
    bundle_path, tmp_path, monkeypatch, capsys
):
    (tmp_path / "meminfo").write_text(MEMINFO.format(free=100 * 1024, swap=0))
    monkeypatch.setattr(on_device, "_MEMINFO", tmp_path / "meminfo")
    command = ["build", str(bundle_path), "--target", "rtx:sm86"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "too little free memory" in told
    assert "100 MiB free" in told
    assert "swap" in told
    assert main([*command, "--no-memory-check"]) == 0


def test_where_memory_cannot_be_told_it_is_not_checked(bundle_path, tmp_path, monkeypatch):
    monkeypatch.setattr(on_device, "_MEMINFO", tmp_path / "none")
    assert main(["build", str(bundle_path), "--target", "rtx:sm86"]) == 0


# --- progress and timings -------------------------------------------------------------------


def test_a_build_tells_its_steps_and_keeps_its_timings(selecting_path, tmp_path):
    steps: list[Step] = []
    job = BuildJob(tmp_path / "timings" / "rtx", steps.append)
    TensorRt("rtx").build_with_record(selecting_path, SPEC, job)
    assert len(steps) > 3
    assert any(step.done == step.steps > 0 for step in steps), "a phase came to its end"
    assert all(0 <= step.done <= step.steps for step in steps if step.steps)
    assert job.timing_cache.is_file()
    TensorRt("rtx").build_with_record(selecting_path, SPEC, job)


def test_damaged_timings_cost_nothing_but_time(selecting_path, tmp_path):
    (tmp_path / "timings").write_bytes(b"no timings")
    job = BuildJob(tmp_path / "timings", lambda _: None)
    assert TensorRt("rtx").build_with_record(selecting_path, SPEC, job).engine


def test_timings_that_cannot_be_kept_are_no_error(selecting_path, tmp_path):
    (tmp_path / "file").write_text("")
    job = BuildJob(tmp_path / "file" / "timings", lambda _: None)
    assert TensorRt("rtx").build_with_record(selecting_path, SPEC, job).engine


def test_steps_are_printed_once_for_an_outer_phase(capsys):
    printer = StepPrinter()
    for step in (Step("Build", "", 0, 2), Step("Tactics", "Build", 1, 9), Step("Build", "", 2, 2)):
        assert Step.from_line(step.to_line()) == step
        printer(step)
    assert capsys.readouterr().err == "Build\n"


# --- proof ----------------------------------------------------------------------------------


def test_what_was_built_is_compared_with_the_goldens(proven_path, capsys):
    assert main(["build", str(proven_path), "--target", "onnxruntime"]) == 0
    assert "onnxruntime: pass 2 golden batches" in capsys.readouterr().out


def test_what_does_not_agree_with_the_goldens_exits_with_1(proven_path, capsys):
    case = read_goldens(proven_path / "goldens.npz")[0]
    wrong = replace(case, outputs={"y": case.outputs["y"] * np.float32(1.01)})
    with revised_bundle(proven_path) as draft:
        draft.write("goldens.npz", goldens_to_bytes([wrong]))
    assert main(["build", str(proven_path), "--target", "onnxruntime"]) == 1
    assert "was built and does not agree" in capsys.readouterr().err
    assert main(["build", str(proven_path), "--target", "onnxruntime", "--no-parity"]) == 0


def test_why_nothing_was_compared_is_said(bundle_path, proven_path, capsys):
    command = ["--target", "rtx:sm86", "--json"]
    main(["build", str(bundle_path), *command])
    assert "no goldens" in json.loads(capsys.readouterr().out)["parity"]["rtx:sm86"]["not_run"]
    main(["build", str(proven_path), *command])
    assert "no CUDA device" in json.loads(capsys.readouterr().out)["parity"]["rtx:sm86"]["not_run"]


# --- other tools, and nothing but NumPy and the backend --------------------------------------


def polygraphy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("polygraphy"), *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def test_polygraphy_runs_the_bundles_model_on_its_loader_script(proven_path):
    script = ["--data-loader-script", "data_loader.py"]
    done = polygraphy("run", "model.onnx", "--onnxrt", *script, cwd=proven_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Iteration: 1" in done.stdout or "2 iteration(s)" in done.stdout, done.stdout


def test_polygraphy_inspects_the_bundles_model(proven_path):
    done = polygraphy("inspect", "model", "model.onnx", "--show", "layers", cwd=proven_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert K in done.stdout
    assert "GatherND" in done.stdout


def test_the_loader_script_yields_the_goldens_inputs(proven_path):
    import runpy

    found = list(runpy.run_path(str(proven_path / "data_loader.py"))["load_data"]())
    wanted = [case.inputs for case in read_goldens(proven_path / "goldens.npz")]
    assert [sorted(batch) for batch in found] == [sorted(batch) for batch in wanted]
    assert np.array_equal(found[1][K], wanted[1][K])


def test_a_bundle_without_goldens_has_no_loader_script(bundle_path):
    assert "data_loader.py" not in open_bundle(bundle_path)


BARE = ("numpy", "numpy.libs", "tensorrt_rtx*", "secateur-*.dist-info")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """An interpreter that has NumPy, tensorrt_rtx_cu13 and this package, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    source = Path(sysconfig.get_path("purelib"))
    for pattern in BARE:
        for package in source.glob(pattern):
            (site / package.name).symlink_to(package)
    (site / "secateur.pth").write_text(str(Path(secateur.__file__).parents[1]))
    return folder / "bin" / "python"


def test_numpy_and_tensorrt_rtx_alone_build_a_bundle_made_elsewhere(
    bare_python, proven_path, tmp_path
):
    moved = Path(shutil.move(proven_path, tmp_path / "moved"))
    program = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'onnxruntime', "
    program += "'onnx_ir', 'yaml', 'pydantic', 'rich') if u.find_spec(n)])"
    command = [str(bare_python), "-m", "secateur.runtime", "build", str(moved)]
    seen = subprocess.run([bare_python, "-c", program], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]", "the environment is not bare"
    done = subprocess.run(
        [*command, "--target", "rtx:sm86", "--forced"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rtx:sm86: " in done.stdout
    assert open_bundle(moved).engine("rtx:sm86").forced


def test_a_bare_environment_says_how_to_get_the_backend_it_lacks(bare_python, proven_path):
    command = [str(bare_python), "-m", "secateur.runtime", "parity", str(proven_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "pip install onnxruntime" in done.stderr


def test_a_refusal_of_memory_is_no_memory_error():
    with pytest.raises(BadInputError, match="too little"):
        Memory(10 * MIB, 300 * MIB).check()
    Memory(1000 * MIB, 300 * MIB).check()
