"""One method in one model: equal to the masked PyTorch run, free and forced, and built."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from tests.selectors.methods import METHODS, Method, Options, Step, made_up
from tests.selectors.targets import TARGETS, Target
from torch import Tensor

from secateur.errors import SecateurError
from secateur.export.verify import run
from secateur.graph_passes.force_selection import force
from secateur.models import reference
from secateur.models.reference import ReferenceRun, SiteRun, TokenSite
from secateur.models.selectors import SELECTORS
from secateur.runtime.backend import BACKENDS, EngineSpec
from secateur.runtime.onnx_outline import read_outline
from secateur.runtime.profiles import profiles_from_dimensions
from secateur.workflow.selecting import Select, select_tokens

TOLERANCE = 1e-4
"""Relative, of outputs and scores, float32."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Refusal:
    """Something that cannot be, with what says so."""

    selector: str
    target: str
    stage: str
    op: str
    message: str


@dataclass(frozen=True)
class Row:
    """One cell; ``free``, ``forced``, ``alone`` and ``rtx`` say ok, refused, or what failed."""

    selector: str
    target: str
    free: str
    forced: str
    alone: str
    rtx: str
    seconds: float
    refusals: tuple[Refusal, ...] = ()

    @property
    def failed(self) -> bool:
        return any(x.startswith("failed") for x in (self.free, self.forced, self.alone, self.rtx))


@dataclass(frozen=True)
class Case:
    """A method in a model, with the numbers that go in."""

    method: Method
    target: Target
    given: Mapping[str, Tensor]

    def signals(self, site: str) -> dict[str, Tensor | str]:
        """What signals from elsewhere are at a site: numbers, or the module that makes them."""
        if self.target.scans and "ssm_out_backward" in self.given:
            return {"ssm_out_backward": f"{site}.mixer.from_behind"}
        return dict(self.given)

    def options(self, step: Step) -> Options:
        """Options of a step, for the order in which this model's own scan stands."""
        return {**step.options, "flipped": False} if step.by in self.own_scan else step.options

    @property
    def own_scan(self) -> tuple[str, ...]:
        return ("top_vim",) if self.target.scans else ()

    @property
    def sites(self) -> tuple[TokenSite, ...]:
        return tuple(
            TokenSite(
                name,
                step.by,
                amount=round(self.method.keep * 1000),
                protected=self.protected,
                options=self.options(step),
                cut="" if cut == "block" else cut,
                given=self.signals(name),
                around=self.target.around,
                close_gaps=self.target.scans,
            )
            for name, cut, step in self.places
        )

    @property
    def places(self) -> tuple[tuple[str, str, Step], ...]:
        """Site, cut and step of each selection."""
        steps, target = self.method.steps, self.target
        if target.later and self.method.only_there:
            steps = steps[-1:]
        blocks = [step.block for step in steps]
        if target.later and len(steps) > 1:
            first = (target.sites[blocks[-1]], target.cut, steps[0])
            return first, (*target.later, steps[1])  # type: ignore[return-value]
        named = zip(blocks, steps, strict=True)
        return tuple((target.sites[block], target.cut, step) for block, step in named)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(site for site, _, _ in self.places)

    @property
    def protected(self) -> int:
        return self.target.protected if self.method.leading else 0

    def feeds(self, model: ir.Model, only: slice = slice(None)) -> Arrays:
        """Inputs of the selecting graph for some of the samples."""
        names = {value.name for value in model.graph.inputs}
        made = {name: x[only].numpy() for name, x in self.target.inputs.items()}
        for site in self.names:
            made |= {f"{site}.{name}": x[only].numpy() for name, x in self.given.items()}
            made[f"{site}.permille"] = np.array([round(self.method.keep * 1000)])
        return {name: array for name, array in made.items() if name in names}


def case_of(name: str, target: Target) -> Case:
    method, batch = METHODS[name], len(next(iter(target.inputs.values())))
    sizes = {
        signal: (batch, *(target.n_tokens if size < 0 else size for size in shape))
        for signal, shape in method.given.items()
    }
    given = {signal: made_up(signal, shape) for signal, shape in sizes.items()}
    return Case(method, target, given)


def insert(case: Case, budget: Literal["input", "constant"] = "input") -> ir.Model:
    """The selecting graph, held to the checker."""
    chosen = [
        Select(
            site,
            step.by,
            case.method.keep,
            case.protected,
            budget=budget,
            options=case.options(step),
            cut=cut,
            signals={name: _from(one) for name, one in case.signals(site).items()},
            among=case.target.among,
            close_gaps=case.target.scans,
        )
        for site, cut, step in case.places
    ]
    model = select_tokens(case.target.dense, chosen)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def _from(source: Tensor | str) -> str:
    return source if isinstance(source, str) else "input:" + "x".join(map(str, source.shape[1:]))


def check(name: str, target_name: str, *, engine: bool = True) -> Row:
    """Fill one cell of the table."""
    started = time.perf_counter()
    case = case_of(name, TARGETS[target_name]())
    try:
        model = insert(case)
    except SecateurError as error:
        found = Refusal(name, target_name, "insert", _op(error), error.what)
        return Row(name, target_name, *["refused"] * 4, _since(started), (found,))
    verdicts = [_said(one, case, model) for one in (_free, _forced, _alone)]
    refusals: tuple[Refusal, ...] = ()
    built = "not asked"
    if engine:
        try:
            built = _build(model, case.target)
        except SecateurError as error:
            built = "refused"
            op = _op(error) or ("Scan" if case.target.scans else "")
            refusals = (Refusal(name, target_name, "rtx", op, _parser(str(error))),)
            if case.target.scans:  # a length that no input decides
                built, more = _constant(name, case)
                refusals += more
    return Row(name, target_name, *verdicts, built, _since(started), refusals)


def _constant(name: str, case: Case) -> tuple[str, tuple[Refusal, ...]]:
    """Build with the share in the graph; a method may still count by itself."""
    try:
        return f"{_build(insert(case, 'constant'), case.target)}, share constant", ()
    except SecateurError as error:
        message = _parser(str(error))
        return "refused", (Refusal(name, "mamba", "rtx, share constant", "Scan", message),)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _said(check_one, case: Case, model: ir.Model) -> str:
    try:
        check_one(case, model)
    except (AssertionError, SecateurError) as error:
        return "failed: " + " ".join(str(error).split())[:200]
    return "ok"


# --- numbers -----------------------------------------------------------------------------------


def _free(case: Case, model: ir.Model) -> None:
    want = reference.run(case.target.net, case.target.inputs, case.sites)
    got = _own(run(model, case.feeds(model)), case)
    for site in case.names:
        _same_tokens(got, site, want.sites[site], case)
    _same_values(got, want)


def _forced(case: Case, model: ir.Model) -> None:
    told = _told(case)
    want = reference.run(case.target.net, case.target.inputs, case.sites, forced=told)
    twin = force(model)
    bias, reaching = {}, None
    for site in case.names:
        bias[f"{site}.score_bias"], reaching = _bias(told[site], reaching, case)
    got = _own(run(twin, case.feeds(twin) | bias), case)
    for site in case.names:
        _same_tokens(got, site, want.sites[site], case)
    _same_scores(got, case.names[0], want.sites[case.names[0]])
    _same_values(got, want)


def _alone(case: Case, model: ir.Model) -> None:
    together = run(model, case.feeds(model))
    for b in range(3):
        single = run(model, case.feeds(model, slice(b, b + 1)))
        for name, value in single.items():
            if name.endswith(".kept"):
                mine = together[name][b]
                assert mine[mine >= 0].tolist() == value[0][value[0] >= 0].tolist(), name
            else:
                assert _error(together[name][b : b + 1], value) < TOLERANCE, name


def _told(case: Case) -> dict[str, Tensor]:
    """Random tokens, as many as the method keeps; its own where it merges what it drops."""
    free = reference.run(case.target.net, case.target.inputs, case.sites)
    if any(SELECTORS[step.by].combine for step in case.method.steps):
        return {site: free.sites[site].kept for site in case.names}
    generator, told = torch.Generator().manual_seed(8), {}
    alive: Sequence[list[int]] = [list(range(case.target.n_tokens))] * 3
    for site in case.names:
        chosen = []
        for b, count in enumerate(free.sites[site].count.tolist()):
            order = torch.randperm(len(alive[b]), generator=generator).tolist()
            first = [*alive[b][: case.protected], *case.target.followed]
            rest = [alive[b][i] for i in order if alive[b][i] not in first]
            chosen.append(sorted([*first, *rest[: count - len(first)]]))
        alive, width = chosen, max(map(len, chosen))
        told[site] = torch.tensor([row + [-1] * (width - len(row)) for row in chosen])
    return told


def _bias(told: Tensor, reaching: Tensor | None, case: Case) -> tuple[np.ndarray, Tensor]:
    """1e9 on forced tokens, by their place among those that reach the site."""
    n_tokens = case.target.n_tokens if reaching is None else reaching.shape[1]
    bias = np.zeros((3, n_tokens), np.float32)
    for b, row in enumerate(told.tolist()):
        places = row if reaching is None else [reaching[b].tolist().index(x) for x in row if x >= 0]
        bias[b, [place for place in places if place >= 0]] = 1e9
    return bias, told


def _own(got: Arrays, case: Case) -> Arrays:
    """Count kept positions from the first token that could be dropped; leave a text out."""
    start, behind = case.target.around
    for name in [name for name in got if name.endswith(".kept") and start + behind]:
        inside = got[name] - start
        out = (inside < 0) | (inside >= case.target.n_tokens)
        got[name] = np.where(out, -1, inside)
    return got


def _same_tokens(got: Arrays, site: str, want: SiteRun, case: Case) -> None:
    for b, row in enumerate(got[f"{site}.kept"]):
        mine, theirs = (sorted(one[one >= 0].tolist()) for one in (row, want.kept[b]))
        gone, come = sorted(set(theirs) - set(mine)), sorted(set(mine) - set(theirs))
        assert mine == theirs, f"sample {b} of {site} keeps {come} for {gone}"


def _same_scores(got: Arrays, site: str, want: SiteRun) -> None:
    made, expected = got[f"{site}.score"], want.score.numpy()
    both = np.isfinite(made) & np.isfinite(expected)
    error = _error(made[both], expected[both]) if both.any() else 0.0
    assert error < TOLERANCE, f"scores of {site} differ by {error:.1e}"


def _same_values(got: Arrays, want: ReferenceRun) -> None:
    for name, value in want.outputs.items():
        if name in got:
            error = _error(got[name], value.numpy())
            assert error < TOLERANCE, f"{name} differs by {error:.1e}"


def _error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape, f"{got.shape} instead of {want.shape}"
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-20))


# --- the engine --------------------------------------------------------------------------------


def _build(model: ir.Model, target: Target) -> str:
    """Build for one kind of GPU, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(ir.to_proto(model), path)
        outline = read_outline(path)
        inputs = [one for one in outline.inputs if not one.name.endswith(".permille")]
        spec = EngineSpec(
            profiles=profiles_from_dimensions(inputs, target.ranges),
            compute_capabilities=("sm86",),
            timeout_s=240,
        )
        spec = _with_shares(spec, outline)
        engine = BACKENDS["rtx"]().build(path, spec)
    assert len(engine) > 1000
    return "ok"


def _with_shares(spec: EngineSpec, outline) -> EngineSpec:
    from secateur.runtime.budgets import default_shape_values
    from secateur.runtime.sites import sites_from_metadata

    sites = sites_from_metadata(outline.metadata)
    return replace(spec, shape_values=default_shape_values(outline, sites, spec.profiles))


def _op(error: SecateurError) -> str:
    """The operator that an error names, "" where it names none."""
    text = f"{error.where} {error}"
    found = re.search(r"\b([A-Z][A-Za-z0-9]+) node\b", text) or re.search(
        r"ode(?: type)?[:=]? *'?([A-Z][A-Za-z]+)", text
    )
    return found.group(1) if found else ""


def _parser(text: str) -> str:
    """The line of the builder's log that says what is wrong, without names and numbers."""
    lines = [
        line for line in text.splitlines() if re.search(r"rror|not supported|nsupported", line)
    ]
    line = (lines or text.splitlines() or [""])[0]
    return re.sub(r"\d+", "#", line).strip()[:200]
