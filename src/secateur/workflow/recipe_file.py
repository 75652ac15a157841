"""Reads a recipe from YAML and says what is wrong with it by key and line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from secateur.errors import BadInputError, SecateurError
from secateur.recipe import (
    Bench,
    Data,
    LearnedTokens,
    ModelSource,
    Recipe,
    Removal,
    json_schema,
)

KeyPath = tuple[str | int, ...]
Section = TypeVar("Section", bound=BaseModel)

_SCHEMA_COMMAND = "`secateur schema` prints every key and its type"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in a recipe."""

    where: KeyPath
    what: str
    got: str = ""
    wanted: str = ""
    next_step: str = _SCHEMA_COMMAND


def load_recipe(path: Path) -> Recipe:
    """Read, check and resolve a recipe; relative paths become relative to its folder.

    Raises:
        BadInputError: no such file, not YAML, or any key or value that cannot be used; the
            message names the key, its line, and the nearest valid key or the allowed values.
    """
    root, values = _parse(_read(path), path)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        mistakes = [_mistake(details) for details in error.errors(include_url=False)]
        raise _error(path, root, mistakes) from None
    if mistakes := list(_unknown_names(recipe)):
        raise _error(path, root, mistakes)
    resolved = _resolve(recipe, path.resolve().parent)
    if mistakes := list(_missing_files(resolved)):
        raise _error(path, root, mistakes)
    return resolved


def removal_from(**values: object) -> Removal:
    """A removal from the options of a command, checked as a recipe's.

    Raises:
        BadInputError: a ratio outside (0, 1), an unknown criterion, and so on.
    """
    from secateur.workflow.methods import check_criterion

    removal = _from_options(Removal, values)
    check_criterion(removal.importance)
    return removal


def bench_from(**values: object) -> Bench:
    """What to time, from the options of a command, checked as a recipe's.

    Raises:
        BadInputError: no positive number where one is needed.
    """
    return _from_options(Bench, values)


def _from_options(kind: type[Section], values: dict[str, object]) -> Section:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        mistake = _mistake(error.errors(include_url=False)[0])
        raise BadInputError(
            mistake.what, where=f"--{_spell(mistake.where).replace('_', '-')}", got=mistake.got
        ) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInputError(
            "no such recipe", where=str(path), next_step="give the path of a YAML recipe"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError("the recipe cannot be read", where=str(path), got=str(error)) from None


def _parse(text: str, path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    """The YAML nodes, which know their lines, and the plain values."""
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInputError(
            "the recipe is not valid YAML",
            where=f"{path}{line}",
            got=str(getattr(error, "problem", None) or error),
            next_step="check the indentation and the quotes on that line",
        ) from None
    for where, number in _repeated_keys(root, ()):
        raise BadInputError(
            f"the key {where[-1]!r} is given twice",
            where=f"{path}, line {number}, {_spell(where)}",
            next_step="keep one of the two",
        )
    if isinstance(value, dict):
        # An editor's schema line is not part of the recipe.
        return root, {key: item for key, item in value.items() if key != "$schema"}
    raise BadInputError(
        "a recipe is a mapping of keys to values",
        where=str(path),
        got=type(value).__name__,
        wanted="at least name: and model:",
        next_step=_SCHEMA_COMMAND,
    )


def _repeated_keys(node: yaml.Node | None, where: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*where, index))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, item in node.value:
            if key.value in seen:
                yield (*where, key.value), key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(item, (*where, key.value))


def _line(root: yaml.Node | None, where: KeyPath) -> int:
    """The line of the deepest part of the path that is in the file."""
    node, line = root, 1
    for step in where:
        found: tuple[yaml.Node, int] | None = None
        if isinstance(node, yaml.MappingNode):
            pairs = ((k, v) for k, v in node.value if k.value == str(step))
            found = next(((v, k.start_mark.line + 1) for k, v in pairs), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            item = node.value[step] if step < len(node.value) else None
            found = (item, item.start_mark.line + 1) if item is not None else None
        if found is None:
            break
        node, line = found
    return line


def _spell(where: KeyPath) -> str:
    """``("remove", 0, "ratio")`` as ``remove[0].ratio``."""
    text = ""
    for step in where:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the whole recipe"


def _mistake(details: ErrorDetails) -> Mistake:
    where = tuple(details["loc"])
    if details["type"] == "extra_forbidden":
        return _unknown_key(where)
    if details["type"] == "missing":
        return Mistake(where, f"the key {where[-1]!r} is missing")
    message = details["msg"].removeprefix("Value error, ")
    got = "" if isinstance(details["input"], Mapping | list) else repr(details["input"])
    return Mistake(where, f"{_spell(where)} {_lower(message)}", got=got)


def _lower(message: str) -> str:
    """Pydantic's sentence as the rest of ours."""
    return message.replace("Input should be", "should be") if message else message


def _unknown_key(where: KeyPath) -> Mistake:
    valid = _valid_keys(where[:-1])
    close = difflib.get_close_matches(str(where[-1]), valid, n=1, cutoff=0.4)
    return Mistake(
        where,
        f"unknown key {where[-1]!r}",
        wanted="one of " + ", ".join(valid),
        next_step=f"did you mean {close[0]!r}?" if close else _SCHEMA_COMMAND,
    )


def _valid_keys(where: KeyPath) -> list[str]:
    """The keys that the schema knows at a path."""
    schema = json_schema()
    definitions = schema.get("$defs", {})
    node: dict[str, Any] = schema
    for step in where:
        node = node.get("items", {}) if isinstance(step, int) else node["properties"].get(step, {})
        node = next((option for option in node.get("anyOf", ()) if "$ref" in option), node)
        node = definitions[node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node
    return list(node.get("properties", {}))


def _unknown_names(recipe: Recipe) -> Iterator[Mistake]:
    """Names that must be in a registry: criteria, selectors, targets."""
    from secateur.runtime.targets import parse_target
    from secateur.workflow.methods import check_compensation, check_criterion, check_selector

    looked_up: list[tuple[KeyPath, Callable[[str], object], str]] = [
        *((("targets", i), parse_target, target) for i, target in enumerate(recipe.targets)),
        (("compensate",), check_compensation, recipe.compensate),
        *(
            (("remove", i, "importance"), check_criterion, removal.importance)
            for i, removal in enumerate(recipe.remove)
        ),
        *(
            (("select", i, "by"), check_selector, selection.by)
            for i, selection in enumerate(recipe.select)
        ),
    ]
    for where, look_up, name in looked_up:
        try:
            look_up(name)
        except SecateurError as error:
            yield Mistake(where, error.what, error.got, error.wanted, error.next_step)


def _resolve(recipe: Recipe, folder: Path) -> Recipe:
    changes: dict[str, Any] = {
        "model": _resolve_source(recipe.model, folder),
        "output": (folder / (recipe.output or Path("build") / recipe.name)).resolve(),
    }
    tokens = recipe.calibrate.tokens
    if isinstance(tokens, LearnedTokens):
        before = tokens.model_copy(update={"before": _resolve_spec(tokens.before, folder)})
        changes["calibrate"] = recipe.calibrate.model_copy(update={"tokens": before})
    if recipe.cache not in {"", "off"}:
        changes["cache"] = str((folder / Path(recipe.cache).expanduser()).resolve())
    if recipe.traffic is not None:
        file = folder / recipe.traffic.file
        changes["traffic"] = recipe.traffic.model_copy(update={"file": file})
    for name in ("plan", "arrays"):
        if (file := getattr(recipe, name)) is not None:
            changes[name] = folder / file
    changes["remove"] = tuple(
        one.model_copy(update={"journal": folder / one.journal}) if one.journal else one
        for one in recipe.remove
    )
    if recipe.data is not None:
        changes["data"] = _resolve_data(recipe.data, folder)
    return recipe.model_copy(update=changes)


def _resolve_source(model: ModelSource, folder: Path) -> ModelSource:
    return model.model_copy(update={"source": _resolve_spec(model.source, folder)})


def _resolve_spec(spec: str, folder: Path) -> str:
    """A path beside the recipe wins over a hub name of the same spelling."""
    location, hash_sign, part = spec.partition("#")
    looks_local = location.startswith((".", "/", "~")) or location.endswith(".onnx")
    if (folder / location).exists() or looks_local:
        local = (folder / Path(location).expanduser()).resolve()
        return f"{local}{hash_sign}{part}"
    return spec


_DATA_FILES = ("texts", "images", "npz")


def _resolve_data(data: Data, folder: Path) -> Data:
    changes: dict[str, Any] = {}
    for name in _DATA_FILES:
        if (value := getattr(data, name)) is not None:
            changes[name] = (folder / value).resolve()
    script, function = _script(data)
    if script:
        changes["loader"] = f"{(folder / script).resolve()}:{function}"
    return data.model_copy(update=changes)


def _script(data: Data) -> tuple[str, str]:
    """File and function of a loader script; empty when the loader is a module's."""
    spec = data.loader or ""
    file, _, function = spec.rpartition(":")
    if spec.endswith(".py"):
        return spec, "load_data"
    return (file, function) if file.endswith(".py") else ("", "")


def _missing_files(recipe: Recipe) -> Iterator[Mistake]:
    source = Path(recipe.model.source.partition("#")[0])
    if source.is_absolute() and not source.exists():
        yield Mistake(("model", "source"), "no such model file", got=str(source))
    for name in ("plan", "arrays"):
        file = getattr(recipe, name)
        if file is not None and not file.exists():
            yield Mistake((name,), f"no such {name} file", got=str(file))
    data = recipe.data
    for name in _DATA_FILES:
        value = getattr(data, name) if data is not None else None
        if value is not None and not value.exists():
            kind = "folder" if name == "images" else "file"
            yield Mistake(("data", name), f"no such {name} {kind}", got=str(value))
    script = _script(data)[0] if data is not None else ""
    if script and not Path(script).exists():
        yield Mistake(("data", "loader"), "no such loader script", got=script)


def _error(path: Path, root: yaml.Node | None, mistakes: list[Mistake]) -> BadInputError:
    first = mistakes[0]
    if len(mistakes) == 1:
        return BadInputError(
            first.what,
            where=f"{path}, line {_line(root, first.where)}, {_spell(first.where)}",
            got=first.got,
            wanted=first.wanted,
            next_step=first.next_step,
        )
    lines = (f"line {_line(root, m.where)}: {_summary(m)}" for m in mistakes)
    return BadInputError(
        f"{len(mistakes)} mistakes in the recipe",
        where=str(path),
        got="\n          ".join(lines),
        next_step=_SCHEMA_COMMAND,
    )


def _summary(mistake: Mistake) -> str:
    hint = f"; {mistake.next_step}" if mistake.next_step != _SCHEMA_COMMAND else ""
    return f"{mistake.what}" + (f" (got {mistake.got})" if mistake.got else "") + hint


__all__ = ["Mistake", "load_recipe", "removal_from"]
