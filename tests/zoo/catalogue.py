"""A zoo file: named models that build without a download, behind one interface."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Zoo:
    """What a zoo file offers: ``ZOO``, ``build`` and, where it has them, the export hints."""

    path: Path
    module: ModuleType

    @property
    def names(self) -> tuple[str, ...]:
        """Every entry, in the order of the file."""
        return tuple(self.module.ZOO)

    @property
    def not_exportable(self) -> frozenset[str]:
        """Entries of which the file itself says that torch cannot export them."""
        return frozenset(getattr(self.module, "NOT_EXPORTABLE", ()))

    def build(self, name: str) -> tuple[Any, dict[str, Any]]:
        """Return the module in eval mode, ready for export, and its example inputs."""
        net, inputs = self.module.build(name)
        prepare = getattr(self.module, "for_export", None)
        net = prepare(name, net) if prepare else net
        if name in self.not_exportable:
            _gather_experts(net)
        return net, dict(inputs)


def _gather_experts(net: Any) -> None:
    """Let transformers' experts gather weights per token instead of looping over experts.

    The loop depends on the data and cannot be exported; the result is the same.
    """
    for module in net.modules():
        if hasattr(module, "set_experts_implementation"):
            module.set_experts_implementation("batched_mm")
            return


def default_path() -> Path:
    """``SECATEUR_ZOO``, else the file beside the checkout, else the copy in the tests."""
    if named := os.environ.get("SECATEUR_ZOO"):
        return Path(named)
    beside = HERE.parents[2] / "shared" / "zoo.py"
    return beside if beside.is_file() else HERE / "zoo.py"


def open_zoo(path: Path) -> Zoo:
    """Import the file at ``path``; it need not be in a package.

    Raises:
        SystemExit: there is no such file, or it lacks ``ZOO`` or ``build``.
    """
    if not path.is_file():
        raise SystemExit(f"no zoo file at {path} (set SECATEUR_ZOO to one)")
    spec = importlib.util.spec_from_file_location("secateur_zoo_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    missing = [name for name in ("ZOO", "build") if not hasattr(module, name)]
    if missing:
        raise SystemExit(f"{path} is no zoo file: it has no {' and no '.join(missing)}")
    return Zoo(path, module)
