"""What a compensation is: sums over what a weight reads, and new weights from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.statistics.gathering import Accumulator
from secateur.registry import Registry

Array: TypeAlias = NDArray[np.float64]
Kept: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Refitted:
    """New weights of one product, and what is added to its result."""

    weight: Array
    """(out, in); the columns that go are 0."""
    bias: Array | None = None
    """(out,)"""


@dataclass(frozen=True, slots=True)
class Compensation:
    """One way to make up for columns that go: a function over sums, and the sums it needs."""

    function: Callable[[Array, Kept, Any], Refitted]
    begin: Callable[[], Accumulator]
    """Empty sums, one for every weight."""
    patches: bool = True
    """Whether a convolution's input is summed by what its kernel covers."""

    def __call__(self, weight: Array, kept: Kept, sums: Any) -> Refitted:  # noqa: ANN401
        """Fit (out, in) weights to the (in,) inputs that are kept."""
        return self.function(weight, kept, sums)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The function's own documentation."""
        return self.function.__doc__


COMPENSATIONS: Registry[Compensation] = Registry("compensation")


__all__ = ["COMPENSATIONS", "Array", "Compensation", "Kept", "Refitted"]
