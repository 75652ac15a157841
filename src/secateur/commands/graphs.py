"""Commands about graphs: export, analyse, prune, select."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from secateur.commands.console import Steps, print_json, print_line, print_table
from secateur.units import Aggregate, Normalise, Scope, Structure, Unit

if TYPE_CHECKING:
    from secateur.graph_passes.plan import Plan
    from secateur.recipe import Removal
    from secateur.workflow.pruning import Pruned
    from secateur.workflow.sources import Source

_BATCH = 8


def export(model: str, output: Path, /, *, opset: int = 20, json: bool = False) -> None:
    """Write a model as ONNX, its numbers compared with PyTorch at two other shapes.

    Parameters
    ----------
    model
        A folder or hub name (safetensors), package:NAME/PATH, pkg.module:function, or .onnx.
    output
        The .onnx file to write.
    opset
        ONNX opset to export with.
    json
        Print a JSON document instead of text.
    """
    from secateur.export.onnx_file import save
    from secateur.workflow.sources import load_model

    steps = Steps(quiet=json)
    with steps.step(f"export {model}"):
        loaded = load_model(model, opset=opset)
    files = [str(file) for file in save(loaded.marked or loaded.graph, output)]
    names = [str(value.name) for value in loaded.graph.graph.inputs]
    if json:
        print_json({"files": files, "inputs": names, "nodes": loaded.graph.graph.num_nodes()})
    else:
        nodes = loaded.graph.graph.num_nodes()
        print_line(f"wrote {', '.join(files)}: {nodes} nodes, inputs {', '.join(names)}")


def analyse(
    model: str,
    /,
    *,
    why_not: str = "",
    tokens: int = 128,
    weights: bool = False,
    json: bool = False,
) -> None:
    """List the groups of a model: what can be removed, and what cannot and why.

    Parameters
    ----------
    model
        A folder or hub name, package:NAME/PATH, pkg.module:function, or an .onnx file.
    why_not
        Explain TENSOR or TENSOR[axis]: what the axis consists of, and why it may not be cut.
    tokens
        Size of every dynamic dimension but the batch (which is 1) when FLOPs are counted.
    weights
        Also list every weight that each group touches.
    json
        Print a JSON document instead of tables.
    """
    from secateur.graph_passes.groups import analyse as find_groups
    from secateur.workflow.counting import flops_by_node
    from secateur.workflow.overview import group_records
    from secateur.workflow.overview import why_not as explain
    from secateur.workflow.sources import load_model

    steps = Steps(quiet=json)
    with steps.step(f"open {model}"):
        graph = load_model(model).graph
    found = find_groups(graph)
    if why_not:
        _print_answers(explain(found, why_not), json=json)
        return
    with steps.step("count FLOPs"):
        flops = flops_by_node(found.model, tokens=tokens)
    records = group_records(found, flops)
    if json:
        print_json({"tokens": tokens, "flops": sum(flops.values()), "groups": records})
        return
    _print_groups(records, weights=weights)


def _print_groups(records: list[dict[str, Any]], *, weights: bool) -> None:
    from secateur.workflow.report import spell_count

    def row(r: dict[str, Any]) -> tuple[object, ...]:
        figures = (spell_count(r["parameters"]), spell_count(r["flops"]), len(r["weights"]))
        return (r["group"], r["size"], *figures)

    columns = ("group", "size>", "parameters>", "FLOPs>", "weights>")
    print_table("can be removed", columns, [row(r) for r in records if r["removable"]])
    if weights:
        lines = [
            (r["group"], w["name"], w["axis"], w["shape"]) for r in records for w in r["weights"]
        ]
        print_table("weights", ("group", "weight", "axis>", "shape"), lines)
    frozen = [
        (r["group"], r["size"], reason["text"], reason["node"])
        for r in records
        if not r["removable"]
        for reason in r["reasons"] or [{"text": _inexact(r), "node": ""}]
    ]
    print_table("left alone, and why", ("group", "size>", "reason", "node"), frozen)


def _inexact(record: dict[str, Any]) -> str:
    if record["weights"]:
        return "a norm or a mean is taken over it, so a cut is not exact"
    return "it exists at run time only"


def _print_answers(answers: list[dict[str, Any]], *, json: bool) -> None:
    if json:
        print_json(answers)
        return
    rows = [
        (a["axis"], g["group"], g["size"], "yes" if g["removable"] else "no", r["text"], r["node"])
        for a in answers
        for g in a["groups"]
        or [{"group": "size 1", "size": "1", "removable": False, "reasons": []}]
        for r in g["reasons"] or [{"text": "", "node": ""}]
    ]
    columns = ("axis", "is made of", "size>", "removable", "why not", "node")
    print_table("why not", columns, rows)


def prune(
    model: str,
    output: Path,
    /,
    *,
    what: Unit = "heads",
    ratio: float = 0.25,
    importance: str = "l2",
    scope: Scope = "local",
    structure: Structure = "AL-AM",
    remove_heads: int = 0,
    journal: Path | None = None,
    round_to: int = 1,
    at_least: int = 0,
    limit: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    aggregate: Aggregate = "sum",
    normalise: Normalise = "sum",
    allow_inexact: bool = False,
    allow_output: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    allow_ids: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    data: str = "",
    arrays: Path | None = None,
    compensate: str = "none",
    plan: Path | None = None,
    plan_only: bool = False,
    json: bool = False,
) -> None:
    """Remove heads, channels, experts or blocks, prove the result, and write model and plan.

    Parameters
    ----------
    model
        A folder or hub name, package:NAME/PATH, pkg.module:function, or an .onnx file.
    output
        The .onnx file to write; the plan goes beside it as OUTPUT.plan.json.
    what
        Which units go; a cut of the residual width is renormalised, not exact.
    ratio
        Share of the units that goes, between 0 and 1.
    importance
        Which criterion ranks the units; secateur methods lists them.
    scope
        Rank within each layer, or over all layers together; or first share out what goes: cfsp by
        how far each layer turns its tokens, tyr by an evolutionary search, flap by a structure.
    structure
        Of FLAP, with --scope flap: UL-UM and UL-MM treat every layer alike, AL-MM and AL-AM rank
        over all layers; the MM ones are told how many heads go.
    remove_heads
        Heads of the whole model that go, with UL-MM and AL-MM.
    journal
        Where a search keeps what it found, so that it goes on when interrupted.
    round_to
        Kept units per layer are a multiple of this.
    at_least
        Every layer keeps this many; with 0 a ratio that would empty a layer is refused.
    limit
        GROUP=SHARE: at most this share of a group goes, 0 leaves it whole. GROUP is a name or a
        pattern as in "heads of *layer.0"; may be given several times.
    aggregate
        How the scores of a unit in each weight of its group become one.
    normalise
        By what the scores of a layer are divided before all layers are ranked together.
    allow_inexact
        Also cut what a norm is taken over; the result is renormalised, not equal.
    allow_output
        Name of an output whose shape may change; may be given several times.
    allow_ids
        INPUT=ID: rows that the ids of INPUT read may go, and ID (the unknown token) is read in
        place of one whose row is gone; may be given several times.
    data
        What criteria and compensation look at: a .txt with a text a line, an .npz, a folder of
        texts or pictures, or FILE.py:FUNCTION.
    arrays
        An .npz from training, by parameter name: gradients and what else a criterion asks for.
    compensate
        How the weights that read what goes make up for it; secateur methods lists the ways.
    plan
        Apply this plan (JSON) instead of making one.
    plan_only
        Write the plan alone: read it, edit it, apply it with --plan.
    json
        Print a JSON document instead of tables.
    """
    from secateur.workflow.methods import check_compensation
    from secateur.workflow.pruning import read_plan
    from secateur.workflow.recipe_file import removal_from
    from secateur.workflow.sources import load_model

    wanted = removal_from(
        what=what,
        ratio=ratio,
        importance=importance,
        scope=scope,
        structure=structure,
        remove_heads=remove_heads,
        journal=journal,
        round_to=round_to,
        at_least=at_least,
        limits=_pairs(limit, "--limit", 'GROUP=SHARE, such as "heads of encoder.layer.0=0"'),
        aggregate=aggregate,
        normalise=normalise,
        allow_inexact=allow_inexact,
        allow_outputs=allow_output,
        allow_ids=_pairs(allow_ids, "--allow-ids", "INPUT=ID, such as input_ids=100"),
    )
    check_compensation(compensate)
    given = read_plan(plan) if plan is not None else None
    steps = Steps(quiet=json)
    with steps.step(f"open {model}"):
        loaded = load_model(model)
    with steps.step("remove and prove"), steps.telling("secateur.workflow.pruning"):
        pruned = _pruned(loaded, wanted, _Given(data, arrays, compensate, given, plan_only))
    _tell(pruned, _save_pruned(pruned, output, plan_only=plan_only), json=json)


def _tell(pruned: Pruned, files: list[str], *, json: bool) -> None:
    if json:
        print_json({"files": files, "proofs": pruned.proof_records})
    else:
        _print_pruned(pruned)
        print_line(f"wrote {', '.join(files)}")


@dataclass(frozen=True)
class _Given:
    """What a removal is decided and made up for by."""

    data: str
    arrays: Path | None
    compensate: str
    plan: Plan | None
    plan_only: bool


def _pruned(loaded: Source, wanted: Removal, given: _Given) -> Pruned:
    from secateur.workflow.data import load_samples, named_data, read_npz
    from secateur.workflow.pruning import Fitting, plan_for, prune_and_fit, prune_graph

    batches = []
    if given.data:
        batches = list(load_samples(named_data(given.data), loaded).batches(_BATCH))
    fitting = Fitting(read_npz(given.arrays) if given.arrays else {}, given.compensate)
    whole = loaded.marked or loaded.graph
    if given.plan_only:
        plan = given.plan or plan_for(whole, (wanted,), batches, fitting.arrays)
        return prune_graph(whole, (), plan=plan, plan_only=True)
    return prune_and_fit(whole, (wanted,), fitting, plan=given.plan, batches=batches)


def _pairs(options: tuple[str, ...], flag: str, wanted: str) -> dict[str, str]:
    """Split NAME=NUMBER; the recipe's checks read the number."""
    from secateur.errors import BadInputError

    pairs = {}
    for option in options:
        name, equals, number = option.rpartition("=")
        if not equals or name in pairs:
            what = f"{name} is given twice" if equals else f"it is no {wanted.partition(',')[0]}"
            raise BadInputError(what, where=flag, got=option, wanted=wanted)
        pairs[name] = number
    return pairs


def _save_pruned(pruned: Pruned, output: Path, *, plan_only: bool) -> list[str]:
    """Write the plan, and the model unless only the plan was asked for."""
    from secateur.export.onnx_file import save
    from secateur.workflow.arrays import save_text

    plan = output.with_suffix(".plan.json")
    save_text(plan, pruned.plan.to_json())
    models = () if plan_only else save(pruned.model, output)
    return [str(plan), *map(str, models)]


def _print_pruned(pruned: Pruned) -> None:
    from secateur.commands.tables import print_proofs

    rows = [(r.layer, r.what, len(r.kept), r.units) for r in pruned.removed]
    print_table("removed", ("layer", "what", "kept>", "of>"), rows)
    print_proofs(pruned.proofs)


def select(
    model: str,
    output: Path,
    /,
    *,
    site: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    by: str = "class_row",
    keep: float = 0.6,
    protected: int = 1,
    json: bool = False,
) -> None:
    """Let a model drop tokens while it runs, after each named site.

    Parameters
    ----------
    model
        A folder or hub name, package:NAME/PATH, pkg.module:function, or an .onnx file.
    output
        The .onnx file to write.
    site
        Attention block after which tokens go; may be given several times. A model that selects
        tokens in its own forward has its sites, and needs none here.
    by
        Which selector ranks the tokens; secateur methods lists them.
    keep
        A share in (0, 1) of each sample's valid tokens, or a whole number of tokens.
    protected
        Leading tokens that are always kept.
    json
        Print a JSON document instead of a table.
    """
    from secateur.errors import BadInputError
    from secateur.export.onnx_file import save
    from secateur.workflow.selecting import Select, select_tokens, selection_rows
    from secateur.workflow.sources import load_model

    amount = int(keep) if keep >= 1 and keep == int(keep) else keep
    wanted = [Select(site=name, by=by, keep=amount, protected=protected) for name in site]
    steps = Steps(quiet=json)
    with steps.step(f"open {model}"):
        loaded = load_model(model)
        graph = loaded.marked or loaded.graph
    if not wanted and loaded.marked is None:
        raise BadInputError(
            "no site is given",
            wanted="--site, an attention block after which tokens go",
            next_step=f"secateur analyse {model}",
        )
    with steps.step("insert the selections"):
        selected = select_tokens(graph, wanted)
    save(selected, output)
    rows = selection_rows(selected)
    if json:
        print_json({"file": str(output), "sites": [vars_of(row) for row in rows]})
        return
    columns = ("site", "by", "keeps", "protected>", "input")
    print_table(f"wrote {output}", columns, [tuple(vars_of(row).values()) for row in rows])


def vars_of(row: object) -> dict[str, Any]:
    """Fields of a dataclass."""
    from dataclasses import asdict

    return asdict(row)  # type: ignore[call-overload, no-any-return]
