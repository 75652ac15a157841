"""Commands about recipes: deploy, schema, methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secateur.commands.console import Steps, print_json, print_line, print_table, short_path

if TYPE_CHECKING:
    from secateur.recipe import Recipe
    from secateur.workflow.results import Results


def deploy(
    recipe: Path, /, *, output: Path | None = None, cache: str = "", json: bool = False
) -> int:
    """Do everything a recipe says: load, remove, select, verify, build, time, report.

    Parameters
    ----------
    recipe
        YAML file; secateur schema prints its schema.
    output
        Folder (or .zip) of the bundle, instead of the recipe's own.
    cache
        Folder of engines that were built before, or off; instead of the recipe's own.
    json
        Print a JSON document instead of tables.
    """
    from secateur.workflow.recipe_file import load_recipe

    checked = load_recipe(recipe)  # before the imports below, which take seconds
    from secateur.commands.tables import print_agreements, print_bench, print_checks, print_proofs
    from secateur.workflow.deploy import bundle_path
    from secateur.workflow.deploy import deploy as deploy_recipe

    if output is not None:
        checked = checked.model_copy(update={"output": output.resolve()})
    if cache:
        checked = checked.model_copy(update={"cache": cache})
    text = recipe.read_text(encoding="utf-8")
    results = deploy_recipe(checked, text, progress=Steps(quiet=json))
    bundle = bundle_path(checked)
    if json:
        print_json({**results.to_dict(), "bundle": str(bundle)})
    else:
        print_proofs(results.proofs)
        print_checks(results.checks)
        print_agreements(results.agreements)
        print_bench(results.bench)
        print_line(f"bundle  {short_path(bundle)}")
        if bundle.is_dir():
            print_line(f"report  {short_path(bundle / 'report.html')}")
    return _missed(checked, results)


def _missed(recipe: Recipe, results: Results) -> int:
    """1 when a row of the bench is below the recipe's least efficiency."""
    least = recipe.bench.minimum_efficiency if recipe.bench else 0.0
    below = [row for row in results.bench if (row["efficiency"] or least) < least]
    for row in below:
        print_line(
            f"efficiency {row['efficiency']:.2f} of {row['variant']}, batch {row['batch']}, "
            f"is below the recipe's {least:.2f}"
        )
    return 1 if below else 0


def schema() -> None:
    """Print the JSON schema of recipes, for editors and for reading."""
    from secateur.recipe import json_schema

    print_json(json_schema())


def methods(*, json: bool = False) -> None:
    """List the importance criteria, the selectors and the targets that a recipe may name.

    Parameters
    ----------
    json
        Print a JSON document instead of tables.
    """
    from secateur.workflow.methods import columns_of, list_methods

    found = list_methods()
    if json:
        print_json({kind: [m.to_dict() for m in items] for kind, items in found.items()})
        return
    for kind, items in found.items():
        columns = columns_of(kind)
        print_table(kind, columns, [m.row(columns) for m in items])
