"""Commands about bundles: build, run, parity, bench, inspect."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from secateur.commands.console import Steps, print_json, print_line, print_table


def run(
    bundle: Path,
    /,
    *,
    inputs: Path,
    target: str = "onnxruntime",
    keep: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Run a bundle on arrays.

    Parameters
    ----------
    bundle
        Folder or zip of the bundle.
    inputs
        An .npz, or a .json with nested lists by input name.
    target
        Which engine of the bundle runs.
    keep
        Tokens to keep at a site in this run, as encoder.layer.1=0.5 (a share) or =64 (a count).
    output
        Write the outputs to this .npz.
    json
        Print a JSON document instead of a table.
    """
    from secateur.runtime.bundle import open_bundle
    from secateur.runtime.session import open_session
    from secateur.workflow.arrays import parse_keep, save_arrays, with_declared_types
    from secateur.workflow.data import read_arrays

    budgets, arrays = parse_keep(keep), read_arrays(inputs)
    with open_bundle(bundle) as opened, open_session(opened, target) as call:
        if inputs.suffix == ".json":  # JSON numbers have no type of their own
            arrays = with_declared_types(arrays, opened.manifest.inputs)
        outputs = call(arrays, budgets)
    if output is not None:
        save_arrays(output, outputs)
    rows = [
        (n, a.dtype.name, list(a.shape), float(abs(a).max(initial=0))) for n, a in outputs.items()
    ]
    if json:
        print_json({name: array.tolist() for name, array in outputs.items()})
    else:
        print_table(f"outputs of {bundle}", ("output", "type", "shape", "largest>"), rows)


def build(
    model: Path,
    output: Path | None = None,
    /,
    *,
    target: Annotated[tuple[str, ...], Parameter(negative=())],
    min_shapes: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    opt_shapes: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    max_shapes: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    traffic: Path | None = None,
    profiles: int = 1,
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    keep_float32: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    optimisation: Literal["auto", "disabled", "basic", "extended", "all"] = "auto",
    cache: str = "",
    json: bool = False,
) -> None:
    """Build engines, each in a process of its own, into a new bundle or an existing one.

    Parameters
    ----------
    model
        A bundle, which gets the engines, or an .onnx file.
    output
        Folder (or .zip) of the new bundle; needed for an .onnx file.
    target
        onnxruntime, rtx, or rtx:sm86,sm89; may be given several times.
    min_shapes
        Smallest shapes, as input_ids:1x16,attention_mask:1x16; several give several profiles.
    opt_shapes
        The shapes that run most often.
    max_shapes
        Largest shapes.
    traffic
        Recorded requests to take the shapes from, as run --record writes them.
    profiles
        Of recorded requests: at most so many profiles.
    precision
        What an .onnx model is lowered to first, written into the graph; see docs/precision.md.
    keep_float32
        Modules or nodes that stay in float32, by name or pattern; may be given several times.
    optimisation
        ONNX Runtime's graph optimisation as deployed; auto is the highest that keeps the numbers.
    cache
        Folder of engines that were built before, or off; the default is the user's cache folder.
    json
        Print a JSON document instead of a table.
    """
    from secateur.recipe import DTYPES
    from secateur.runtime.build import BuildOptions
    from secateur.runtime.engine_cache import engine_cache
    from secateur.workflow.building import build_bundle, shapes_from
    from secateur.workflow.precision import Lowering, lowered_file

    source = shapes_from(min_shapes, opt_shapes, max_shapes, traffic=traffic, count=profiles)
    lowering = Lowering(DTYPES[precision], keep_float32)
    steps = Steps(quiet=json).step(f"build for {', '.join(target)}")
    with steps, lowered_file(model, lowering) as file:
        options = BuildOptions(optimisation, cache=engine_cache(cache))
        built = build_bundle(file, output, target, profiles=source, options=options)
    rows = [(a.target, a.file, f"{a.bytes / 2**20:.1f}", f"{a.seconds:.1f}", a.note) for a in built]
    if json:
        print_json([asdict(artefact) for artefact in built])
    else:
        print_table("engines", ("target", "file", "MiB>", "seconds>", "note"), rows)


def parity(
    bundle: Path, /, *, target: str = "onnxruntime", bisect: bool = False, json: bool = False
) -> int:
    """Compare a bundle with its goldens: scores, flips, values; exit code 1 if it differs.

    Parameters
    ----------
    bundle
        Folder or zip of the bundle.
    target
        Which engine of the bundle is compared.
    bisect
        Name the first layer that differs from the original model, and what to try.
    json
        Print a JSON document instead of tables.
    """
    from secateur.commands.tables import print_bisect, print_golden_parity
    from secateur.runtime.bundle import open_bundle
    from secateur.runtime.parity import check_goldens

    steps = Steps(quiet=json)
    with open_bundle(bundle) as opened:
        with steps.step(f"compare {target} with the goldens"):
            result = check_goldens(opened, target)
        found = None
        if bisect:
            from secateur.workflow.bisecting import bisect_bundle

            with steps.step("compare layer by layer"):
                found = bisect_bundle(opened)
    if json:
        print_json({**result.to_json(), "bisect": found.to_json() if found else None})
    else:
        print_golden_parity(result)
        if found is not None:
            print_bisect(found)
    bad = found is not None and found.first_bad is not None
    return 0 if result.passed and not bad else 1


def bench(
    bundle: Path,
    /,
    *,
    batch: Annotated[tuple[int, ...], Parameter(negative=())] = (1, 8),
    tokens: int = 128,
    dense: Path | None = None,
    processes: int = 3,
    pairs: int = 20,
    json: bool = False,
) -> None:
    """Time a bundle against its dense model, in turns, in fresh processes.

    Parameters
    ----------
    bundle
        Folder or zip of the bundle.
    batch
        Batch size; may be given several times.
    tokens
        Tokens of every sample.
    dense
        The .onnx file to compare with, instead of the bundle's own dense model.
    processes
        Fresh processes; the median over them is reported.
    pairs
        Dense and pruned runs in each process.
    json
        Print a JSON document instead of a table.
    """
    from secateur.commands.tables import print_bench
    from secateur.runtime.bench import break_even_batch
    from secateur.runtime.bundle import open_bundle
    from secateur.workflow.recipe_file import bench_from
    from secateur.workflow.timing import time_bundle

    settings = bench_from(batches=batch, tokens=tokens, processes=processes, pairs=pairs)
    steps = Steps(quiet=json)
    sizes = ", ".join(map(str, batch))
    with open_bundle(bundle) as opened, steps.step(f"time batch {sizes}, {tokens} tokens"):
        rows = time_bundle(opened, settings, dense=dense, note=steps.note)
    if json:
        print_json([row.to_json() for row in rows])
        return
    print_bench([row.to_json() for row in rows])
    print_line(f"faster from batch {break_even_batch(rows) or 'none measured'} on")


def inspect(path: Path, /, *, json: bool = False) -> None:
    """Show what is in a bundle or an ONNX file: inputs, outputs, sites, engines, versions.

    Parameters
    ----------
    path
        A bundle (folder or zip) or an .onnx file.
    json
        Print a JSON document instead of tables.
    """
    from secateur.workflow.inspection import describe

    found = describe(path)
    if json:
        print_json(found)
        return
    for kind in ("inputs", "outputs"):
        rows = [(name, t["dtype"], t["shape"]) for name, t in found[kind].items()]
        print_table(kind, ("name", "type", "shape"), rows)
    if found["sites"]:
        columns = ("site", "selector", "keeps", "input", "protected>")
        print_table("token selection", columns, [tuple(s.values()) for s in found["sites"]])
    if "operators" in found:
        print_table(
            f"operators, opset {found['opset']}", ("operator", "nodes>"), found["operators"].items()
        )
    if "engines" in found:
        engines = [(name, *engine.values()) for name, engine in found["engines"].items()]
        print_table("engines", ("target", "file", "bytes>", "needs"), engines)
        print_table("files", ("file", "bytes>"), found["files"].items())
        print_table("made with", ("what", "version"), found["created_with"].items())
