"""What happens to one model: cut, selecting, lowered, built; told fact by fact."""

from __future__ import annotations

import hashlib
import json
import resource
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from catalogue import Zoo
from children import Report
from subjects import CRASH, Subject, make

CAPABILITIES = ("sm80", "sm86", "sm89", "sm120")
PRECISIONS = ("float32", "float16")
RATIOS = (0.5, 0.25)
KEEP = 0.6
SELECTORS = ("class_row", "column_mean")
PROTECTED = (1, 2)
MOST_SITES = 3
"""So many sites are tried before a model counts as one that refuses token selection."""
DIED = "the builder died"
BOUND = 2e-2
"""Of the error of the lowered model; see ``runtime.compare.TOLERANCES``."""


@dataclass(frozen=True)
class Entries:
    """Works on one model; ``exports`` keeps exported files for another run."""

    zoo: Zoo
    exports: Path | None
    timeout_s: float
    memory_bytes: int
    static: bool

    def run(self, name: str, report: Report) -> None:
        """Report the facts of one model as they become known.

        The builder is a child of this process, which is a child itself; the limit of the
        address space holds for both.
        """
        resource.setrlimit(resource.RLIMIT_AS, (self.memory_bytes, self.memory_bytes))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            subject = make(self.zoo, name, self.exports or folder, static=self.static)
            report({"exported": True, "dynamic": list(subject.ranges), "static": subject.static})
            crash = {"float32": subject.model}
            models = crash if name == CRASH else variants(subject, report)
            for precision, model in models.items():
                build = Build(folder / f"{precision}.onnx", subject, self.timeout_s)
                report({precision: build.everywhere(model)})


def variants(subject: Subject, report: Report) -> dict[str, ir.Model]:
    from secateur.graph_passes.precision.decisions import Precision
    from secateur.graph_passes.precision.lower import lower_precision, precision_record

    small, facts = _cut(subject)
    report(facts)
    selecting, facts = _selecting(small)
    report(facts)
    low = lower_precision(selecting, Precision())
    dense = small if facts["selection"] != "own" else selecting
    error = _rounding(dense, lower_precision(dense, Precision()), subject.arrays)
    report({"float16_nodes": precision_record(low)["nodes"], "float16_error": error})
    return {"float32": selecting, "float16": low}


def _cut(subject: Subject) -> tuple[ir.Model, dict[str, Any]]:
    """Half of the heads and of the FFN go, a quarter where half is refused; what was refused."""
    from secateur.errors import SecateurError
    from secateur.graph_passes.groups import analyse
    from secateur.recipe import Removal
    from secateur.workflow.pruning import make_plan_for, prune_graph

    analysis, removals, refused = analyse(subject.model), [], {}
    for what in ("heads", "ffn"):
        for ratio in RATIOS:
            removal = Removal(what=what, ratio=ratio)
            try:
                make_plan_for(analysis, [removal], ())
            except SecateurError as error:
                refused[what] = str(error.what)
                continue
            removals.append(removal)
            refused.pop(what, None)
            break
    facts = {"removed": {r.what: r.ratio for r in removals}, "not_removed": refused}
    if not removals:
        return subject.model, facts
    pruned = prune_graph(subject.model, removals, batches=[subject.arrays])
    worst = max(proof.relative_error for proof in pruned.proofs)
    return pruned.model, {**facts, "removal_error": worst}


def _selecting(model: ir.Model) -> tuple[ir.Model, dict[str, Any]]:
    """Drop tokens at the first site that allows it, of any tower; why not where none does."""
    from secateur.errors import SecateurError
    from secateur.graph_passes.attention import find_sites
    from secateur.graph_passes.lowering import has_markers
    from secateur.workflow.selecting import Select, select_tokens

    if has_markers(model):
        return select_tokens(model, ()), {"selection": "own", "not_selected": ""}
    why = "no attention was found"
    try:
        sites = find_sites(model)
    except SecateurError as error:
        sites, why = (), error.what
    for selector in SELECTORS:
        for site in sites[:MOST_SITES]:
            for protected in PROTECTED:
                wanted = Select(site=site.name, by=selector, keep=KEEP, protected=protected)
                try:
                    made = select_tokens(model, [wanted])
                except SecateurError as error:
                    why = f"{site.name}: {error.what}"
                    if "protected" in why:
                        continue  # a distilled ViT has two tokens that its heads read
                    break
                return made, {"selection": f"{selector} at {site.name}", "not_selected": ""}
    return model, {"selection": "", "not_selected": why}


def _rounding(model: ir.Model, low: ir.Model, arrays: Any) -> float:
    """Largest relative error of the lowered model on the example, before tokens are dropped."""
    from secateur.graph_passes.precision.rounded import rounded_twin
    from secateur.runtime.compare import relative_error
    from secateur.workflow.golden import default_budgets
    from secateur.workflow.model_session import open_model

    fed = {**arrays, **default_budgets(model)}
    with open_model(model) as call:
        wanted = call(fed)
    with open_model(rounded_twin(low)) as call:
        got = call(fed)
    floats = [name for name, array in wanted.items() if np.issubdtype(array.dtype, np.floating)]
    return max(relative_error(got[name], wanted[name]) for name in floats)


@dataclass(frozen=True)
class Build:
    path: Path
    subject: Subject
    timeout_s: float

    def everywhere(self, model: ir.Model) -> dict[str, Any]:
        """One engine for all capabilities; one for each where the common one is refused."""
        from secateur.export.onnx_file import save

        save(model, self.path)
        together = self._build(CAPABILITIES)
        if together["built"]:
            return {**together, "targets": dict.fromkeys(CAPABILITIES, "")}
        if DIED in together["refusal"]:  # of the graph: it dies of it whatever the target is
            return {**together, "targets": dict.fromkeys(CAPABILITIES, together["refusal"])}
        apart = {capability: self._build((capability,)) for capability in CAPABILITIES}
        return {**together, "targets": {name: one["refusal"] for name, one in apart.items()}}

    def _build(self, capabilities: tuple[str, ...]) -> dict[str, Any]:
        from secateur.errors import SecateurError
        from secateur.runtime.backend import EngineSpec
        from secateur.runtime.backends.tensorrt import TensorRt
        from secateur.runtime.onnx_outline import read_outline
        from secateur.runtime.profiles import complete_spec, profiles_from_dimensions
        from secateur.runtime.sites import sites_from_metadata
        from secateur.runtime.targets import Target

        outline = read_outline(self.path)
        budgets = {site.budget.input for site in sites_from_metadata(outline.metadata)}
        inputs = [info for info in outline.inputs if info.name not in budgets]
        profiles = profiles_from_dimensions(inputs, self.subject.ranges)
        try:
            target = Target("rtx", capabilities)
            spec = complete_spec(outline, EngineSpec(profiles=profiles), target)
            spec = replace(spec, timeout_s=self.timeout_s)
            built = TensorRt("rtx").build_with_record(self.path, spec)
        except SecateurError as error:
            return {"built": False, "refusal": _spelt(error), "side_car": ""}
        return {
            "built": True,
            "refusal": "",
            "engine_bytes": len(built.engine),
            "side_car": check_side_car(built, self.path, capabilities),
        }


def _spelt(error: Any) -> str:
    """What is refused, where and in the builder's words; of a builder that died, only how."""
    if DIED in error.what:
        return str(error.what)
    return "\n".join(part for part in (error.what, error.where, error.got) if part)


def check_side_car(built: Any, path: Path, capabilities: tuple[str, ...]) -> str:
    """What of an engine's side-car contradicts the ONNX file, "" for nothing.

    The file is read with the onnx package, which shares no code with what wrote the side-car.
    """
    import onnx

    record, model = built.record, onnx.load(path, load_external_data=False)
    held = {tensor.name for tensor in model.graph.initializer}
    wrong = []
    for kind, wanted in (
        ("inputs", [v for v in model.graph.input if v.name not in held]),
        ("outputs", list(model.graph.output)),
    ):
        told = {one["name"]: (one["dtype"], one["shape"]) for one in record[kind]}
        true = {value.name: (_dtype(value), _shape(value)) for value in wanted}
        if told.keys() != true.keys() or any(not _agrees(told[n], true[n]) for n in true):
            wrong.append(f"{kind}: {told} instead of {true}")
    wrong += _wrong_profiles(record, model)
    told = next((p.value for p in model.metadata_props if p.key == "secateur.precision"), "{}")
    if record["precision"] != json.loads(told).get("dtype", "float32"):
        wrong.append(f"precision {record['precision']}")
    if record["onnx_sha256"].get(path.name) != hashlib.sha256(path.read_bytes()).hexdigest():
        wrong.append("the hash of the ONNX file")
    if record["engine_sha256"] != hashlib.sha256(built.engine).hexdigest():
        wrong.append("the hash of the engine")
    if tuple(record["compute_capabilities"]) != capabilities:
        wrong.append(f"capabilities {record['compute_capabilities']}")
    if not built.engine.startswith(b"vtrt"):
        wrong.append("no engine of TensorRT-RTX")
    return "; ".join(wrong)


def _wrong_profiles(record: dict[str, Any], model: Any) -> list[str]:
    """Inputs whose sizes or values may vary and that no range fits."""
    held = {tensor.name for tensor in model.graph.initializer}
    wrong = []
    for value in model.graph.input:
        shape, ends = _shape(value), record["profiles"].get(value.name)
        if value.name in record["shape_values"] or (ends is None and -1 not in shape):
            continue
        if ends is None:
            if value.name not in held:
                wrong.append(f"no profile for {value.name}")
        elif any(not _fits(end, shape) for end in ends):
            wrong.append(f"the profile of {value.name}: {ends} for {shape}")
    return wrong


def _fits(end: list[int], shape: list[int]) -> bool:
    return len(end) == len(shape) and all(b in (a, -1) for a, b in zip(end, shape, strict=True))


def _agrees(told: tuple[str, list[int]], true: tuple[str, list[int]]) -> bool:
    """One type, and one shape; the engine may know a size that the file leaves open."""
    same_rank = len(told[1]) == len(true[1])
    sizes = zip(told[1], true[1], strict=False)
    return told[0] == true[0] and same_rank and all(b in (a, -1) for a, b in sizes)


def _dtype(value: Any) -> str:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def _shape(value: Any) -> list[int]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
