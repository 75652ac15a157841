"""``python -m secateur.runtime``: build, run, check and time a bundle with NumPy alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInputError, ParityError, SecateurError
from secateur.runtime.backend import EngineSpec
from secateur.runtime.backends.onnxruntime import OPTIMISATION_LEVELS
from secateur.runtime.bench import BenchOptions, BenchRow, break_even_batch
from secateur.runtime.bench_bundle import bench_bundle
from secateur.runtime.build import BuildOptions, build_target, safe_level
from secateur.runtime.build_job import BuildJob, StepPrinter, ignore
from secateur.runtime.bundle import BENCH_NAME, PARITY_NAME, open_bundle
from secateur.runtime.bundle_writer import Draft, revised_bundle
from secateur.runtime.engine_cache import engine_cache
from secateur.runtime.engine_report import (
    attention_reports,
    read_layers,
    report_lines,
    selection_reports,
)
from secateur.runtime.npz import read_npz
from secateur.runtime.on_device import (
    Proof,
    fitting_workspace,
    memory_of,
    prove,
    refuse_unequal,
    trtexec_of,
)
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.parity import GoldenParity, check_goldens
from secateur.runtime.session import DEFAULT_TARGET, open_session
from secateur.runtime.targets import parse_target
from secateur.runtime.tensorrt.inspect import engine_information

AUTO = "auto"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status says what went wrong.

    0 ok, 1 a comparison failed, 2 bad input, 3 a library is missing, 4 a build failed.
    """
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], Any] = options.command
        command(options)
    except SecateurError as error:
        if options.json:
            _say(json.dumps({"error": error.what, "message": str(error)}))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def build(options: argparse.Namespace) -> None:
    """Build engines for targets and compare them with the goldens."""
    if options.trtexec:
        _say(trtexec_of(options.bundle))
        return
    with open_bundle(options.bundle) as bundle:
        targets = options.target or sorted(bundle.manifest.engines)
    if not targets:
        raise BadInputError("no target is named", next_step="--target onnxruntime or --target rtx")
    targets = [str(parse_target(target)) for target in targets]
    notes = _build_all(options, targets)
    with open_bundle(options.bundle) as bundle:
        files, engines = bundle.manifest.files, bundle.manifest.engines
    sizes = {target: files[engines[target].file].size_bytes for target in targets}
    proofs = [prove(options.bundle, t) for t in targets] if options.parity else []
    if options.json:
        _say(json.dumps({"built": sizes, "notes": notes, "parity": _proofs_to_json(proofs)}))
    else:
        for target, size_bytes in sizes.items():
            _say(f"{target}: {size_bytes / 1e6:.1f} MB, {notes[target]}")
        for proof in proofs:
            lines = _parity_lines(proof.parity) if proof.parity else [proof.why_not]
            _say("\n".join(f"{proof.target}: {line}" for line in lines))
    refuse_unequal(proofs)


def _build_all(options: argparse.Namespace, targets: list[str]) -> dict[str, str]:
    """Build into the bundle, which is replaced in one step at the end; a note for each target."""
    with revised_bundle(options.bundle) as draft:
        draft.manifest = replace(draft.manifest, spec=_build_spec(options, draft, targets))
        level = options.optimisation
        if level == AUTO and "onnxruntime" in targets:
            level = safe_level(draft)
        job = BuildJob(on_step=ignore if options.json else StepPrinter())
        # TensorRT runs where it builds, so that its engine is compared, with the twin's tokens.
        forced = options.forced or (options.parity and "tensorrt" in targets)
        made = BuildOptions(level, forced, engine_cache(options.cache), job)
        return {target: build_target(draft, target, made) for target in targets}


def _build_spec(options: argparse.Namespace, draft: Draft, targets: list[str]) -> EngineSpec:
    """The bundle's own specification, with what the command line and this machine say."""
    spec = draft.manifest.spec
    spec = replace(spec, timeout_s=options.timeout or spec.timeout_s)
    builders = [target for target in targets if target != "onnxruntime"]
    memory = memory_of(draft) if builders else None
    if memory is not None and options.memory_check:
        memory.check()
    if options.workspace_mib:
        return replace(spec, workspace_bytes=options.workspace_mib << 20)
    if memory is not None and "tensorrt" in builders:
        return replace(spec, workspace_bytes=fitting_workspace(spec, memory))
    return spec


def _proofs_to_json(proofs: list[Proof]) -> dict[str, Any]:
    return {p.target: p.parity.to_json() if p.parity else {"not_run": p.why_not} for p in proofs}


def run(options: argparse.Namespace) -> None:
    """Run the bundle on arrays from an .npz."""
    arrays = read_npz(options.inputs, what="inputs")
    with open_session(options.bundle, options.target, record=options.record) as call:
        outputs = call(arrays, keep=dict(options.keep))
    if options.output is not None:
        np.savez(options.output, allow_pickle=False, **outputs)
    if options.json:
        _say(json.dumps({name: array.tolist() for name, array in outputs.items()}))
        return
    for name, array in outputs.items():
        largest = float(np.abs(array).max(initial=0))
        _say(f"{name}: {array.dtype.name}{list(array.shape)}, largest {largest:.6g}")


def parity(options: argparse.Namespace) -> None:
    """Compare with the goldens; ParityError when a bound is exceeded."""
    result = check_goldens(options.bundle, options.target)
    if options.write:
        with revised_bundle(options.bundle) as draft:
            draft.write_json(PARITY_NAME, result.to_json())
    if options.json:
        _say(json.dumps(result.to_json()))
    else:
        _say("\n".join(_parity_lines(result)))
    if not result.passed:
        raise ParityError(
            f"target {result.target!r} does not agree with the goldens",
            got="; ".join(result.failures()) or "no golden batch",
            next_step="secateur parity --bisect names the first layer that differs",
        )


def layers(options: argparse.Namespace) -> None:
    """Say which attentions an engine fused and what its selections run in, by module names."""
    with open_bundle(options.bundle) as bundle:
        entry = bundle.engine(options.target)
        content = bundle.file(entry.file).read_bytes()
        text = engine_information(parse_target(options.target).backend, content)
        outline, sites = read_outline(bundle.model), [site.name for site in bundle.manifest.sites]
    found = read_layers(text)
    attentions, selections = attention_reports(found, outline), selection_reports(found, sites)
    if options.json:
        reports = [asdict(one) for one in attentions], [asdict(one) for one in selections]
        _say(json.dumps({"attentions": reports[0], "selections": reports[1]}))
    else:
        _say("\n".join(report_lines(attentions, selections)))


def bench(options: argparse.Namespace) -> None:
    """Time the bundle against its dense model."""
    measure = BenchOptions(
        processes=options.processes, pairs=options.pairs, threads=options.threads
    )
    rows: list[BenchRow] = []
    with open_bundle(options.bundle) as bundle:
        for batch in options.batch:
            sizes = {"batch": batch, "tokens": options.tokens}
            rows.append(bench_bundle(bundle, options.dense, sizes, options=measure))
    if options.write:
        with revised_bundle(options.bundle) as draft:
            draft.write_json(BENCH_NAME, [row.to_json() for row in rows])
    if options.json:
        _say(json.dumps([row.to_json() for row in rows]))
        return
    for row in rows:
        efficiency = "unknown" if row.efficiency is None else f"{row.efficiency:.2f}"
        _say(
            f"batch {row.batch}, {row.tokens} tokens: dense {row.dense_ms:.2f} ms, "
            f"pruned {row.pruned_ms:.2f} ms (p95 {row.p95:.2f}), efficiency {efficiency}, "
            f"optimisation {row.optimisation_level}"
        )
    _say(f"faster from batch {break_even_batch(rows) or 'none measured'} on")


def _parity_lines(result: GoldenParity) -> list[str]:
    lines = [
        f"{_verdict(site.passed)} {site.site}: score error {site.score_error:.2e} "
        f"(bound {site.score_bound:.2e}), {site.flips} flips {site.reason}"
        for site in result.sites
    ]
    for kind, rows in (("equal tokens", result.outputs), ("as shipped", result.free)):
        is_judged = kind == "equal tokens" or not result.selects_tokens
        lines += [
            f"{_verdict(row.passed) if is_judged else 'told'} {row.name}, {kind}: relative error "
            f"{row.relative_error:.2e} (bound {row.bound:.0e}), cosine {row.cosine:.6f}"
            for row in rows
        ]
    return [*lines, f"{_verdict(result.passed)} {result.cases} golden batches on {result.target}"]


def _verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def _keep(text: str) -> tuple[str, float]:
    site, equals, value = text.rpartition("=")
    try:
        number = float(value) if "." in value else int(value)
    except ValueError:
        equals = ""
    if not equals or not site:
        raise argparse.ArgumentTypeError(f"{text!r} is not SITE=0.5 (a share) or SITE=64 (a count)")
    return site, number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m secateur.runtime",
        description="Build, run, check and time a bundle. Needs NumPy and the target's backend.",
    )
    commands = parser.add_subparsers(required=True, metavar="build|run|parity|bench|layers")
    _add_build(_command(commands, "build", build))
    _add_run(_command(commands, "run", run))
    checked = _command(commands, "parity", parity)
    checked.add_argument("--target", default=DEFAULT_TARGET)
    checked.add_argument("--write", action="store_true", help="write parity.json in the bundle")
    _add_bench(_command(commands, "bench", bench))
    inspected = _command(commands, "layers", layers)
    inspected.add_argument("--target", default="tensorrt", help="tensorrt or rtx; needs its GPU")
    return parser


def _command(commands: Any, name: str, call: Callable[..., None]) -> argparse.ArgumentParser:  # noqa: ANN401
    parser: argparse.ArgumentParser = commands.add_parser(name, help=call.__doc__)
    parser.set_defaults(command=call)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or zip")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", action="append", help="onnxruntime, rtx:sm86; may be repeated")
    parser.add_argument(
        "--optimisation",
        choices=(AUTO, *OPTIMISATION_LEVELS),
        default=AUTO,
        help="of ONNX Runtime; auto: the highest that agrees with none on the goldens",
    )
    parser.add_argument("--forced", action="store_true", help="build the forced twin for parity")
    parser.add_argument(
        "--workspace-mib", type=int, default=0, help="0: as the bundle says, if memory allows"
    )
    parser.add_argument(
        "--trtexec", action="store_true", help="print trtexec's line; build nothing"
    )
    parser.add_argument(
        "--no-parity", dest="parity", action="store_false", help="do not compare with the goldens"
    )
    parser.add_argument(
        "--no-memory-check", dest="memory_check", action="store_false", help="build in any memory"
    )
    parser.add_argument(
        "--cache", default="", help="folder of engines built before; off for none (SECATEUR_CACHE)"
    )
    parser.add_argument("--timeout", type=float, default=0.0, help="seconds; 0: as the bundle says")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=Path, required=True, help=".npz with an array per input")
    parser.add_argument("--output", type=Path, help="write the outputs to this .npz")
    parser.add_argument("--record", type=Path, help="append the shapes to this file, for profiles")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument(
        "--keep", type=_keep, action="append", default=[], metavar="SITE=0.5", help="or SITE=64"
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dense", type=Path, help="dense .onnx; default: the one in the bundle")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as ONNX Runtime likes")
    parser.add_argument("--write", action="store_true", help="write bench.json in the bundle")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
