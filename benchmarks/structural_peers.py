"""Prune the models of a zoo file with Torch-Pruning, onnxsim and Secateur; a table and JSON.

Half of everything goes, in a child process per tool and model, one at a time. Seconds are
those of the processor, of which every tool uses one core: what else the machine does counts
little. `make peers` sets the tools up and runs this file; docs/benchmarks.md says what is timed.

Timed alike for both: everything from a model in memory to a smaller one whose weights are cut.
Ours is the check and preparation of the graph, its analysis, the plan, the removal, and reading
every cut weight; Torch-Pruning's is its pruner (one pass of the example through the model, the
dependency graph) and its step. Reading or exporting the model, the copy that is pruned, imports
and a first model that warms both up are in neither. No run of ours finds what one before it learnt
about the model; what two rules say of ranks alone, whatever the model, stays. Garbage is collected
before each run, and both run with the collector on. Of as many runs for both the fastest counts,
in as many children for both, in turns: for a while a machine is slower than for another.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

import onnx_ir as ir
from catalogue import Zoo, default_path, open_zoo
from children import Pool, Report
from rich.console import Console
from rich.table import Table
from run import _import_what_every_child_needs as import_once
from run import _share as share
from run import chosen

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.nn import Module

    from secateur.graph_passes.groups import Analysis
    from secateur.graph_passes.plan import Plan

TOOLS = ("secateur", "torch_pruning", "secateur_l2", "torch_pruning_l2", "onnxsim")
RATIO = 0.5
LARGE = "densenet201"
"""Not in the zoo: the model that Torch-Pruning needs longest for, at its real size."""
TIMM_ENTRY = "resnet18"
WARM_UP = "vit"
_HEAD_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_NAMES = ("num_key_value_heads", "num_kv_heads")
_QUERIES = ("q_proj", "query", "q", "q_lin", "query_proj", "to_q")
_KEYS = ("k_proj", "key", "k", "k_lin", "key_proj", "to_k")
_VALUES = ("v_proj", "value", "v", "v_lin", "value_proj", "to_v")
_TOGETHER = ("qkv", "qkv_proj", "query_key_value", "in_proj", "c_attn", "Wqkv")


@dataclass(frozen=True)
class Trials:
    """Works on one job ``model:tool``; exported files are kept in ``exports``."""

    zoo: Zoo
    exports: Path
    runs: int = 3
    """Of which the fastest counts, for us and for Torch-Pruning: other work only adds."""

    def run(self, job: str, report: Report) -> None:
        """Let one tool work on one model, ``model:tool``."""
        name, tool = job.split(":")
        if tool == "onnxsim":
            _onnxsim(self, name, report)
            return
        by = "l2" if tool.endswith("_l2") else "random"
        (_secateur if tool.startswith("secateur") else _torch_pruning)(self, name, report, by)

    def build(self, name: str) -> tuple[Module, dict[str, Any]]:
        """Return a module and its example inputs."""
        if name != LARGE:
            return self.zoo.build(name)
        self.zoo.build(TIMM_ENTRY)  # makes torchvision, which timm imports, usable
        import timm
        import torch

        torch.manual_seed(0)
        net = timm.create_model(LARGE, pretrained=False).eval()
        return net, {"x": torch.randn(1, 3, 224, 224)}

    def file(self, name: str) -> Path:
        """Where the export of a model is kept."""
        return self.exports / f"{name}.onnx"


def _secateur(trials: Trials, name: str, report: Report, by: str) -> None:
    """Analyse, plan and remove, every weight sliced; then the proof, which is not timed."""
    from named_arguments import with_named_arguments
    from trial import Cut, compare, facts_of

    from secateur.export.onnx_file import from_onnx, save
    from secateur.export.torch_export import from_torch
    from secateur.graph_passes.groups import analyse
    from secateur.graph_passes.masking import mask

    net, inputs = trials.build(name)
    path = trials.file(name)
    if not path.is_file():
        started = time.perf_counter()
        save(from_torch(with_named_arguments(net, list(inputs)), inputs, {}), path)
        report({"export_seconds": time.perf_counter() - started})
    model = from_onnx(path)
    runs = [_pruned(model.clone(), by) for _ in range(trials.runs)]
    small, plan, _, _ = runs[-1]
    times = {key: min(run[i] for run in runs) for i, key in ((2, "analyse"), (3, "prune"))}
    report({f"{key}_seconds": seconds for key, seconds in times.items()})
    cut = Cut(model, analyse(model), plan, small, mask(model, plan))
    report({key: facts_of(cut)[key] for key in _OUR_FACTS} | {"form": _form()})
    example = {key: value.numpy() for key, value in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        found = compare(cut, example, Path(folder), 0)
    report({"max_rel_error": found["max_rel_error"], "equal": found["max_rel_error"] <= 1e-4})


def _form() -> str:
    """Tell whether the analysis is plain Python or what `make compiled` built."""
    from secateur.graph_passes.axes import solver

    return "python" if solver.__file__.endswith(".py") else "compiled"


def _pruned(model: ir.Model, by: str) -> tuple[ir.Model, Plan, float, float]:
    """Prune a model in place; it, the plan, and the seconds of the analysis and of all."""
    from trial import half_of_everything

    from secateur.graph_passes.axes.programs import PROGRAMS
    from secateur.graph_passes.cut_tensor import CutTensor
    from secateur.graph_passes.groups import analyse
    from secateur.graph_passes.names import layer_of
    from secateur.graph_passes.plan import resolve_plan
    from secateur.graph_passes.removal import remove_atoms

    PROGRAMS.clear()  # as if no model had been analysed before, this one least of all
    layer_of.cache_clear()
    gc.collect()
    started = time.process_time()
    analysis = analyse(model, in_place=True)
    analysed = time.process_time() - started
    if by == "l2":
        plan = _largest_half(analysis)
    else:
        plan = half_of_everything(analysis, 0, renormalise=False)
    small = remove_atoms(analysis, resolve_plan(analysis, plan))
    held = [value.const_value for value in small.graph.initializers.data.values()]
    sliced = [tensor.numpy() for tensor in held if type(tensor) is CutTensor]  # cut when read
    seconds = time.process_time() - started
    assert sliced or not plan.keep
    return small, plan, analysed, seconds


def _largest_half(analysis: Analysis) -> Plan:
    """Keep as many units of the same groups, but those of the largest weights."""
    import numpy as np
    from trial import groups_to_cut

    from secateur.calibration.importance import Context, rank
    from secateur.graph_passes.plan import make_plan

    groups = tuple(groups_to_cut(analysis, renormalise=False))
    keep = {
        name: tuple(np.sort(np.argsort(-scores)[: (len(scores) + 1) // 2]).tolist())
        for name, scores in rank("l2", Context(analysis, groups)).items()
    }
    return make_plan(analysis, keep, allow_inexact=not all(group.exact for group in groups))


_OUR_FACTS = ("heads_found", "heads_removed", "parameters_left", "renormalised")


def _torch_pruning(trials: Trials, name: str, report: Report, by: str) -> None:
    """Build the dependency graph, prune with the settings of its documentation, run."""
    import torch

    net, inputs = trials.build(name)
    last = _last_layers(net, inputs)
    names = {module: path for path, module in net.named_modules()}
    builds, times = [], []
    for _ in range(trials.runs):
        small = copy.deepcopy(net)
        ignored = [small.get_submodule(names[layer]) for layer in last]
        gc.collect()
        heads, pruner, built, seconds = _step(small, inputs, ignored, by)
        builds.append(built)
        times.append(seconds)
    before = sum(parameter.numel() for parameter in net.parameters())
    after = sum(parameter.numel() for parameter in small.parameters())
    counted = [layer for layer in heads if layer in _counted_layers(small)]
    report(
        {
            "build_seconds": min(builds),
            "prune_seconds": min(times),
            "parameters_left": round(after / before, 4),
            "heads_removed": sum(heads[m] - pruner.num_heads.get(m, heads[m]) for m in counted),
        }
    )
    _spell_heads(small, pruner.num_heads)
    with torch.no_grad():
        small(**inputs)
    report({"runs": True})


def _step(
    net: Module, inputs: dict[str, Any], ignored: list[Any], by: str
) -> tuple[dict[Any, int], Any, float, float]:
    """Prune a module in place; its heads, the pruner, and the seconds of the graph and of all."""
    import torch_pruning as tp

    magnitude, random = tp.importance.GroupMagnitudeImportance, tp.importance.RandomImportance
    heads = _heads_by_layer(net)
    started = time.process_time()
    pruner = tp.pruner.BasePruner(
        net,
        next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs),
        importance=magnitude(p=2) if by == "l2" else random(),
        pruning_ratio=RATIO,
        head_pruning_ratio=RATIO,
        num_heads=dict(heads),
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        ignored_layers=ignored,
    )
    built = time.process_time() - started
    pruner.step()
    return heads, pruner, built, time.process_time() - started


def _attentions(net: Module) -> list[tuple[Module, dict[str, Any]]]:
    """Modules with a head count and the linear layers directly inside them, by name."""
    import torch

    found = []
    for module in net.modules():
        layers = {
            name: child
            for name, child in module.named_children()
            if isinstance(child, torch.nn.Linear)
        }
        if layers and _count(module, _HEAD_NAMES):
            found.append((module, layers))
    return found


def _count(module: Module, names: tuple[str, ...]) -> int:
    for source in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(source, name, None), int):
                return value
    return 0


def _heads_by_layer(net: Module) -> dict[Any, int]:
    """Heads of every projection, as its ``num_heads`` argument wants them."""
    heads = {}
    for module, layers in _attentions(net):
        queries = _count(module, _HEAD_NAMES)
        shared = _count(module, _KV_NAMES) or queries
        for name, layer in layers.items():
            if name in (*_QUERIES, *_TOGETHER):
                heads[layer] = queries
            elif name in (*_KEYS, *_VALUES):
                heads[layer] = shared
    return heads


def _counted_layers(net: Module) -> set[Any]:
    """One projection of each attention: the keys, or queries, keys and values together."""
    return {
        layer
        for _, layers in _attentions(net)
        for name, layer in layers.items()
        if name in (*_KEYS, *_TOGETHER)
    }


def _spell_heads(net: Module, heads: dict[Any, int]) -> None:
    """Rewrite the attributes that count heads, as the examples of Torch-Pruning do."""
    for module, layers in _attentions(net):
        for name, layer in layers.items():
            if layer not in heads or name not in (*_QUERIES, *_TOGETHER):
                continue
            times = 3 if name in _TOGETHER else 1
            width = layer.out_features // times
            spelled = dict.fromkeys(_HEAD_NAMES, heads[layer])
            spelled |= dict.fromkeys(("head_dim", "attention_head_size"), width // heads[layer])
            spelled |= dict.fromkeys(("all_head_size", "embed_dim", "attn_dim"), width)
            for attribute, value in spelled.items():
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, value)


def _last_layers(net: Module, inputs: dict[str, Any]) -> list[Any]:
    """Layers whose output is the model's: what they give must not change its size."""
    import torch

    made: dict[int, Any] = {}
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    handles = [
        module.register_forward_hook(lambda m, _inputs, output: made.update({output.data_ptr(): m}))
        for module in net.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        output = net(**inputs)
    for handle in handles:
        handle.remove()
    return [made[output.data_ptr()]] if output.data_ptr() in made else []


def _onnxsim(trials: Trials, name: str, report: Report) -> None:
    """Simplify and prune channels, then heads; ONNX Runtime has to load what comes out."""
    import onnx
    import onnxruntime
    import onnxsim

    model = onnx.load(trials.file(name))
    started = time.process_time()
    simple, _ = onnxsim.simplify(model)
    report({"simplify_seconds": time.process_time() - started})
    middle = time.process_time()
    small = onnxsim.apply_structured_pruning(simple, RATIO)
    left = _elements(small) / max(_elements(simple), 1)
    headless = onnxsim.apply_attention_head_pruning(small, RATIO)
    report(
        {
            "prune_seconds": time.process_time() - middle,
            "parameters_left": round(left, 4),
            "shrank": left < 1,
            "heads_shrank": _elements(headless) < _elements(small),
        }
    )
    onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    report({"runs": True})


def _elements(model: ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def median_ratio(rows: dict[str, dict[str, Any]], suffix: str = "") -> tuple[float, int]:
    """Median of Torch-Pruning's time over ours, over models that both prune and still run."""
    pairs = [
        (row.get(f"secateur{suffix}", {}), row.get(f"torch_pruning{suffix}", {}))
        for row in rows.values()
    ]
    ratios = [
        theirs["prune_seconds"] / ours["prune_seconds"]
        for ours, theirs in pairs
        if theirs.get("runs") and ours.get("equal")
    ]
    return (statistics.median(ratios), len(ratios)) if ratios else (float("nan"), 0)


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    heads = ("model", "ours s", "heads", "left", "equal", "TP s", "heads", "left", "TP says")
    table = Table(*heads, "onnxsim s", "left", "heads cut")
    for name, row in sorted(rows.items()):
        ours, theirs, sim = (row.get(tool, {}) for tool in ("secateur", "torch_pruning", "onnxsim"))
        table.add_row(
            name,
            _number(ours, "prune_seconds"),
            f"{ours.get('heads_removed', '-')}/{ours.get('heads_found', '-')}",
            _number(ours, "parameters_left"),
            str(ours.get("equal", ours.get("error", "-"))),
            _number(theirs, "prune_seconds"),
            str(theirs.get("heads_removed", "-")),
            _number(theirs, "parameters_left"),
            "runs" if theirs.get("runs") else str(theirs.get("error", "-"))[:40],
            _number(sim, "prune_seconds"),
            _number(sim, "parameters_left") if sim.get("runs") else str(sim.get("error", "-"))[:20],
            str(sim.get("heads_shrank", "-")),
        )
    return table


def _number(facts: dict[str, Any], key: str) -> str:
    return f"{facts[key]:.3f}" if key in facts else "-"


def measure(trials: Trials, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run every tool on every model, one child at a time; the file grows row by row."""
    rows: dict[str, Any] = {}
    if options.add and options.output.is_file():
        rows = json.loads(options.output.read_text(encoding="utf-8"))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    jobs = [f"{name}:{tool}" for name in names for tool in options.tools]
    pool = Pool(trials.run, 1, options.timeout, options.exports / "logs")
    for turn in range(options.rounds):
        for job, facts in pool.results(jobs):
            name, tool = job.split(":")
            row = rows.setdefault(name, {})
            row[tool] = _faster(row.get(tool, {}) if turn else {}, _rounded(facts))
            text = json.dumps(dict(sorted(rows.items())), indent=1)
            options.output.write_text(text + "\n", encoding="utf-8")
            print(f"{job} {facts.get('error', '')} {facts['seconds']:.1f} s", flush=True)
        jobs = [job for job in jobs if _is_timed_again(rows, job)]
    return rows


_FINISHED = {"secateur": "equal", "torch_pruning": "runs"}


def _is_timed_again(rows: dict[str, Any], job: str) -> bool:
    """Only the times of tools that choose alike and both finish are compared."""
    name, tool = job.split(":")
    suffix = "_l2" if tool.endswith("_l2") else ""
    pair = {f"{one}{suffix}": key for one, key in _FINISHED.items()}
    return tool in pair and all(rows[name].get(one, {}).get(key) for one, key in pair.items())


def _faster(before: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of the newer child, with the times of the faster one."""
    times = {key for key in ("analyse_seconds", "build_seconds", "prune_seconds") if key in before}
    return facts | {key: min(before[key], facts.get(key, before[key])) for key in times}


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in facts.items()}


def main() -> int:
    options = _options()
    zoo = open_zoo(options.zoo)
    large = LARGE in options.only or (not options.only and options.shard[0] == 1)
    asked = [name for name in options.only if name != LARGE]
    names = chosen(zoo, asked, options.shard) if asked or not options.only else []
    names += [LARGE] if large else []
    import_once()
    options.exports.mkdir(parents=True, exist_ok=True)
    trials = Trials(zoo, options.exports, options.runs)
    for tool in options.tools:  # what only the first call pays is not pruning
        trials.run(f"{WARM_UP}:{tool}", lambda _facts: None)
    rows = measure(trials, names, options)
    Console(width=None if sys.stdout.isatty() else 170).print(_table(rows))
    return _judge(rows)


def _judge(rows: dict[str, dict[str, Any]]) -> int:
    ratio, count = median_ratio(rows)
    print(f"Torch-Pruning takes {ratio:.1f} x as long, median of {count} models that both finish")
    ranked, count = median_ratio(rows, "_l2")
    print(f"with units ranked by their weights in both: {ranked:.1f} x, median of {count}")
    slow = rows.get(LARGE, {}).get("secateur", {}).get("prune_seconds")
    if slow is not None:
        print(f"{LARGE}: {slow:.2f} s (bound 2 s)")
    return 0 if ratio >= 10 and (slow is None or slow < 2) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=default_path(), help="file with the models")
    parser.add_argument("--only", nargs="+", default=[], help=f"names of entries, or {LARGE}")
    parser.add_argument("--shard", type=share, default=(1, 1), help="i/n: every n-th entry")
    parser.add_argument("--exports", type=Path, default=Path("build/peers"), help="kept files")
    parser.add_argument("--output", type=Path, default=Path("build/structural_peers.json"))
    parser.add_argument("--add", action="store_true", help="to the rows that are there")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--runs", type=int, default=3, help="the fastest counts")
    parser.add_argument("--rounds", type=int, default=3, help="children per tool and model")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one child")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
