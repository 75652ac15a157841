"""Compile analysis, removal and the norms of weights with mypyc where SECATEUR_COMPILE=1.

Without it there is nothing here: pyproject.toml describes a wheel of plain Python. The
compiled form behaves alike and carries the sources too, so that tracebacks can be read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup

PACKAGE = Path("src/secateur")
PASSES = ("blocks", "connections", "constant_folding", "groups", "late_broadcast", "names", "plan")
FILES = (
    *("weights.py", "graph_passes/axes/*.py", "graph_passes/axes/rules/*.py"),
    *(f"graph_passes/{name}.py" for name in (*PASSES, "prepare", "removal", "roles", "unread")),
    *(
        "calibration/units.py",
        "calibration/importance/unit_weights.py",
        "calibration/importance/marginals.py",
    ),
)
# mypy is strict in `make check`; here it only has to find the types, of as little as it needs.
CONFIG = """[mypy]
mypy_path = src
follow_imports = silent
ignore_missing_imports = True
[mypy-onnx.*,torch.*,secateur.api.*]
follow_imports = skip
"""


def sources() -> list[str]:
    """The files that are compiled, by the names under which they are imported."""
    found = sorted(path for pattern in FILES for path in PACKAGE.glob(pattern))
    return [str(path) for path in found if path.name != "__init__.py"]


def compiled() -> dict[str, object]:
    """What ``setup`` needs to compile; nothing where nobody asked."""
    if os.environ.get("SECATEUR_COMPILE") != "1":
        return {}
    if {"develop", "editable_wheel"} & set(sys.argv):
        sys.exit("SECATEUR_COMPILE does not go with -e: it would put binaries among the sources")
    if not {"bdist_wheel", "build_ext"} & set(sys.argv):  # pip only asks what is needed
        return {"setup_requires": ["mypy>=1.15", "numpy>=1.26", "onnx_ir>=0.1.14"]}
    from mypyc.build import mypycify

    config = Path("build/mypyc.ini")
    config.parent.mkdir(exist_ok=True)
    config.write_text(CONFIG, encoding="utf-8")
    modules = mypycify(
        [f"--config-file={config}", *sources()],
        target_dir="build/mypyc",
        group_name="secateur",
        opt_level="3",
    )
    return {"ext_modules": modules}


setup(**compiled())
