"""Build, open, run, compare and time engines; needs NumPy and a backend only."""

from secateur.import_guard import guard_import_name

guard_import_name(__name__, "secateur.runtime")

from secateur.runtime import onnxruntime as _onnxruntime  # noqa: E402,F401 (registers its backend)
