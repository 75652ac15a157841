"""From data to numbers: importance, compensation, quantisation."""

if __name__ != "secateur.calibration":  # in a checkout, a second copy of every module
    raise ImportError(f"import 'secateur.calibration', not {__name__!r}")
