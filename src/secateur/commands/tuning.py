"""The command that searches token keep schedules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secateur.commands.console import Steps, print_json, print_line, print_table, short_path

if TYPE_CHECKING:
    from secateur.workflow.tune import Tuned


def tune(
    recipe: Path,
    /,
    *,
    by: Annotated[tuple[str, ...], Parameter(negative=())] = ("class_row", "column_mean"),
    cut: Annotated[tuple[Literal["attention", "block"], ...], Parameter(negative=())] = (
        "attention",
        "block",
    ),
    site: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    evaluations: int = 400,
    seed: int = 0,
    loss: float | None = None,
    latency: str | None = None,
    journal: Path | None = None,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Search token keep schedules that are faster at no lower agreement, on the recipe's data.

    Parameters
    ----------
    recipe
        YAML file; its removals are applied, and its own schedule is what has to be beaten.
    by
        Selector to try; may be given several times.
    cut
        Where in a block tokens leave; may be given several times.
    site
        Attention block that may drop tokens; may be given several times, all but the last else.
    evaluations
        How many schedules to look at.
    seed
        Of the search.
    loss
        Largest loss, one minus the mean cosine to the dense model; else that of the recipe's
        schedule.
    latency
        Most time a batch, such as 4ms: the schedule that agrees best below it is taken.
    journal
        File that keeps every evaluation: an interrupted search goes on from it.
    plot
        SVG of the front of time against loss to write.
    json
        Print a JSON document instead of tables.
    """
    from secateur.workflow.recipe_file import load_recipe
    from secateur.workflow.schedules import recipe_lines
    from secateur.workflow.tune import TuneOptions
    from secateur.workflow.tune import tune as tune_recipe

    options = TuneOptions(
        by=by,
        cut=cut,
        sites=site,
        evaluations=evaluations,
        seed=seed,
        loss=loss,
        latency_ms=_milliseconds(latency),
        journal=journal,
    )
    found = tune_recipe(load_recipe(recipe), options, progress=Steps(quiet=json))
    if plot is not None:
        _draw(found, plot)
    if json:
        print_json(found.to_json())
        return
    rows = [
        (one.name, one.held_out_ms, one.loss, one.nearest, _spell(one.selections))
        for one in found.raced
    ]
    columns = ("schedule", "held-out ms>", "1 - cosine>", "same nearest>", "keeps")
    print_table("on held-out samples", columns, rows)
    print_line(f"{found.best.name}, as it stands in a recipe:\n")
    print_line(recipe_lines(found.best.selections))
    if plot is not None:
        print_line(f"wrote {short_path(plot)}")


def _milliseconds(text: str | None) -> float | None:
    """4ms, 0.004s or 4 (milliseconds)."""
    from secateur.errors import BadInputError

    if text is None:
        return None
    number, factor = text.removesuffix("ms"), 1.0
    if number == text and text.endswith("s"):
        number, factor = text.removesuffix("s"), 1e3
    try:
        value = float(number) * factor
    except ValueError:
        value = 0.0
    if value <= 0:
        raise BadInputError("no time", where="--latency", got=text, wanted="such as 4ms or 0.1s")
    return value


def _spell(selections: object) -> str:
    from collections.abc import Sequence

    assert isinstance(selections, Sequence)
    parts = [f"{one.site.rpartition('.')[2]}: {one.keep:g}" for one in selections]
    how = f" by {selections[0].by}, {selections[0].cut}" if selections else "all"
    return ", ".join(parts) + how


def _draw(found: Tuned, path: Path) -> None:
    from secateur.workflow.arrays import save_text
    from secateur.workflow.front_chart import front_chart

    save_text(path, front_chart(found.points, found.front))


__all__ = ["tune"]
