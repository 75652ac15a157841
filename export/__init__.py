"""PyTorch to ONNX: parameter names kept, dynamic dimensions asserted."""

from secateur.import_guard import guard_import_name

guard_import_name(__name__, "secateur.export")
