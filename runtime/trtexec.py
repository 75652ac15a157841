"""The trtexec command that builds what ``python -m secateur.runtime build`` builds.

*Source: trtexec's own help text, TensorRT 10 (build options).*
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from secateur.runtime.backend import EngineSpec, Profile, ShapeRange

_ENDS = (("min", "low"), ("opt", "usual"), ("max", "high"))


def trtexec_line(model: str, spec: EngineSpec, shape_inputs: Mapping[str, ShapeRange]) -> str:
    """One shell command, with a line for every profile.

    ``spec`` is complete: every budget has its range. Of an input whose contents decide a shape
    (``shape_inputs``, the first profile's) trtexec takes the contents in place of the shape.
    TensorRT 11 is always strongly typed; leave ``--stronglyTyped`` out where it is not known.
    """
    engine = PurePosixPath(model).with_suffix(".engine").name
    lines = [
        f"trtexec --onnx={shlex.quote(model)} --saveEngine={shlex.quote(engine)} --stronglyTyped",
        f"--memPoolSize=workspace:{spec.workspace_bytes >> 20} --profilingVerbosity=detailed",
    ]
    profiles = spec.all_profiles
    for number, profile in enumerate(profiles):
        shapes = " ".join(_shapes(profile, shape_inputs))
        if shapes:
            lines.append(f"--profile={number} {shapes}" if len(profiles) > 1 else shapes)
    return " \\\n  ".join(lines)


def _shapes(profile: Profile, shape_inputs: Mapping[str, ShapeRange]) -> list[str]:
    values = {name: profile.values[name] for name in shape_inputs if name in profile.values}
    ranges = {**profile.shapes, **values}
    if not ranges:
        return []
    return [
        f"--{end}Shapes="
        + shlex.quote(",".join(_shape(name, getattr(span, part)) for name, span in ranges.items()))
        for end, part in _ENDS
    ]


def _shape(name: str, sizes: tuple[int, ...]) -> str:
    """``name:1x16``; a name with a colon goes between quotes of its own."""
    written = f"'{name}'" if ":" in name else name
    return f"{written}:{'x'.join(map(str, sizes))}" if sizes else f"{written}:scalar"


__all__ = ["trtexec_line"]
