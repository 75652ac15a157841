"""From data to numbers: importance, compensation, quantisation."""

from secateur.import_guard import guard_import_name

guard_import_name(__name__, "secateur.calibration")
