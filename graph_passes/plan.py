"""What to keep of each group: a JSON file that can be read, edited, diffed and applied again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.graph_passes.axes import Atom
from secateur.graph_passes.groups import Analysis, Group

SCHEMA = 1
_KEYS = {"schema", "fingerprint", "allow_inexact", "allow_outputs", "blocks", "sizes", "keep"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Kept units per group name; a group that is not named stays whole."""

    keep: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Size of each named group in the model the plan was made for."""
    fingerprint: str = ""
    """Of that model; empty in a plan written by hand, which is then not checked."""
    allow_inexact: bool = False
    """Cut groups that a norm is taken over; the result is renormalised, not equal."""
    allow_outputs: bool = False
    """Also cut units that are positions of a graph output, whose shape then changes."""
    blocks: tuple[str, ...] = ()
    """Residual blocks to remove whole."""

    def to_json(self) -> str:
        """Return the plan as JSON, one group a line."""
        rows = [
            f"    {json.dumps(name)}: {json.dumps(list(units))}"
            for name, units in self.keep.items()
        ]
        head = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "allow_inexact": self.allow_inexact,
            "allow_outputs": self.allow_outputs,
            "blocks": list(self.blocks),
            "sizes": dict(self.sizes),
        }
        body = json.dumps(head, indent=2)[:-2]
        return body + ',\n  "keep": {\n' + ",\n".join(rows) + "\n  }\n}\n"

    @classmethod
    def from_json(cls, text: str, where: str = "") -> Plan:
        """Read a plan.

        Raises:
            BadInputError: not JSON, another schema, or a group that is not a list of integers.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInputError("the plan is not JSON", where=where, got=str(error)) from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise BadInputError(
                "the plan has another schema", where=where, got=str(got), wanted=str(SCHEMA)
            )
        unknown = set(data) - _KEYS
        if unknown:
            raise BadInputError("unknown keys in the plan", where=where, got=", ".join(unknown))
        keep = data.get("keep", {})
        if not isinstance(keep, dict) or not isinstance(data.get("sizes", {}), dict):
            raise BadInputError("the plan's entries are not groups and their units", where=where)
        for name, units in keep.items():
            if not isinstance(units, list) or not all(type(unit) is int for unit in units):
                raise BadInputError(
                    f"the kept units of {name!r} are not a list of integers", where=where
                )
        return cls(
            {name: tuple(units) for name, units in keep.items()},
            data.get("sizes", {}),
            data.get("fingerprint", ""),
            bool(data.get("allow_inexact", False)),
            bool(data.get("allow_outputs", False)),
            tuple(data.get("blocks", ())),
        )


def make_plan(
    analysis: Analysis,
    keep: Mapping[str, tuple[int, ...]],
    *,
    allow_inexact: bool = False,
    allow_outputs: bool = False,
) -> Plan:
    """Return a plan for this model, checked.

    ``allow_outputs`` is what the analysis was made with.
    """
    sizes = {name: analysis.group(name).size for name in keep}
    plan = Plan(dict(keep), sizes, fingerprint(analysis), allow_inexact, allow_outputs)
    resolve_plan(analysis, plan)
    return plan


def fingerprint(analysis: Analysis) -> str:
    """Hash group names and sizes: what a plan refers to, independent of weight values."""
    text = json.dumps([(g.name, g.role, g.size) for g in analysis.groups if g.weights])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve_plan(analysis: Analysis, plan: Plan) -> dict[Atom, NDArray[np.int64]]:
    """Return the kept positions per atom.

    Raises:
        BadInputError: a group that the model lacks or has in another size, units that
            do not exist or stand twice, a group that would be emptied, frozen or inexact.
    """
    _check_model(analysis, plan)
    keep: dict[Atom, NDArray[np.int64]] = {}
    for name, units in plan.keep.items():
        group = analysis.group(name)
        _check_group(group, units, plan)
        if len(units) < group.size:
            keep[group.atom] = np.asarray(sorted(units), dtype=np.int64)
    return keep


def _check_model(analysis: Analysis, plan: Plan) -> None:
    if not plan.fingerprint or plan.fingerprint == fingerprint(analysis):
        return
    here = {group.name: group.size for group in analysis.groups}
    differs = [
        f"{name}: {size} in the plan, {here.get(name, 'absent')} here"
        for name, size in plan.sizes.items()
        if here.get(name) != size
    ]
    raise BadInputError(
        "the plan was made for another model",
        got="; ".join(differs[:5]) or "the same named groups, but others differ",
        wanted=f"fingerprint {plan.fingerprint}",
        next_step="make a new plan with `secateur prune --plan-only`, or clear its fingerprint",
    )


def _check_group(group: Group, units: tuple[int, ...], plan: Plan) -> None:
    bad = [unit for unit in units if not 0 <= unit < group.size]
    if bad:
        raise BadInputError(f"{group.name} has no unit {bad[0]}", wanted=f"0 to {group.size - 1}")
    if len(set(units)) != len(units):
        raise BadInputError(f"a kept unit of {group.name} stands twice in the plan")
    if len(units) == group.size:
        return
    if group.frozen:
        raise BadInputError(
            f"{group.name} cannot be cut",
            where=group.frozen[0].node,
            got=group.frozen[0].text,
            next_step="leave it out of the plan",
        )
    if units and len(units) < group.at_least:
        raise BadInputError(
            f"the plan keeps {len(units)} units of {group.name}",
            wanted=f"at least {group.at_least}: so many are picked at a time",
        )
    if not units:
        raise BadInputError(
            f"the plan removes all of {group.name}",
            wanted="at least one kept unit",
            next_step="keep one, or remove the whole block",
        )
    if not group.exact and not plan.allow_inexact:
        raise BadInputError(
            f"cutting {group.name} is not exact: a norm is taken over it",
            next_step='set "allow_inexact": true to accept a renormalised result',
        )


__all__ = ["SCHEMA", "Plan", "fingerprint", "make_plan", "resolve_plan"]
