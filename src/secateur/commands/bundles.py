"""Commands about bundles: build, run, parity, bench, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secateur.commands.console import print_json, print_table


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
