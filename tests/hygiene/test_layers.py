"""Imports go one way: what stands lower knows nothing of what stands higher."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

_CORE = {f"secateur.{name}" for name in ("registry", "errors", "units", "weights")}
_LIBRARIES = {"models", "export", "graph_passes", "runtime", "calibration"}

# layer -> the layers below it that it may import; the core is open to everybody.
_BELOW: dict[str, set[str]] = {
    "registry": set(),
    "errors": set(),
    "units": set(),
    "weights": set(),
    "models": set(),
    "export": {"models"},
    "graph_passes": set(),
    "runtime": set(),
    "calibration": {"models", "export", "graph_passes", "runtime"},
    "recipe": _LIBRARIES,
    "workflow": _LIBRARIES | {"recipe"},
    "api": _LIBRARIES | {"recipe", "workflow"},
    "commands": _LIBRARIES | {"recipe", "workflow", "api"},
    "cli": _LIBRARIES | {"recipe", "workflow", "commands"},
    "__main__": {"cli"},
    "": _LIBRARIES | {"recipe", "workflow", "api"},
}

_HEAVY = {
    "cyclopts",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnx_graphsurgeon",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "polygraphy",
    "pydantic",
    "rich",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
}
_GRAPH_LIBRARIES = {"numpy", "onnx", "onnx_ir", "onnx_graphsurgeon"}
# Opened once per process by what needs it; too slow for `import secateur.x`.
_ALWAYS_LOCAL = {
    "matplotlib",
    "onnxruntime",
    "polygraphy",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "transformers",
}


def layer(module: str) -> str:
    """The part behind ``secateur.``: ``secateur.models.selectors.x`` is of ``models``."""
    return module.split(".")[1] if "." in module else ""


def may_import(importer: str, imported: str) -> bool:
    """Whether the table lets one module of the namespace import another."""
    if imported in _CORE or layer(imported) == layer(importer):
        return True
    return layer(imported) in _BELOW[layer(importer)]


def imported_names(nodes: Iterator[ast.AST]) -> list[str]:
    """Dotted names of everything that the import statements among ``nodes`` name."""
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            from_namespace = module == "secateur"
            names += [f"secateur.{a.name}" for a in node.names] if from_namespace else [module]
    return names


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: not functions, not TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from at_import(node)


def _top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def test_every_import_goes_down(sources):
    upward = [
        f"{source.module} imports {name}"
        for source in sources
        for name in imported_names(ast.walk(source.tree))
        if name.startswith("secateur.") and not may_import(source.module, name)
    ]
    assert not upward


def test_every_module_has_a_layer(sources):
    assert {layer(source.module) for source in sources} <= set(_BELOW)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("secateur.graph_passes.removal", "secateur.models.selectors"),
        ("secateur.runtime.bundle", "secateur.graph_passes"),
        ("secateur.models.x", "secateur.export.torch_export"),
        ("secateur.calibration.x", "secateur.workflow.deploy"),
        ("secateur.errors", "secateur.runtime"),
    ],
)
def test_the_table_refuses_an_upward_import(importer, imported):
    assert not may_import(importer, imported)


def test_imports_inside_functions_are_seen():
    tree = ast.parse("def f():\n    from secateur import export\n    import torch.nn")
    assert imported_names(ast.walk(tree)) == ["secateur.export", "torch.nn"]


def test_imports_inside_functions_are_not_import_time():
    tree = ast.parse("import numpy\ndef f():\n    import torch\nclass A:\n    import onnx")
    assert imported_names(at_import(tree)) == ["numpy", "onnx"]


def test_graph_passes_know_graphs_and_numpy_only(sources):
    allowed = _GRAPH_LIBRARIES | set(sys.stdlib_module_names) | {"secateur"}
    strangers = [
        f"{source.module} imports {name}"
        for source in sources
        if layer(source.module) == "graph_passes"
        for name in imported_names(ast.walk(source.tree))
        if _top(name) not in allowed
    ]
    assert not strangers


def test_runtime_needs_numpy_and_the_standard_library_to_be_imported(sources):
    allowed = {"numpy", "secateur"} | set(sys.stdlib_module_names)
    strangers = [
        f"{source.module} imports {name}"
        for source in sources
        if layer(source.module) == "runtime" or source.module in _CORE
        for name in imported_names(at_import(source.tree))
        if _top(name) not in allowed
    ]
    assert not strangers


_HANDS_OVER_CUDA_MEMORY = ("secateur.runtime.tensors", "torch")
"""The one use of torch: for a caller who has it, inside a function."""


def test_runtime_never_touches_torch_or_the_graph_library(sources):
    strangers = [
        f"{source.module} imports {name}"
        for source in sources
        if layer(source.module) == "runtime"
        for name in imported_names(ast.walk(source.tree))
        if _top(name) in {"torch", "onnx_ir", "onnxscript", "transformers"}
        and (source.module, _top(name)) != _HANDS_OVER_CUDA_MEMORY
    ]
    assert not strangers


def test_slow_libraries_are_imported_where_they_are_used(sources):
    early = [
        f"{source.module} imports {name}"
        for source in sources
        for name in imported_names(at_import(source.tree))
        if _top(name) in _ALWAYS_LOCAL
    ]
    assert not early


def test_package_files_and_the_namespace_import_nothing_heavy(sources):
    early = [
        f"{source.module} imports {name}"
        for source in sources
        if source.module in {"secateur", "secateur.models", "secateur.export", "secateur.cli"}
        for name in imported_names(at_import(source.tree))
        if _top(name) in _HEAVY - {"cyclopts", "rich"}
    ]
    assert not early


def test_torch_is_imported_at_the_top_in_models_and_export_only(sources):
    early = [
        f"{source.module} imports {name}"
        for source in sources
        if layer(source.module) not in {"models", "export"}
        for name in imported_names(at_import(source.tree))
        if _top(name) == "torch"
    ]
    assert not early


def test_imports_are_absolute(sources):
    relative = [
        source.module
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative
