"""Multiply-adds of a forward run, on the shapes that it really had.

Products, convolutions and attention count, one multiply-add as one; softmax, norms, sorting and
everything element by element count nothing, as in the published numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Inputs = Mapping[str, Tensor]
Run = Callable[[Inputs], object]


def macs(run: Run, inputs: Inputs) -> int:
    """Multiply-adds of one call of ``run``."""
    counter = FlopCounterMode(display=False)
    with counter:
        run(inputs)
    return counter.get_total_flops() // 2


def macs_per_sample(run: Run, inputs: Inputs) -> tuple[int, ...]:
    """Multiply-adds of every sample by itself; the first axis of every input is the batch."""
    size = next(iter(inputs.values())).shape[0]
    return tuple(
        macs(run, {name: value[b : b + 1] for name, value in inputs.items()}) for b in range(size)
    )


__all__ = ["Inputs", "Run", "macs", "macs_per_sample"]
