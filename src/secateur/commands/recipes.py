"""Commands about recipes: deploy, schema, methods."""

from __future__ import annotations

from secateur.commands.console import print_json, print_table


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
    from secateur.workflow.methods import list_methods

    found = list_methods()
    if json:
        print_json({kind: [m.to_dict() for m in items] for kind, items in found.items()})
        return
    for kind, items in found.items():
        print_table(kind, ("name", "what it does", "source"), [m.row for m in items])
