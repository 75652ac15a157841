"""What happens to one model of the zoo: export, cut, proof; told fact by fact."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from catalogue import Zoo
from children import Report
from expected_heads import count_heads
from heads_table import heads_in_table
from named_arguments import with_named_arguments

TOLERANCE = 1e-4
LEAST_SHARE_OF_HEADS = 0.25


@dataclass(frozen=True)
class Entries:
    """Works on one entry of ``zoo``; ``exports`` keeps exported files for another run."""

    zoo: Zoo
    exports: Path | None
    seed: int
    renormalise: bool

    def run(self, name: str, report: Report) -> None:
        """Report the facts of one entry as they become known."""
        from trial import as_module, compare, cut_in_half, export_error, facts_of

        net, inputs = self.zoo.build(name)
        example = {key: value.numpy() for key, value in inputs.items()}
        expected = count_heads(net, inputs)
        report({"sites_expected": expected.sites, "heads_expected": expected.heads})
        report(heads_in_table(self.zoo.path, name))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model = _exported((self.exports or folder) / f"{name}.onnx", net, inputs)
            wanted = expected.output.numpy()
            report({"exported": True, "export_error": export_error(model, example, wanted, folder)})
            cut, seconds = cut_in_half(model, self.seed, renormalise=self.renormalise)
            facts = facts_of(cut)
            report({"pruning_seconds": round(seconds, 4), **facts})
            found = compare(cut, example, folder, self.seed)
            report(as_module(cut, example, folder))
        equal = bool(found["max_rel_error"] <= TOLERANCE)
        report({**found, "equal": equal, "exact": equal and not facts["renormalised"]})


def _exported(path: Path, net: Any, inputs: dict[str, Any]) -> ir.Model:
    """Read the file at ``path``, made first where it is not there."""
    from secateur.export.onnx_file import from_onnx, save
    from secateur.export.torch_export import from_torch

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(from_torch(with_named_arguments(net, list(inputs)), inputs, {}), path)
    return from_onnx(path)


def verdict(facts: dict[str, Any]) -> str:
    """Why the entry fails, "" when it passes."""
    if error := facts.get("error"):
        return str(error)
    if not facts["exported"]:
        return "not exported"
    if not facts["export_error"] <= TOLERANCE:
        return f"the export differs from the module by {facts['export_error']:.1e}"
    if not facts["groups"] or facts["parameters_left"] >= 1:
        return "nothing was removed"
    if not facts["max_rel_error"] <= TOLERANCE:
        return f"differs from the masked model by {facts['max_rel_error']:.1e}"
    if facts["effect"] == 0:
        return "the masked model computes what the whole one computes"
    if (facts.get("module_error") or 0.0) > TOLERANCE:
        return f"as a PyTorch module it differs by {facts['module_error']:.1e}"
    return _too_few_heads(facts)


def _too_few_heads(facts: dict[str, Any]) -> str:
    sites, wanted = facts["sites"], facts.get("heads_in_table", facts["heads_found"])
    if facts["heads_found"] != wanted:
        return f"found {facts['heads_found']} heads of {wanted}"
    for kind in ("heads", "query_heads"):  # of one key-value head a site, its query heads go
        found, removed = facts[f"{kind}_found"], facts[f"{kind}_removed"]
        if found > sites:
            few = removed < LEAST_SHARE_OF_HEADS * found
            return f"removed {removed} of {found} {kind.replace('_', ' ')}" if few else ""
    return ""
