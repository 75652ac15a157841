"""Passes on ONNX graphs (onnx_ir): axis analysis, removal, token selection."""

from secateur.import_guard import guard_import_name

guard_import_name(__name__, "secateur.graph_passes")
