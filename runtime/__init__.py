"""Build, open, run, compare and time engines; needs NumPy and a backend only."""

if __name__ != "secateur.runtime":  # in a checkout, a second copy of every module
    raise ImportError(f"import 'secateur.runtime', not {__name__!r}")

# Importing a backend's module enters it in BACKENDS; none imports its library.
from secateur.runtime import onnxruntime as _onnxruntime  # noqa: F401
from secateur.runtime import tensorrt as _tensorrt  # noqa: F401
