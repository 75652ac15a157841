"""Making up for what was removed: the weights that read it are fitted to what is left."""

from secateur.calibration.compensation import bias, obspa, refit  # noqa: F401 - registration
from secateur.calibration.compensation.core import COMPENSATIONS, Compensation, Refitted
from secateur.calibration.compensation.graph import Remembered, compensate

__all__ = ["COMPENSATIONS", "Compensation", "Refitted", "Remembered", "compensate"]
