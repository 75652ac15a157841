"""Token selection sites as a bundle records them, and their run-time budgets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.errors import BadInputError
from secateur.runtime.backend import Array, Arrays

logger = logging.getLogger(__name__)

METADATA_KEY = "secateur.sites"


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens a site keeps.

    ``kind`` is "permille" (share of a sample's valid tokens), "count" or "constant";
    ``input`` the graph input that carries it at run time, or "" when it is fixed;
    ``default`` the permille or count to use when the caller gives none.
    """

    kind: str
    input: str
    default: int


@dataclass(frozen=True, slots=True)
class Site:
    """One token selection. The names of absent outputs are ""."""

    name: str
    selector: str
    budget: Budget
    protected: int
    tokens: str
    score_output: str
    index_output: str
    kept_output: str
    bias: str
    record: Mapping[str, Any]

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Site:
        """A record of the ``secateur.sites`` metadata; unknown keys are kept in ``record``."""
        try:
            budget = record["budget"]
            return Site(
                name=str(record["site"]),
                selector=str(record.get("selector", "")),
                budget=Budget(
                    str(budget["kind"]), str(budget.get("input") or ""), int(budget["default"])
                ),
                protected=int(record.get("protected", 0)),
                tokens=str(record.get("tokens", "")),
                score_output=str(record.get("score_output") or ""),
                index_output=str(record.get("index_output") or ""),
                kept_output=str(record.get("kept_output") or ""),
                bias=str(record.get("bias") or ""),
                record=dict(record),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(
                "a token selection site is not recorded properly",
                where=json.dumps(record, default=str)[:200],
                got=f"{type(error).__name__}: {error}",
                wanted="site, and budget with kind, input and default",
            ) from error


def sites_from_metadata(metadata: Mapping[str, str]) -> tuple[Site, ...]:
    """Sites recorded in an ONNX file's metadata; none when it records none."""
    text = metadata.get(METADATA_KEY, "[]")
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInputError(
            "the model's record of its selection sites is not JSON",
            where=f"metadata {METADATA_KEY}",
            got=str(error),
        ) from error
    return tuple(Site.from_json(record) for record in records)


def budget_inputs(
    arrays: Arrays,
    keep: Mapping[str, float],
    *,
    sites: Iterable[Site],
    trained: Mapping[str, float],
) -> dict[str, Array]:
    """Budget inputs (int64 [1]) for every site with one that ``arrays`` does not give.

    ``keep`` maps a site to a share (a float in (0, 1]) where the site takes permille, to a
    number of tokens (an int) where it takes a count. A site not named keeps its default.
    ``trained`` holds the shares that the model was trained with; leaving them is logged.
    """
    known = {site.name: site for site in sites}
    unknown = [name for name in keep if name not in known]
    if unknown:
        raise BadInputError(
            f"there is no selection site {unknown[0]!r}",
            got=", ".join(keep),
            wanted="sites: " + (", ".join(known) or "none, this model selects no tokens"),
        )
    found: dict[str, Array] = {}
    for site in known.values():
        if site.name in keep:
            _check_settable(site, arrays)
            found[site.budget.input] = np.array([amount_of(site, keep[site.name])], np.int64)
            _warn_if_untrained(site, keep[site.name], trained)
        elif site.budget.input and site.budget.input not in arrays:
            found[site.budget.input] = np.array([site.budget.default], np.int64)
    return found


def _check_settable(site: Site, arrays: Arrays) -> None:
    if not site.budget.input:
        raise BadInputError(
            f"site {site.name!r} keeps a fixed number of tokens",
            got="a keep ratio at run time",
            next_step="select again with the budget as a run-time input",
        )
    if site.budget.input in arrays:
        raise BadInputError(
            f"the budget of site {site.name!r} is given twice",
            got=f"in keep and as input {site.budget.input!r}",
            wanted="one of the two",
        )


def amount_of(site: Site, value: float) -> int:
    """The integer that the site's input carries for a share or a count.

    Raises BadInputError for a share where the site takes counts, and the other way round.
    """
    is_count = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if site.budget.kind == "count":
        if is_count and value >= max(1, site.protected):
            return int(value)
        raise BadInputError(
            f"site {site.name!r} keeps a number of tokens",
            got=repr(value),
            wanted=f"an integer of at least {max(1, site.protected)}",
        )
    if not isinstance(value, bool) and (not is_count or value == 1) and 0.0 < value <= 1.0:
        return max(1, round(1000 * float(value)))
    raise BadInputError(
        f"site {site.name!r} keeps a share of its tokens",
        got=repr(value),
        wanted="a number above 0 and at most 1, such as 0.6",
    )


def _warn_if_untrained(site: Site, value: float, trained: Mapping[str, float]) -> None:
    if site.name in trained and not np.isclose(trained[site.name], value):
        logger.warning(
            "site %s runs with %s; the model was trained with %s",
            site.name,
            value,
            trained[site.name],
        )


__all__ = [
    "METADATA_KEY",
    "Budget",
    "Site",
    "amount_of",
    "budget_inputs",
    "sites_from_metadata",
]
