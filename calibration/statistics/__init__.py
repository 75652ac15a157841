"""Numbers gathered inside a running graph: what flows into the weights that are to be judged."""

from secateur.calibration.statistics.gathering import BY_FEATURE, BY_KERNEL, How, gather
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.moments import Moments
from secateur.calibration.statistics.places import Place, all_places, places_of

__all__ = [
    "BY_FEATURE",
    "BY_KERNEL",
    "Gram",
    "How",
    "Moments",
    "Place",
    "all_places",
    "gather",
    "places_of",
]
