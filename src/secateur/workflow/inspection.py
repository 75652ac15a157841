"""What a bundle or an ONNX file holds, read without any backend."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from secateur.runtime.bundle import is_bundle, open_bundle
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.signature import TensorInfo
from secateur.runtime.sites import Site, sites_from_metadata


def describe(path: Path) -> dict[str, Any]:
    """Plain JSON types; which keys there are depends on what the path is.

    Raises:
        BadInputError: no such file, not ONNX, or a bundle that fails its checks.
    """
    if is_bundle(path) or path.is_dir():
        return _bundle(path)
    outline = read_outline(path)
    return {
        "kind": "onnx",
        "opset": outline.opset,
        "inputs": _tensors(outline.inputs),
        "outputs": _tensors(outline.outputs),
        "sites": [_site(site) for site in sites_from_metadata(outline.metadata)],
        "operators": dict(Counter(node.operator for node in outline.nodes).most_common()),
    }


def _bundle(path: Path) -> dict[str, Any]:
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        return {
            "kind": "bundle",
            "inputs": _tensors(manifest.inputs),
            "outputs": _tensors(manifest.outputs),
            "sites": [_site(site) for site in manifest.sites],
            "engines": {
                target: {
                    "file": entry.file,
                    "bytes": manifest.files[entry.file].size_bytes,
                    "requires": entry.requires,
                }
                for target, entry in manifest.engines.items()
            },
            "kept_heads": {layer: list(heads) for layer, heads in manifest.kept_heads.items()},
            "files": {name: record.size_bytes for name, record in manifest.files.items()},
            "created_with": dict(manifest.created_with),
            "facts": dict(manifest.facts),
        }


def _tensors(tensors: tuple[TensorInfo, ...]) -> dict[str, dict[str, Any]]:
    return {
        info.name: {"dtype": info.dtype, "shape": list(info.shape), "optional": info.optional}
        for info in tensors
    }


def _site(site: Site) -> dict[str, Any]:
    budget = site.budget
    return {
        "site": site.name,
        "selector": site.selector,
        "keeps": f"{budget.default} {budget.kind}",
        "input": budget.input,
        "protected": site.protected,
    }


__all__ = ["describe"]
