"""Whether a row passes, and which refusals by the builder count as known."""

from __future__ import annotations

from typing import Any

from builds import BOUND, PRECISIONS
from subjects import CRASH


def in_full(row: dict[str, Any]) -> bool:
    """Whether every target took the model in every precision."""
    return all(row.get(p, {}).get("built") for p in PRECISIONS)


def verdict(row: dict[str, Any], listed: list[dict[str, str]]) -> str:
    """Why a model fails, "" when it passes; a refusal that is listed is none."""
    if error := row.get("error"):
        return str(error)
    for precision in PRECISIONS[:1] if row["name"] == CRASH else PRECISIONS:
        facts = row.get(precision)
        if facts is None:
            return f"nothing is known of {precision}"
        if facts["side_car"]:
            return f"the side-car of {precision} is wrong: {facts['side_car']}"
        for target, message in facts["targets"].items():
            if message and not is_listed(row["name"], target, precision, message, listed):
                return f"{precision} on {target}: new refusal: {message}"
        if not facts["built"] and not any(facts["targets"].values()):
            return f"{precision}: every target alone is built, all together are not"
    if row["name"] != CRASH and not row["float16_error"] <= BOUND:
        return f"half precision is off by {row['float16_error']:.1e}"
    return ""


def is_listed(
    model: str, target: str, precision: str, message: str, listed: list[dict[str, str]]
) -> bool:
    """Whether a refusal is known: same model, target, precision, operator and message."""
    return any(
        one["model"] == model
        and target in one["targets"].split(",")
        and precision in one["precisions"].split(",")
        and one["operator"] in message
        and one["message"] in message
        for one in listed
    )
