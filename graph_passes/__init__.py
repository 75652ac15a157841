"""Passes on ONNX graphs (onnx_ir): axis analysis, removal, token selection."""

if __name__ != "secateur.graph_passes":  # in a checkout, a second copy of every module
    raise ImportError(f"import 'secateur.graph_passes', not {__name__!r}")
