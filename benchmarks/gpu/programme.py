"""What runs on this machine's GPU, how equal and how fast: probes, parity, times; JSON and table.

    python -m benchmarks.gpu.programme [--out FILE] [--bundle DIR ...]     (make gpu)

One process tree, at most 8 minutes. Without a GPU it runs too and says, cell by cell, why nothing
was measured. Rows of a real device go to benchmarks/results/ under its name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secateur.errors import MissingDependencyError, SecateurError
from secateur.runtime import cuda_driver
from secateur.runtime.bundle import open_bundle
from secateur.runtime.parity import check_goldens
from secateur.runtime.tensorrt.api import load

SECONDS = 8 * 60.0
ROOT = Path(__file__).resolve().parents[2]
MODELS = ("vit_b16_224", "vit_b16_384", "bert_base_128", "bert_base_512", "clip_l14_224")
TINY = ("vit_b16_32", "vit_b16_48", "bert_base_16", "bert_base_24", "clip_l14_28")
BATCHES = (1, 8, 64)
WAYS = (
    "eager", "compile", "tensorrt dense", "tensorrt pruned", "rtx dense", "rtx pruned",
    "onnxruntime:cuda dense", "onnxruntime:cuda pruned",
)  # fmt: skip
TARGETS = ("tensorrt", "rtx", "onnxruntime:cuda", "onnxruntime:tensorrt", "onnxruntime:rtx")
EXAMPLES = (ROOT / "build/demo/minilm",)

Row = dict[str, Any]


def probes() -> list[Row]:
    """Each library and provider: its version, or the exact error."""
    found: list[Row] = []
    for name in ("tensorrt", "rtx"):
        try:
            found.append({"what": name, "version": str(load(name).__version__)})
        except MissingDependencyError as error:
            found.append({"what": name, "error": f"{error.what}: {error.got}"})
    found.append(_probe_device())
    found.append(_probe_torch())
    return [*found, *_probe_providers()]


def _probe_device() -> Row:
    try:
        return {"what": "device", "version": cuda_driver.describe_device()}
    except SecateurError as error:
        return {"what": "device", "error": f"{error.what}: {error.got}"}


def _probe_torch() -> Row:
    import torch

    if torch.cuda.is_available():
        return {"what": "torch CUDA", "version": f"{torch.__version__}, CUDA {torch.version.cuda}"}
    return {"what": "torch CUDA", "error": f"torch {torch.__version__} sees no CUDA device"}


def _probe_providers() -> list[Row]:
    import onnxruntime as ort

    available = ort.get_available_providers()
    names = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
    return [
        {"what": name, "version": ort.__version__}
        if name in available
        else {"what": name, "error": f"onnxruntime {ort.__version__} has only {available}"}
        for name in names
    ]


def parities(bundles: Iterable[Path], ends: float) -> list[Row]:
    """Every bundle on every target: forced scores, flips and values, and the engine as shipped."""
    return [_parity(path, target, ends) for path in bundles for target in TARGETS]


def _parity(path: Path, target: str, ends: float) -> Row:
    key = {"bundle": path.name, "target": target}
    if not path.exists():
        return {**key, "not_run": f"no bundle at {path.name}: `make demo` makes it"}
    if time.monotonic() > ends:
        return {**key, "not_run": "no time left in the programme"}
    try:
        cuda_driver.check_device()
        if not target.startswith("onnxruntime"):
            _build(path, target)
        with open_bundle(path) as bundle:
            return {**key, **check_goldens(bundle, target).to_json()}
    except SecateurError as error:
        return {**key, "not_run": f"{error.what}: {error.got}"}


def _build(path: Path, target: str) -> None:
    from secateur.runtime.build import BuildOptions, build_target
    from secateur.runtime.bundle_writer import revised_bundle

    with revised_bundle(path) as draft:
        build_target(draft, target, BuildOptions("disabled", forced=True))


def times(models: Iterable[str], ends: float, *, device: str, tiny: bool) -> list[Row]:
    """The rows of every model, each measured in a process of its own."""
    found: list[Row] = []
    if device == "cuda" and (why := _why_no_device()):
        return [
            {"model": model, "way": way, "batch": batch, "not_run": why}
            for model in models
            for way in WAYS
            for batch in BATCHES
        ]
    left = list(models)
    while left:
        model = left.pop(0)
        seconds = (ends - time.monotonic()) / (len(left) + 1)
        found += _measured(model, seconds, device=device, tiny=tiny)
    return found


def _why_no_device() -> str:
    try:
        cuda_driver.check_device()
    except MissingDependencyError as error:
        return f"no CUDA device: {error.got}"
    return ""


def _measured(model: str, seconds: float, *, device: str, tiny: bool) -> list[Row]:
    """Rows of one model; the process gets a little longer than it is told, to end by itself."""
    if seconds < 5:
        return [{"model": model, "way": "all", "batch": 0, "not_run": "no time left"}]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "rows.jsonl"
        command = [sys.executable, "-m", "benchmarks.gpu.cells", model, str(file)]
        command += ["--device", device, "--seconds", f"{0.8 * seconds:.0f}"]
        command += ["--tiny"] if tiny else []
        why = ""
        try:
            done = subprocess.run(
                command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, timeout=seconds
            )
            if done.returncode:
                why = f"its process died ({done.returncode}): {done.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            why = f"its process was stopped after {seconds:.0f} s"
        lines = file.read_text().splitlines() if file.is_file() else []
    rows: list[Row] = [json.loads(line) for line in lines]
    return [*rows, {"model": model, "way": "the rest", "batch": 0, "not_run": why}] if why else rows


def table(result: Row) -> str:
    """The result as a person reads it."""
    lines = [f"{'library':34} version or error"]
    lines += [f"{row['what']:34} {row.get('version') or row['error']}" for row in result["probes"]]
    lines.append(f"\n{'parity':34} verdict")
    for row in result["parity"]:
        verdict = row.get("not_run") or ("pass" if row["passed"] else "FAIL")
        lines.append(f"{row['bundle'] + ' on ' + row['target']:34} {verdict}")
    lines.append(f"\n{'model':16} {'way':24} batch   median ms   p95 ms  efficiency  MiB")
    dense = {(r["model"], r["way"], r["batch"]): r for r in result["times"]}
    for row in result["times"]:
        head = f"{row['model']:16} {row['way']:24} {row['batch']:5}"
        if "not_run" in row:
            lines.append(f"{head}   not run: {row['not_run'].splitlines()[0]}")
            continue
        other = dense.get((row["model"], row["way"].replace("pruned", "dense"), row["batch"]), {})
        gain = _efficiency(row, other)
        memory = row.get("memory_mib", "")
        lines.append(f"{head} {row['median_ms']:11.3f} {row['p95_ms']:8.3f}  {gain:>10}  {memory}")
    return "\n".join(lines)


def _efficiency(row: Row, dense: Row) -> str:
    if "flops_ratio" not in row or "median_ms" not in dense:
        return ""
    return f"{dense['median_ms'] / row['median_ms'] / row['flops_ratio']:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON; default: benchmarks/results/gpu_<device>")
    parser.add_argument("--bundle", type=Path, action="append", help="instead of the examples'")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--tiny-on-cpu", action="store_true", help="try the programme's own code")
    options = parser.parse_args()
    start = time.monotonic()
    ends = start + options.seconds
    device = "cpu" if options.tiny_on_cpu else "cuda"
    models = TINY if options.tiny_on_cpu else MODELS
    # Parity first: a fast engine that is wrong is worth nothing; it gets a third of the time.
    result: Row = {"probes": probes(), "machine": platform.platform(), "cores": os.cpu_count()}
    result["parity"] = parities(options.bundle or EXAMPLES, start + options.seconds / 3)
    result["times"] = times(models, ends, device=device, tiny=options.tiny_on_cpu)
    result["seconds"] = round(time.monotonic() - start, 1)
    print(table(result))
    name = next(row for row in result["probes"] if row["what"] == "device").get("version", "")
    out = options.out or (ROOT / f"benchmarks/results/gpu_{_slug(name)}.json" if name else None)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.partition("(")[0].strip().lower())


if __name__ == "__main__":
    sys.exit(main())
