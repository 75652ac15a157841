"""Commands about servers: triton."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from secateur.commands.console import Steps, print_json, print_line


def triton(
    bundle: Path,
    repository: Path,
    /,
    *,
    target: str = "onnxruntime",
    name: str = "",
    budgets: Literal["auto", "fixed", "optional", "per-request"] = "auto",
    max_batch_size: int = 0,
    json: bool = False,
) -> None:
    """Write a bundle as a model of a Triton repository: config.pbtxt, the model, warm-up data.

    Parameters
    ----------
    bundle
        Folder or zip of the bundle.
    repository
        The model repository; the model gets a folder in it.
    target
        onnxruntime (the ONNX file) or tensorrt (the engine).
    name
        Name of the served model; default: that of the bundle.
    budgets
        Of the selection sites under ONNX Runtime: fixed at their defaults, optional inputs
        of a model that does not batch, or an input of every request; auto is fixed.
    max_batch_size
        Largest batch that Triton makes; 0 is the largest of the profile.
    json
        Print a JSON document instead of text.
    """
    from secateur.runtime.bundle import open_bundle
    from secateur.workflow.triton import Serving, write_repository

    serving = Serving(target, name, budgets, max_batch_size)
    with open_bundle(bundle) as opened, Steps(quiet=json).step(f"serve {target}"):
        served = write_repository(opened, repository, serving)
    config = served.config
    if json:
        names = [info.name for info in config.inputs]
        found = {"folder": str(served.folder), "inputs": names, "notes": list(served.notes)}
        print_json({**found, "max_batch_size": config.max_batch})
        return
    print_line(f"wrote {served.folder}: {config.platform}, max_batch_size {config.max_batch}")
    for note in served.notes:
        print_line(f"  {note}")


__all__ = ["triton"]
