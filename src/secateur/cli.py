"""The command line: one table of commands, one place where errors become exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.errors import SecateurError

_OK, _INTERRUPTED = 0, 130


@dataclass(frozen=True, slots=True)
class Command:
    """A command: where its function is, and its line in the overview."""

    function: str
    summary: str


# Functions are named, not imported: a command pays for its own imports only.
COMMANDS: dict[str, Command] = {
    "deploy": Command("recipes:deploy", "Do everything a recipe says, from the model to a bundle"),
    "export": Command("graphs:export", "Write a model as ONNX, compared with PyTorch"),
    "analyse": Command("graphs:analyse", "List what can be removed, and what cannot and why"),
    "prune": Command("graphs:prune", "Remove heads or FFN channels, and prove it"),
    "select": Command("graphs:select", "Let the model drop tokens at one or more sites"),
    "tune": Command("tuning:tune", "Search where to drop how many tokens, on data"),
    "build": Command("bundles:build", "Build engines for targets"),
    "run": Command("bundles:run", "Run a bundle or an ONNX file on arrays"),
    "parity": Command("bundles:parity", "Compare a bundle with its reference; find the bad layer"),
    "bench": Command("bundles:bench", "Time dense and pruned, interleaved"),
    "triton": Command("serving:triton", "Write a bundle as a model of a Triton repository"),
    "inspect": Command("bundles:inspect", "Show what is in a bundle or an ONNX file"),
    "methods": Command("recipes:methods", "List importance criteria, selectors and targets"),
    "schema": Command("recipes:schema", "Print the JSON schema of recipes"),
}

# Other libraries' own progress and advice would run through ours.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

_EXIT_CODES = (
    "Exit codes: 0 ok, 1 parity or target missed, 2 bad input, 3 missing dependency, 4 build failed"
)


def overview() -> str:
    """The page of ``secateur --help``; plain text, so that it needs no library."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Prune heads, channels and tokens of a trained model; ship it proven equal.",
            "",
            "Usage: secateur COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "secateur COMMAND --help explains one command; --json prints for machines.",
            _EXIT_CODES,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command; the exit code that it ends with."""
    if arguments in ([], ["--help"], ["-h"]):
        print(overview())
        return _OK
    try:
        return _dispatch(arguments)
    except SecateurError as error:
        _show(error, as_json="--json" in arguments)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    from importlib.metadata import version

    from secateur.errors import MissingDependencyError

    try:
        from cyclopts import App
    except ImportError:
        raise MissingDependencyError(
            "the command line needs the build extra",
            next_step="pip install 'secateur[build,cpu]'; on a target, python -m secateur.runtime",
        ) from None
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    app = App(name="secateur", version=version("secateur"), help_format="plaintext")
    for name, command in COMMANDS.items():
        app.command(f"secateur.commands.{command.function}", name=name, help=command.summary)
    result = app(arguments, result_action="return_value")
    return result if isinstance(result, int) else _OK


def _show(error: SecateurError, *, as_json: bool) -> None:
    """The error's own text; never a traceback, which is for defects of ours."""
    if not as_json:
        print(f"error: {error}", file=sys.stderr)
        return
    names = ("what", "where", "got", "wanted", "next_step")
    parts = {name: getattr(error, name) for name in names if getattr(error, name)}
    print(json.dumps({"error": parts, "exit_code": error.exit_code}, indent=2))


__all__ = ["COMMANDS", "Command", "main", "overview", "run"]
