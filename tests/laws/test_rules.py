"""Every row of the op table, held against its law."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from tests.laws.cases import CASES
from tests.laws.given import c, ints, x
from tests.laws.law import Case, Subject, check, choices

from secateur.graph_passes.axes import AXIS_RULES, REWRITES
from secateur.graph_passes.axes.relations import (
    OUT,
    AxisRule,
    Fold,
    Fresh,
    Frozen,
    Part,
    Port,
    Product,
    Relation,
    Same,
)
from secateur.graph_passes.axes.view import View


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cut_equals_dense_with_the_cut_elements_neutral(case: Case) -> None:
    free = Subject.of(case).free()
    for seed, chosen in enumerate(choices(free)):
        check(case, chosen, seed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_frees_what_it_can_and_names_why_the_rest_is_fixed(case: Case) -> None:
    subject = Subject.of(case)
    assert len(subject.free()) == case.free
    reasons = [text for atom in subject.atoms() for text in subject.reasons(atom)]
    assert bool(reasons) == bool(case.frozen), reasons
    assert not case.frozen or any(case.frozen in text for text in reasons), reasons


def test_every_rule_has_a_case() -> None:
    assert sorted(set(AXIS_RULES) - {case.op for case in CASES}) == []


def test_every_case_is_run_by_onnx_runtime_unless_it_says_why_not() -> None:
    elsewhere = {case.op: case.runtime for case in CASES if case.runtime != "onnxruntime"}
    print("run by the reference evaluator of onnx:", elsewhere or "none")  # noqa: T201
    assert set(elsewhere) <= {"Swish"}, "ONNX Runtime 1.31 has no kernel for Swish on the CPU"


# --- the law can fail: rules that are wrong in one point each -----------------------------


def _swapped_matmul(view: View) -> Iterator[Relation]:
    """Sum over the rows of the right operand's transpose."""
    yield Fold((Port(0, 0), Port(1, 1)), neutral=0.0)
    yield Same((Port(0, 1), Port(OUT, 0)))
    yield Same((Port(1, 0), Port(OUT, 1)))


def _softmax_with_zero(view: View) -> Iterator[Relation]:
    for axis in range(view.rank(0) or 0):
        if axis == 1:
            yield Fold((Port(0, axis),), neutral=0.0)
        yield Same((Port(0, axis), Port(OUT, axis)))


def _softmax_without_fold(view: View) -> Iterator[Relation]:
    for axis in range(view.rank(0) or 0):
        yield Same((Port(0, axis), Port(OUT, axis)))


def _mean_as_a_sum(view: View) -> Iterator[Relation]:
    yield Fold((Port(0, 1),), neutral=0.0)
    yield Same((Port(0, 0), Port(OUT, 0)))


def _reversed_heads(view: View) -> Iterator[Relation]:
    """Take (A*B) for (B*A)."""
    yield Fresh(Port(OUT, 0), 3)
    yield Fresh(Port(OUT, 1), 4)
    yield Product((Port(0, 0),), (Port(OUT, 1), Port(OUT, 0)))


def _all_groups_alike(view: View) -> Iterator[Relation]:
    """Forget that the groups of a convolution go with blocks of its input."""
    yield Same((Port(0, 0), Port(OUT, 0)))
    yield Same((Port(1, 0), Port(OUT, 1)))
    yield Frozen(Port(0, 1), "left out")
    yield Frozen(Port(0, 2), "left out")


def _first_part_twice(view: View) -> Iterator[Relation]:
    yield Part(Port(0, 0), Port(OUT, 0), 0, 3)
    yield Part(Port(0, 0), Port(~1, 0), 0, 3)


_MUTANTS = [
    (_swapped_matmul, Case("MatMul", (x(4, 4), c(4, 4)))),
    (_softmax_with_zero, Case("Softmax", (x(3, 5),))),
    (_softmax_without_fold, Case("Softmax", (x(3, 5),))),
    (_mean_as_a_sum, Case("ReduceMean", (x(3, 5), ints(1)), {"keepdims": 0})),
    (_reversed_heads, Case("Reshape", (x(12), ints(3, 4)))),
    (_all_groups_alike, Case("Conv", (x(2, 6, 5), c(3, 2, 3)), {"group": 3})),
    (_first_part_twice, Case("Split", (x(6),), {"num_outputs": 2}, outputs=2)),
]


@pytest.mark.parametrize(("rule", "case"), _MUTANTS, ids=lambda v: getattr(v, "__name__", "case"))
def test_the_law_kills_a_wrong_rule(
    rule: AxisRule, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hold(case)  # the rule of the table stands
    monkeypatch.setitem(AXIS_RULES._entries, case.op, rule)
    with pytest.raises((AssertionError, RuntimeException, Fail, InvalidArgument)):
        _hold(case)


def _hold(case: Case) -> None:
    free = Subject.of(case).free()
    assert free
    for seed in range(3):
        for chosen in choices(free):
            check(case, chosen, seed)


def test_the_law_kills_a_rewrite_that_spells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("Split", (x(2, 9), ints(4, 5)), {"axis": 1}, outputs=2)
    monkeypatch.setitem(REWRITES._entries, "Split", lambda node, axes, keep: None)
    with pytest.raises((Fail, RuntimeException, InvalidArgument)):
        _hold(case)
