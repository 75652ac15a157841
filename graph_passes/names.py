"""What the user calls a node or a weight: module paths and parameter names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import onnx_ir as ir

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_PARAMETERS_KEY = "secateur.parameters"


def module_path(node: ir.Node) -> str:
    """Return the dotted path of the module that made ``node``, "" when nothing tells.

    torch's exporter writes the scopes of a node, outermost first, into its metadata,
    with the node's own name last; the legacy exporter and most other converters spell
    the path in the node's name with slashes.
    """
    recorded = node.metadata_props.get(_SCOPES_KEY)
    if recorded:
        scopes = [scope for scope in _listed(recorded) if scope]
        return str(scopes[-2]) if len(scopes) > 1 else ""
    name = node.name or ""
    if "/" not in name:
        return ""
    return ".".join(part for part in name.strip("/").split("/")[:-1] if part)


_PLAIN_LIST = re.compile(r"\[(?:'[^'\"\\]*'(?:, '[^'\"\\]*')*)?\]")


def _listed(recorded: str) -> list[str]:
    """Read a list of strings as Python spells it; without quotes inside it needs no parser."""
    if _PLAIN_LIST.fullmatch(recorded):
        return recorded.split("'")[1::2]
    listed: list[str] = ast.literal_eval(recorded)
    return listed


def node_name(node: ir.Node) -> str:
    """Return the node's name, or its op and first output where it has none."""
    if node.name:
        return node.name
    return f"{node.op_type}:{node.outputs[0].name}" if node.outputs else node.op_type


def parameter_records(model: ir.Model) -> dict[str, dict[str, Any]]:
    """Return what export recorded of each initialiser: name or names, transpose, ..."""
    records: dict[str, dict[str, Any]] = json.loads(model.metadata_props.get(_PARAMETERS_KEY, "{}"))
    return records


def parameter_names(model: ir.Model) -> dict[str, str]:
    """Map initialiser names to the torch parameter names that export recorded."""
    return {name: entry["name"] for name, entry in parameter_records(model).items()}


def name_copies(model: ir.Model, copies: Mapping[str, str]) -> None:
    """Give copies of initialisers (new name to old name) the parameter name of the original."""
    recorded = parameter_records(model)
    named = {new: recorded[old] for new, old in copies.items() if old in recorded}
    if named:
        model.metadata_props[_PARAMETERS_KEY] = json.dumps(recorded | named)


def parameter_name(model: ir.Model, initialiser: str) -> str:
    """Return the torch name of an initialiser, or its own name where none is known."""
    return parameter_names(model).get(initialiser, initialiser)


@lru_cache(maxsize=4096)
def layer_of(name: str) -> str:
    """Cut a parameter or module name behind the first number that a module's name follows.

    ``encoder.layer.3.attention.self.query.weight`` gives ``encoder.layer.3``; a name
    without a number gives "".
    """
    stop = name.find(".")
    while stop >= 0:
        rest = name[stop + 1 :]
        is_module = rest[:1].isidentifier() and rest[:1].isascii()
        if is_module and name[stop - 1 : stop].isdecimal() and _is_path(rest):
            return name[:stop]
        stop = name.find(".", stop + 1)
    return name if name[-1:].isdecimal() else ""


def _is_path(text: str) -> bool:
    return text.replace(".", "").replace(":", "").replace("_", "a").isalnum()


__all__ = [
    "layer_of",
    "module_path",
    "name_copies",
    "node_name",
    "parameter_name",
    "parameter_names",
    "parameter_records",
]
