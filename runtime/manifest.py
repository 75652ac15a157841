"""``manifest.json``: what a bundle holds, was made with and needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from secateur.errors import BadInputError
from secateur.runtime.backend import EngineSpec
from secateur.runtime.signature import TensorInfo
from secateur.runtime.sites import Site

SCHEMA = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Hash and size of one file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One target's engine: its file, its side-car ("" for none) and the version it needs.

    ``forced`` is the engine of the forced twin ("" for none) that parity runs; ``options``
    are the backend's own, such as ``{"optimisation": "all"}``.
    """

    file: str
    record: str
    requires: str
    forced: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a target machine needs to know without opening a model.

    ``kept_heads`` lists the surviving heads of each layer, ``trained_keep`` the share that
    each site was trained with, ``dtype`` selects the tolerance, ``facts`` is for readers:
    secateur itself decides nothing by it.
    """

    files: Mapping[str, FileRecord] = field(default_factory=dict)
    engines: Mapping[str, EngineEntry] = field(default_factory=dict)
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    operators: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    spec: EngineSpec = field(default_factory=EngineSpec)
    dtype: str = "float32"
    kept_heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trained_keep: Mapping[str, float] = field(default_factory=dict)
    created_with: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``manifest.json``, keys sorted."""
        record = {
            "schema": SCHEMA,
            "files": {
                n: {"sha256": f.sha256, "bytes": f.size_bytes} for n, f in self.files.items()
            },
            "engines": {name: _engine_to_json(entry) for name, entry in self.engines.items()},
            "inputs": [info.to_json() for info in self.inputs],
            "outputs": [info.to_json() for info in self.outputs],
            "operators": list(self.operators),
            "sites": [dict(site.record) for site in self.sites],
            "spec": self.spec.to_json(),
            "dtype": self.dtype,
            "kept_heads": {layer: list(heads) for layer, heads in self.kept_heads.items()},
            "trained_keep": dict(self.trained_keep),
            "created_with": dict(self.created_with),
            "facts": dict(self.facts),
        }
        return json.dumps(record, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str, *, where: str) -> Manifest:
        """Read a manifest; BadInputError for another schema or a record that is not one."""
        try:
            record = json.loads(text)
            _check_schema(record, where)
            return _from_record(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(
                "the bundle's manifest cannot be read",
                where=where,
                got=f"{type(error).__name__}: {error}",
                wanted=f"a manifest of schema {SCHEMA}",
                next_step="copy the bundle again, or build it again",
            ) from error

    def with_engine(self, target: str, entry: EngineEntry) -> Manifest:
        """The manifest with one target's engine added or replaced."""
        return replace(self, engines={**self.engines, target: entry})


def _check_schema(record: Mapping[str, Any], where: str) -> None:
    schema = record["schema"]
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise BadInputError(
            "the bundle has another schema",
            where=where,
            got=f"schema {schema}",
            wanted=f"schema {SCHEMA}",
            next_step="pip install -U secateur" if newer else "build the bundle again",
        )


def _from_record(record: Mapping[str, Any]) -> Manifest:
    return Manifest(
        files={
            name: FileRecord(str(file["sha256"]), int(file["bytes"]))
            for name, file in record["files"].items()
        },
        engines={
            name: EngineEntry(
                str(entry["file"]),
                str(entry["record"]),
                str(entry["requires"]),
                str(entry.get("forced", "")),
                dict(entry.get("options", {})),
            )
            for name, entry in record["engines"].items()
        },
        inputs=tuple(TensorInfo.from_json(info) for info in record["inputs"]),
        outputs=tuple(TensorInfo.from_json(info) for info in record["outputs"]),
        operators=tuple(record["operators"]),
        sites=tuple(Site.from_json(site) for site in record["sites"]),
        spec=EngineSpec.from_json(record["spec"]),
        dtype=str(record["dtype"]),
        kept_heads={layer: tuple(heads) for layer, heads in record["kept_heads"].items()},
        trained_keep={name: float(share) for name, share in record["trained_keep"].items()},
        created_with=dict(record["created_with"]),
        facts=dict(record["facts"]),
    )


def _file_to_json(file: FileRecord) -> dict[str, Any]:
    return {"sha256": file.sha256, "bytes": file.size_bytes}


def _engine_to_json(entry: EngineEntry) -> dict[str, Any]:
    return {
        "file": entry.file,
        "record": entry.record,
        "requires": entry.requires,
        "forced": entry.forced,
        "options": dict(entry.options),
    }


__all__ = ["MANIFEST_NAME", "SCHEMA", "EngineEntry", "FileRecord", "Manifest"]
