"""Build, open, run, compare and time engines; needs NumPy and a backend only."""

from secateur.import_guard import guard_import_name

guard_import_name(__name__, "secateur.runtime")

# Importing a backend's module enters it in BACKENDS; none imports its library.
from secateur.runtime import onnxruntime as _onnxruntime  # noqa: E402,F401
from secateur.runtime import tensorrt as _tensorrt  # noqa: E402,F401
