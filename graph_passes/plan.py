"""What to keep of each group: a JSON file that can be read, edited, diffed and applied again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError
from secateur.graph_passes.axes import Atom
from secateur.graph_passes.blocks import select_blocks
from secateur.graph_passes.groups import Analysis, Group

SCHEMA = 1
Positions: TypeAlias = NDArray[np.int64]
_KEYS = {
    *("schema", "fingerprint", "allow_inexact", "allow_outputs", "allow_ids", "blocks"),
    *("sizes", "keep"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Kept units per group name; a group that is not named stays whole."""

    keep: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Size of every group of the model the plan was made for."""
    fingerprint: str = ""
    """Of that model; empty in a plan written by hand, which is then not checked."""
    allow_inexact: bool = False
    """Cut groups that a norm is taken over; the result is renormalised, not equal."""
    allow_outputs: tuple[str, ...] = ()
    """Graph outputs whose shape may change: units that are their positions can go."""
    allow_ids: Mapping[str, int] = field(default_factory=dict)
    """Graph inputs whose ids may lose their rows, each with the id that stands in for those."""
    blocks: tuple[str, ...] = ()
    """Residual blocks to remove whole."""

    def to_json(self) -> str:
        """Return the plan as JSON, one group a line."""
        head = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "allow_inexact": self.allow_inexact,
            "allow_outputs": list(self.allow_outputs),
            "allow_ids": dict(self.allow_ids),
            "blocks": list(self.blocks),
        }
        body = json.dumps(head, indent=2)[:-2]
        keep = {name: list(units) for name, units in self.keep.items()}
        return f'{body},\n  "sizes": {_lines(self.sizes)},\n  "keep": {_lines(keep)}\n}}\n'

    @classmethod
    def from_json(cls, text: str, where: str = "") -> Plan:
        """Read a plan.

        Raises:
            BadInputError: not JSON, another schema, an entry of another type, or a group
                that stands twice.
        """
        data = _read(text, where)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise BadInputError(
                "the plan has another schema", where=where, got=str(got), wanted=str(SCHEMA)
            )
        if unknown := sorted(set(data) - _KEYS):
            raise BadInputError("unknown keys in the plan", where=where, got=", ".join(unknown))
        _check_types(data, where)
        return cls(
            {name: tuple(units) for name, units in data.get("keep", {}).items()},
            data.get("sizes", {}),
            data.get("fingerprint", ""),
            data.get("allow_inexact", False),
            tuple(data.get("allow_outputs", ())),
            data.get("allow_ids", {}),
            tuple(data.get("blocks", ())),
        )


def _lines(entries: Mapping[str, object]) -> str:
    rows = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()]
    return "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"


def _read(text: str, where: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        """A dict of the pairs; JSON itself would take the last of two of one name."""
        if twice := _twice(name for name, _ in pairs):
            raise BadInputError(f"{twice!r} stands twice in the plan", where=where)
        return dict(pairs)

    try:
        data: object = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise BadInputError("the plan is not JSON", where=where, got=str(error)) from error
    return data


def _twice(names: Iterable[str]) -> str:
    """The first name that comes a second time, or ""."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _check_types(data: Mapping[str, Any], where: str) -> None:
    keep = data.get("keep", {})
    wrong = [key for key, (fits, _) in _ENTRIES.items() if key in data and not fits(data[key])]
    if wrong:
        what = f"{wrong[0]!r} in the plan is not {_ENTRIES[wrong[0]][1]}"
    elif bad := [name for name, units in keep.items() if not _is_list_of(int, units)]:
        what = f"the kept units of {bad[0]!r} are not a list of integers"
    else:
        return
    raise BadInputError(what, where=where, next_step="see what `prune --plan-only` writes")


def _is_list_of(kind: type, given: object) -> bool:
    return isinstance(given, list) and all(type(one) is kind for one in given)


def _has_integers(given: object) -> bool:
    return isinstance(given, dict) and all(type(one) is int for one in given.values())


_ENTRIES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "keep": (lambda given: isinstance(given, dict), "a list of units per group"),
    "sizes": (_has_integers, "an integer per group"),
    "allow_ids": (_has_integers, "an integer per input"),
    "allow_outputs": (lambda given: _is_list_of(str, given), "a list of names"),
    "blocks": (lambda given: _is_list_of(str, given), "a list of names"),
    "allow_inexact": (lambda given: isinstance(given, bool), "true or false"),
    "fingerprint": (lambda given: isinstance(given, str), "a text"),
}
"""What each entry of a plan file has to be."""


def make_plan(
    analysis: Analysis,
    keep: Mapping[str, Sequence[int]],
    *,
    allow_inexact: bool = False,
    blocks: tuple[str, ...] = (),
) -> Plan:
    """Return a plan for this model, checked."""
    kept = {name: tuple(units) for name, units in keep.items()}
    plan = Plan(
        MappingProxyType(kept),  # nothing is changed after it was checked
        _sizes(analysis),
        analysis.fingerprint,
        allow_inexact,
        analysis.allow_outputs,
        analysis.allow_ids,
        blocks,
    )
    analysis.checked[:] = [(plan, _check(analysis, plan))]
    return plan


def _sizes(analysis: Analysis) -> dict[str, int]:
    return {group.name: group.size for group in analysis.groups if group.weights}


def resolve_plan(analysis: Analysis, plan: Plan) -> dict[Atom, Positions]:
    """Return the kept positions per atom.

    Raises:
        BadInputError: a group that the model lacks or has in another size, units that
            do not exist or stand twice, a group that would be emptied, frozen or inexact, or
            that lies in a block which goes whole.
    """
    checked = analysis.checked[0] if analysis.checked else None
    kept = checked[1] if checked and checked[0] is plan else _check(analysis, plan)
    return {group.atom: units for group, units in kept if len(units) < group.size}


def _check(analysis: Analysis, plan: Plan) -> list[tuple[Group, Positions]]:
    """Return the kept units per group, ascending."""
    _check_model(analysis, plan)
    stand_ins, found = analysis.roles.vocabulary, []
    for name, units in plan.keep.items():
        group = analysis.group(name)
        found.append((group, _positions(group, units)))
        _check_group(group, units, plan)
        if group.atom in stand_ins and (lost := sorted(stand_ins[group.atom].difference(units))):
            raise BadInputError(
                f"the plan removes row {lost[0]} of {name}, which stands in for removed ones",
                next_step="keep it, or name another id: allow_ids, --allow-ids",
            )
    _check_blocks(analysis, plan)
    return found


def _check_model(analysis: Analysis, plan: Plan) -> None:
    if not plan.fingerprint or plan.fingerprint == analysis.fingerprint:
        return
    here = _sizes(analysis)
    differs = [
        f"{name}: {size} in the plan, {here.get(name, 'absent')} here"
        for name, size in plan.sizes.items()
        if here.get(name) != size
    ]
    differs += [
        f"{name}: not in the plan, {here[name]} here" for name in here if name not in plan.sizes
    ]
    more = f"; {len(differs) - 5} more" if len(differs) > 5 else ""
    raise BadInputError(
        "the plan was made for another model",
        got="; ".join(differs[:5]) + more or "the same groups, in another order or of other roles",
        wanted=f"fingerprint {plan.fingerprint}",
        next_step="make a new plan with `secateur prune --plan-only`, or clear its fingerprint",
    )


def _check_group(group: Group, units: tuple[int, ...], plan: Plan) -> None:
    if len(units) == group.size:
        return
    if group.frozen:
        raise BadInputError(
            f"{group.name} cannot be cut",
            where=group.frozen[0].node,
            got=group.frozen[0].text,
            next_step=_way_out(group),
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


def _positions(group: Group, units: tuple[int, ...]) -> Positions:
    """Return the units, ascending; BadInputError where one does not exist or stands twice."""
    try:
        listed = np.fromiter(units, np.int64, len(units))
    except OverflowError:
        largest = max(units, key=abs)
        raise BadInputError(f"{group.name} has no unit {largest}") from None
    if not (listed[1:] > listed[:-1]).all():
        listed = np.sort(listed)
        if (listed[1:] == listed[:-1]).any():
            raise BadInputError(f"a kept unit of {group.name} stands twice in the plan")
    if len(listed) and not 0 <= listed[0] <= listed[-1] < group.size:
        bad = listed[0] if listed[0] < 0 else listed[-1]
        raise BadInputError(f"{group.name} has no unit {bad}", wanted=f"0 to {group.size - 1}")
    return listed


def _way_out(group: Group) -> str:
    """What to do about a frozen group; an output may be let go by its name."""
    outputs = [r.node for r in group.frozen if r.text == "it is an axis of a graph output"]
    if len(outputs) == len(group.frozen):
        return f"to change the shape of the output, --allow-output {outputs[0]}"
    if group.role == "rows":
        return "if a graph input gives the ids of its rows, --allow-ids INPUT=ID"
    return "leave it out of the plan"


def _check_blocks(analysis: Analysis, plan: Plan) -> None:
    """Refuse a block that stands twice, and what lies in a block that goes whole."""
    if not plan.blocks:
        return
    if twice := _twice(plan.blocks):
        raise BadInputError(f"the block {twice!r} stands twice in the plan")
    chosen = select_blocks(analysis.model, plan.blocks)
    cut = [name for name, kept in plan.keep.items() if len(kept) < analysis.group(name).size]
    parts = {name: {use.node for use in analysis.group(name).weights} for name in cut}
    parts |= {f"the block {block.name!r}": set(block.nodes) for block in chosen}
    for block in chosen:
        for name, nodes in parts.items():
            if nodes < set(block.nodes):
                raise BadInputError(
                    f"the plan cuts {name} and removes the block {block.name!r} around it",
                    next_step="name one of them",
                )


__all__ = ["SCHEMA", "Plan", "make_plan", "resolve_plan"]
