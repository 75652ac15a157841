"""How every selector is put into a small model: sites, options, signals from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.models.selectors import SELECTORS

Options = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class Step:
    """One site: which block, what selects there, with which options."""

    block: int
    by: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A published method, at one site or several.

    Attributes:
        steps: From first to last.
        given: Sizes of the signals that become inputs of the graph; -1 for the tokens.
        keep: Share at every site; methods with a count of their own do not read it.
        leading: Whether the leading class token is protected; False where it leads nothing.
        only_there: Whether the method reads a class token at every site, so that it has one
            site only where tokens leave behind the tower.
    """

    steps: tuple[Step, ...]
    given: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keep: float = 0.5
    leading: bool = True
    only_there: bool = False


def _one(by: str, block: int = 2, **options: bool | float | str) -> tuple[Step, ...]:
    return (Step(block, by, options),)


_SPECIAL = {
    "aim": Method(_one("aim"), keep=0.6),
    "dtop": Method(
        _one("dtop", threshold=0.6, keep_per_class=2),
        {"mask_logits": (5, -1), "class_logits": (5, 2)},
    ),
    "flowcut": Method((Step(0, "flowcut", {"remaining": 2}), Step(2, "flowcut")), only_there=True),
    "hiprune": Method(_one("hiprune", layers="0,-1", alpha=0.5)),
    "holov": Method(_one("holov", crops=4)),
    "quota": Method(_one("quota"), {"relevance": (4,)}),
    "reagent": Method(_one("reagent"), {"importance": (-1,)}),
    "recoverable": Method(_one("recoverable"), {"text_similarity": (-1,)}),
    "spatten": Method((Step(0, "spatten"), Step(2, "spatten")), keep=0.7),
    "todre_relevance": Method(_one("todre_relevance", threshold=0.5), {"image": (-1,)}),
    "top_vim": Method(_one("top_vim"), {"ssm_out_backward": (8, -1)}, leading=False),
    "vflowopt": Method(_one("vflowopt", threshold=1.5, base=3, columns=9, cell=2.5)),
    "vflowopt_entropy": Method(
        _one("vflowopt_entropy", threshold=1.5, base=3, columns=9, cell=2.5),
        {"patch_entropy": (-1,)},
    ),
    "vflowopt_stage": Method(
        (Step(1, "vflowopt", {"threshold": 1.5, "base": 3, "columns": 9, "cell": 2.5}),
         Step(2, "vflowopt_stage")),
        keep=0.6,
    ),
    "vtc_cls": Method(_one("vtc_cls", layers="-2:")),
}  # fmt: skip

VARIANTS = {
    "fopru row": Method(_one("fopru", strategy="row")),
    "holov fill": Method(_one("holov", crops=4, fill=True)),
    "lexrank threshold": Method(_one("lexrank", weights="threshold", threshold=0.2)),
    "todre nearest": Method(_one("todre", diversity="nearest")),
}

METHODS: dict[str, Method] = {
    **{name: _SPECIAL.get(name, Method(_one(name))) for name in SELECTORS if ":" not in name},
    **VARIANTS,
}
"""Every registered selector, and options that change the graph."""


def made_up(name: str, shape: tuple[int, ...], seed: int = 2) -> Tensor:
    """Values for a signal from outside."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if name == "image":
        return (torch.arange(shape[1]) >= 3).float().expand(shape).contiguous()
    return values.abs() if name in {"relevance", "importance"} else values * 2
