"""PyTorch to ONNX: parameter names kept, dynamic dimensions asserted."""

if __name__ != "secateur.export":  # in a checkout, a second copy of every module
    raise ImportError(f"import 'secateur.export', not {__name__!r}")
