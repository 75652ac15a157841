"""What a deployment found out, as plain data: the source of the report and of the tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


def spell_error(number: float) -> str:
    """An error as people compare them: 0, or two digits and a power of ten."""
    return "0" if number == 0 else f"{number:.1e}".replace("e-0", "e-")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is."""

    parameters: int
    flops: int
    """Of one forward pass at the bench's shape (batch 1), multiply and add counted apart."""
    nodes: int


@dataclass(frozen=True, slots=True)
class LayerRemoval:
    """What one layer lost."""

    layer: str
    what: str
    units: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """Removed graph against the dense one with the removed units neutral."""

    inputs: str
    output: str
    relative_error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.relative_error <= self.bound


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """One site where the model drops tokens."""

    site: str
    by: str
    keep: str
    protected: int
    control: str
    """Name of the input that changes the budget at run time, or ``constant``."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the parity table."""

    target: str
    part: str
    subject: str
    value: float
    bound: float | None
    passed: bool
    note: str = ""

    @property
    def figure(self) -> str:
        """The measured value as people read that part: a count, a share, or an error."""
        if self.part == "flips":
            return f"{self.value:.0f}"
        return f"{self.value:.4f}" if self.part == "task" else spell_error(self.value)

    @property
    def limit(self) -> str:
        """The bound in the same way; empty without one."""
        return "" if self.bound is None else spell_error(self.bound)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the model as shipped compares with the dense one on the user's data."""

    target: str
    metric: str
    value: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One input and the token positions that are left after each site."""

    label: str
    tokens: tuple[str, ...] = ()
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    image: tuple[tuple[float, ...], ...] = ()
    """Rows of grey values in 0..1; empty for text."""
    grid: tuple[int, int] = (0, 0)
    """Patches down and across; token 0 is the class token."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of the bundle that can run."""

    target: str
    file: str
    bytes: int
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frozen:
    """An axis that may not be cut, with the reason."""

    axis: str
    reason: str
    node: str


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the report shows."""

    name: str
    source: str
    dense: Size
    pruned: Size
    removed: tuple[LayerRemoval, ...] = ()
    proofs: tuple[Proof, ...] = ()
    selections: tuple[SelectionRow, ...] = ()
    checks: tuple[Check, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    samples: tuple[Sample, ...] = ()
    bench: tuple[dict[str, Any], ...] = ()
    artefacts: tuple[Artefact, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every proof and every check held."""
        return all(proof.passed for proof in self.proofs) and all(c.passed for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


__all__ = [
    "Agreement",
    "Artefact",
    "Check",
    "Frozen",
    "LayerRemoval",
    "Proof",
    "Results",
    "Sample",
    "SelectionRow",
    "Size",
    "spell_error",
]
