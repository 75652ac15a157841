"""What is rounded to what: the options of quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secateur.errors import BadInputError

Kind = Literal["int8", "fp8", "int4"]
Ranges = Literal["minmax", "percentile", "entropy", "mse"]
Weights = Literal["nearest", "gptq"]

KINDS = ("int8", "fp8", "int4")
RANGES = ("minmax", "percentile", "entropy", "mse")
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to write a graph with fewer bits; Q/DQ pairs say it, and nothing else does.

    ``int8`` and ``fp8`` (E4M3) round activations, one scale a tensor, and weights, one scale an
    output channel; both are symmetric and every zero point is 0. ``int4`` rounds weights alone,
    one scale for ``block`` inputs of an output channel.
    """

    kind: Kind = "int8"
    ranges: Ranges = "percentile"
    """How the range of an activation is found; ``percentile`` leaves 0.01 % of values out."""
    weights: Weights = "nearest"
    """Round to the nearest, or with GPTQ, which needs data for ``int4`` too."""
    tokens: Literal["uniform", "norm", "distance", "attention"] = "uniform"
    """By what tokens count in GPTQ: RSQ's scaling."""
    block: int = 32
    """Inputs that share a scale, with ``int4``."""
    rotate: bool = False
    """Turn the residual stream first, so that no channel stands out; for pre-norm RMSNorm."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("ranges", self.ranges, RANGES),
            ("weights", self.weights, ("nearest", "gptq")),
            ("tokens", self.tokens, ("uniform", "norm", "distance", "attention")),
        ):
            if value not in known:
                raise BadInputError(
                    f"unknown {name} of quantisation: {value!r}",
                    wanted="one of " + ", ".join(known),
                )
        if self.block < _SMALLEST_BLOCK or self.block & (self.block - 1):
            raise BadInputError(
                "the block of int4 is no size that engines take",
                got=str(self.block),
                wanted="a power of two from 16 on",
            )

    @property
    def rounds_activations(self) -> bool:
        """Whether activations are rounded too."""
        return self.kind != "int4"

    @property
    def needs_data(self) -> bool:
        """Whether anything has to be measured on data."""
        return self.rounds_activations or self.weights == "gptq"


__all__ = ["KINDS", "RANGES", "Kind", "Ranges", "Scheme"]
