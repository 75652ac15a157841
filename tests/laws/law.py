"""The law of an op rule, as a function of one case: cut graph == dense graph, cut elements neutral.

An element that no fold combines may be read by nothing that is kept: it becomes NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from secateur.export.marker_translation import without_markers
from secateur.graph_passes.axes import (
    REWRITES,
    Atom,
    AxisMap,
    Expr,
    Port,
    Size,
    analyse_axes,
    leaves,
    size,
)
from secateur.graph_passes.axes.expression import factor_size, resolve
from secateur.graph_passes.lowering import MARKER
from secateur.graph_passes.prepare import prepare

Keep = Mapping[Atom, NDArray[np.int64]]
_OUTER = ("it is an axis of a graph input", "it is an axis of a graph output")
_MAX_PAIRS = 4


@dataclass(frozen=True)
class Given:
    """One input: a shape to fill, or the very ``values`` of a constant."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -1.0
    high: float = 1.0
    constant: bool = False
    values: tuple[float, ...] | None = None
    dynamic: str = ""
    """Names of the axes from the first on, ``-`` for a fixed one."""

    @property
    def declared(self) -> list[int | str]:
        names = [*self.dynamic.split(), *("-" * len(self.shape))]
        return [d if n == "-" else n for d, n in zip(self.shape, names, strict=False)]

    def draw(self, rng: np.random.Generator) -> NDArray:
        if self.values is not None:
            return np.array(self.values, self.dtype).reshape(self.shape)
        if self.dtype == "bool":
            return rng.random(self.shape) > 0.5
        if np.dtype(self.dtype).kind in "iu":
            return rng.integers(int(self.low), int(self.high), self.shape).astype(self.dtype)
        return rng.uniform(self.low, self.high, self.shape).astype(self.dtype)


@dataclass(frozen=True)
class Case:
    """One node, how many of its atoms may be cut, and why others may not."""

    op: str
    inputs: tuple[Given | None, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    free: int = 1
    frozen: str = ""
    runtime: str = "onnxruntime"
    same: bool = True
    """Whether equal draws give equal results: not so for a random op."""

    def __str__(self) -> str:
        shapes = ",".join(
            "x".join(map(str, g.declared)) + ("c" * g.constant) if g else "-" for g in self.inputs
        )
        extra = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.opset}({shapes}|{extra})".replace(" ", "").replace("'", "")

    @property
    def lengths(self) -> dict[str, int]:
        """What the names of dynamic axes are at run time."""
        return {
            name: length
            for given in self.inputs
            if given is not None
            for name, length in zip(given.declared, given.shape, strict=True)
            if isinstance(name, str)
        }

    def draw(self, seed: int = 0) -> list[NDArray | None]:
        rng = np.random.default_rng(seed)
        return [given.draw(rng) if given is not None else None for given in self.inputs]


def proto(case: Case, arrays: Sequence[NDArray | None]) -> onnx.ModelProto:
    """The case as a model of one node; constants are initialisers."""
    domain, _, op = case.op.rpartition(":")
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
    node = helper.make_node(
        op, names, [f"y{i}" for i in range(case.outputs)], "the_node", domain=domain
    )
    node.attribute.extend(helper.make_attribute(k, v) for k, v in case.attributes.items())
    inputs, constants = [], []
    for name, array, given in zip(names, arrays, case.inputs, strict=True):
        if array is None or given is None:
            continue
        if given.constant:
            constants.append(onnx.numpy_helper.from_array(array, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, given.declared))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "case", inputs, outputs, constants)
    domains = {"": case.opset, "com.microsoft": 1, "ai.onnx.ml": 3}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    if domain == MARKER[0]:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if case.opset < 23 else 11)


def run(case: Case, model: onnx.ModelProto, arrays: Sequence[NDArray | None]) -> list[NDArray]:
    feeds = {
        f"x{i}": np.array(array, order="C")
        for i, (array, given) in enumerate(zip(arrays, case.inputs, strict=True))
        if array is not None and given is not None and not given.constant
    }
    if case.op == ":".join(MARKER):  # no backend knows it: it is lowered, or left out as here
        model = ir.to_proto(without_markers(ir.from_proto(model)))
    if case.runtime == "reference":
        return list(ReferenceEvaluator(model).run(None, feeds))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


@dataclass(frozen=True)
class Subject:
    """A freshly analysed case: rewriting changes the model, so each cut takes a new one."""

    case: Case
    arrays: list[NDArray | None]
    model: ir.Model
    axes: AxisMap

    @classmethod
    def of(cls, case: Case) -> Subject:
        arrays = case.draw()
        model = prepare(ir.from_proto(proto(case, arrays)))
        return cls(case, arrays, model, analyse_axes(model))

    @property
    def node(self) -> ir.Node:
        return next(node for node in self.model.graph if node.name == "the_node")

    def ports(self, outputs: bool = True) -> Iterator[Port]:
        slots = [*range(len(self.arrays)), *(~i for i in range(self.case.outputs * outputs))]
        for slot in slots:
            if self.axes.knows(self.node, slot):
                yield from (Port(slot, axis) for axis in range(len(self.axes.at(self.node, slot))))

    def atoms(self) -> list[Atom]:
        """Every leaf atom, in order, but for those of integers that spell shapes and axes."""
        found = [
            atom
            for port in self.ports()
            if not self._spells(port)
            for atom in leaves(self.axes.expr(self.node, port))
        ]
        return list(dict.fromkeys(found))

    def _spells(self, port: Port) -> bool:
        slot = port.slot
        value = self.node.inputs[slot] if slot >= 0 else self.node.outputs[~slot]
        return self.axes.entries(value) is not None

    def free(self) -> list[int]:
        """Numbers of the atoms that the rule lets go; the graph's own ends do not count."""
        return [
            i
            for i, atom in enumerate(self.atoms())
            if not self.reasons(atom) and isinstance(atom.size, int)
        ]

    def reasons(self, atom: Atom) -> list[str]:
        return [r.text for r in self.axes.reasons(atom) if not r.text.startswith(_OUTER)]


def choices(free: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Each atom alone, some pairs, all together."""
    yield from ((i,) for i in free)
    pairs = list(itertools.combinations(free, 2))
    yield from pairs[:: max(1, len(pairs) // _MAX_PAIRS)]
    if len(free) > 2:
        yield tuple(free)


def check(case: Case, chosen: tuple[int, ...], seed: int) -> None:
    """Assert the law for a random keep of the chosen atoms."""
    subject = Subject.of(case)
    rng = np.random.default_rng(seed)
    keep: dict[Atom, NDArray[np.int64]] = {}
    for atom in (subject.atoms()[i] for i in chosen):
        assert isinstance(atom.size, int)
        count = int(rng.integers(1, atom.size))
        keep[atom] = np.sort(rng.choice(atom.size, count, replace=False)).astype(np.int64)
    outs = [list(subject.axes.at(subject.node, ~i)) for i in range(case.outputs)]
    twins = list(dense_twins(subject, keep))
    cut = run_cut(subject, keep)
    for result, exprs in zip(cut, outs, strict=True):
        assert result.ndim == len(exprs)
        for length, expr in zip(result.shape, exprs, strict=True):
            assert not _is_cut(expr, keep) or length == len(positions(case, expr, keep))
    for twin in twins:
        wanted = run(case, proto(case, twin), twin)
        for got, want, exprs in zip(cut, wanted, outs, strict=True):
            if case.same:
                kept = _take(case, want, exprs, keep)
                np.testing.assert_allclose(got, kept, rtol=1e-5, atol=1e-5, err_msg=str(keep))


def positions(case: Case, expr: Expr, keep: Keep) -> NDArray[np.int64]:
    """What ``indices`` means, said once more, with names for lengths."""
    kept = np.zeros(1, np.int64)
    for factor in resolve(expr):
        if isinstance(factor, Atom):
            length = _number(factor_size(factor), case.lengths)
            part = keep.get(factor, np.arange(length))
        else:
            ends = np.cumsum([0, *(_number(size(term), case.lengths) for term in factor.terms)])
            length = int(ends[-1])
            terms = [positions(case, term, keep) for term in factor.terms]
            part = np.concatenate([t + start for t, start in zip(terms, ends[:-1], strict=True)])
        kept = np.add.outer(kept * length, part).reshape(-1)
    return kept


def _number(length: Size, lengths: Mapping[str, int]) -> int:
    if isinstance(length, int):
        return length
    return sum(
        factor * math.prod(lengths[name] for name in names)
        for names, factor in length.terms.items()
    )


def _take(case: Case, array: NDArray, exprs: Sequence[Expr], keep: Keep) -> NDArray:
    for axis, expr in enumerate(exprs):
        if _is_cut(expr, keep):
            array = array.take(positions(case, expr, keep), axis)
    return array


def _is_cut(expr: Expr, keep: Keep) -> bool:
    return any(atom in keep for atom in leaves(expr))


def run_cut(subject: Subject, keep: Keep) -> list[NDArray]:
    """Cut every input along its axes, respell the node, run."""
    node, case = subject.node, subject.case
    small: list[NDArray | None] = []
    for slot, array in enumerate(subject.arrays):
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if array is None or value is None:
            small.append(None)
            continue
        cut = _take(case, array, subject.axes.at(node, slot), keep)
        small.append(cut)
        if case.inputs[slot].constant:  # type: ignore[union-attr]
            value.const_value = ir.tensor(cut)
        value.shape = ir.Shape(cut.shape)
    for output in node.outputs:
        output.shape = None
    if case.op in REWRITES:
        REWRITES[case.op](node, subject.axes, keep)
    return run(case, ir.to_proto(subject.model), small)


def dense_twins(subject: Subject, keep: Keep) -> Iterator[list[NDArray | None]]:
    """Dense inputs with the cut elements neutral: one twin per port of a fold to fill.

    Nothing is yielded where a fold has no neutral element.
    """
    folds = [
        (fold.neutral, ports)
        for fold in subject.axes.folds
        if (ports := [p for p in fold.ports if _cut_atoms(subject, p, keep)])
    ]
    if any(neutral is None for neutral, _ in folds):
        return
    folded = {a for _, ports in folds for p in ports for a in _cut_atoms(subject, p, keep)}
    for number in range(max((len(ports) for _, ports in folds), default=1)):
        twin = [None if array is None else array.copy() for array in subject.arrays]
        for port in subject.ports(outputs=False):
            cut = _cut_atoms(subject, port, keep)
            if cut and not cut & folded:
                _fill(subject, twin, port, math.nan, keep)
        for neutral, ports in folds:
            assert neutral is not None
            _fill(subject, twin, ports[number % len(ports)], neutral, keep)
        yield twin


def _cut_atoms(subject: Subject, port: Port, keep: Keep) -> set[Atom]:
    return {a for a in leaves(subject.axes.expr(subject.node, port)) if a in keep}


def _fill(
    subject: Subject, twin: list[NDArray | None], port: Port, value: float, keep: Keep
) -> None:
    """Write ``value`` where the port's axis is cut; other elements where the type has no NaN."""
    array = twin[port.slot]
    assert array is not None
    gone = np.ones(array.shape[port.axis], bool)
    gone[positions(subject.case, subject.axes.expr(subject.node, port), keep)] = False
    view = np.moveaxis(array, port.axis, 0)
    view[gone] = np.flip(view)[gone] if math.isnan(value) and array.dtype.kind != "f" else value
