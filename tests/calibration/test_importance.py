"""Criteria against loops over the torch module's own weights and activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.parity import tiny
from torch import nn

from secateur.calibration.importance import CRITERIA, Context, rank
from secateur.calibration.importance.marginals import marginals, scratch
from secateur.calibration.units import sum_by_unit, sum_of_units, units
from secateur.errors import BadInputError
from secateur.graph_passes.axes import Atom, Sum, indices
from secateur.graph_passes.axes.expression import size
from secateur.graph_passes.groups import Analysis, analyse

LENGTHS = (12, 7, 3)
BATCH = tiny.BATCH


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return tiny.bert()


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny.exported()


@pytest.fixture(scope="module")
def analysis(model: ir.Model) -> Analysis:
    return analyse(model)


def scores(analysis: Analysis, importance: str, role: str, **options: object) -> dict:
    return rank(importance, Context(analysis, analysis.by_role(role), **options))


def head_weights(net: nn.Module, layer: int, head: int) -> np.ndarray:
    """Every number that belongs to one head: q, k, v rows and biases, output columns."""
    attention = net.layers[layer].attention
    part = slice(head * 4, head * 4 + 4)
    rows = [
        x for f in (attention.q, attention.k, attention.v) for x in (f.weight[part], f.bias[part])
    ]
    return np.concatenate(
        [x.detach().numpy().ravel() for x in (*rows, attention.o.weight[:, part])]
    )


def channel_weights(net: nn.Module, layer: int, channel: int) -> np.ndarray:
    up, down = net.layers[layer].up, net.layers[layer].down
    parts = (up.weight[channel], up.bias[channel, None], down.weight[:, channel])
    return np.concatenate([x.detach().numpy().ravel() for x in parts]).astype(np.float64)


@pytest.mark.parametrize(("importance", "order"), [("l1", 1), ("group_norm", 2)])
def test_magnitude_is_the_norm_of_all_weights_of_the_unit(
    net: nn.Module, analysis: Analysis, importance: str, order: int
) -> None:
    for layer, got in enumerate(scores(analysis, importance, "heads").values()):
        want = [np.linalg.norm(head_weights(net, layer, h), order) for h in range(tiny.H)]
        np.testing.assert_allclose(got, want, rtol=1e-5)
    for layer, got in enumerate(scores(analysis, importance, "ffn").values()):
        want = [np.linalg.norm(channel_weights(net, layer, c), order) for c in range(tiny.FFN)]
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_l2_is_the_square_of_the_group_norm(analysis: Analysis) -> None:
    lengths = scores(analysis, "group_norm", "ffn")
    for name, squares in scores(analysis, "l2", "ffn").items():
        np.testing.assert_allclose(squares, lengths[name] ** 2)


def test_output_norm_is_the_mean_length_over_real_tokens(
    net: nn.Module, analysis: Analysis
) -> None:
    seen: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(net.layers):
        for name, module in ((f"heads{i}", layer.attention.o), (f"ffn{i}", layer.down)):
            module.register_forward_pre_hook(lambda _m, x, name=name: seen.update({name: x[0]}))
    with torch.no_grad():
        net(**{name: torch.from_numpy(x) for name, x in BATCH.items()})
    for role, width in (("heads", 4), ("ffn", 1)):
        for i, got in enumerate(scores(analysis, "output_norm", role, data=[BATCH]).values()):
            rows = np.concatenate(
                [seen[f"{role}{i}"][b, :n].numpy() for b, n in enumerate(LENGTHS)]
            )
            lengths = np.linalg.norm(rows.reshape(len(rows), -1, width), axis=-1)
            np.testing.assert_allclose(got, lengths.mean(axis=0), rtol=1e-4)


def test_output_norm_over_two_batches_equals_one_over_both(analysis: Analysis) -> None:
    halves = [{name: x[i : i + 1] for name, x in BATCH.items()} for i in range(3)]
    together = scores(analysis, "output_norm", "ffn", data=[BATCH])
    apart = scores(analysis, "output_norm", "ffn", data=iter(halves))
    for name in together:
        np.testing.assert_allclose(apart[name], together[name], rtol=1e-5)


def test_random_depends_on_the_seed_and_the_group_only(analysis: Analysis) -> None:
    first, again, other = (scores(analysis, "random", "heads", seed=s) for s in (1, 1, 2))
    names = list(first)
    assert all(np.array_equal(first[n], again[n]) for n in names)
    assert not np.array_equal(first[names[0]], other[names[0]])
    assert not np.array_equal(first[names[0]], first[names[1]])


def test_units_of_an_axis_are_those_that_indices_gives() -> None:
    a, b, c = Atom(3), Atom(2), Atom(4)
    expr = (Sum(((a, b), (c,), (b, a))), Atom(2))
    owners = units(expr, a)
    others = set(indices(expr, {a: np.arange(0)}).tolist())
    for unit in range(3):
        mine = set(indices(expr, {a: np.array([unit])}).tolist()) - others
        assert set(np.flatnonzero(owners == unit).tolist()) == mine


def test_sums_by_unit_leave_out_positions_without_one() -> None:
    values = np.arange(10.0).reshape(2, 5)
    got = sum_by_unit(values, np.array([1, 0, -1, 1, 0]), 2)
    np.testing.assert_array_equal(got, [[1 + 4, 0 + 3], [6 + 9, 5 + 8]])


A, B = Atom(3), Atom(2)


@pytest.mark.parametrize(
    "expr",
    [
        (A,),
        (A, B),
        (B, A),
        (B, A, Atom(5)),
        (Sum(((A, B), (Atom(4),), (B, A))), Atom(2)),
        (Atom(2), Sum(((A,), (B,)))),
        (A, A),
    ],
)
def test_sums_of_units_are_those_over_the_positions_that_they_own(expr: tuple) -> None:
    values = np.random.default_rng(0).random((4, size(expr)))
    wanted = sum_by_unit(values, units(expr, A), 3)
    np.testing.assert_allclose(sum_of_units(values, expr, A), wanted, rtol=1e-14)
    np.testing.assert_allclose(sum_of_units(values[0], expr, A), wanted[0], rtol=1e-14)


@pytest.mark.parametrize(
    "shape", [(3, 5), (5, 3, 2, 2), (700, 600), (600, 70, 3, 3), (2, 300_000), (2, 0)], ids=str
)
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8])
def test_marginals_are_sums_over_all_other_axes(shape: tuple[int, ...], kind: type) -> None:
    array = (100 * np.random.default_rng(0).standard_normal(shape)).astype(kind)
    wanted = np.square(array.astype(np.float64)).sum(axis=tuple(range(2, len(shape))))
    rows, columns = wanted.sum(axis=1), wanted.sum(axis=0)
    room = scratch()
    both = marginals(array, np.square, (0, 1), room)
    for axis, sums in enumerate((rows, columns)):
        np.testing.assert_allclose(both[axis], sums, rtol=1e-5)
        alone = marginals(array, np.square, (axis,), room)[axis]
        np.testing.assert_allclose(alone, sums, rtol=1e-5)


def test_squares_too_large_for_float32_are_summed_in_float64(model: ir.Model) -> None:
    large = model.clone()
    value = next(v for v in large.graph.initializers.values() if v.shape.numpy() == (16, 24))
    array = value.const_value.numpy() * np.float32(1e25)
    value.const_value = ir.tensor(array, name=value.name)
    found = scores(analyse(large), "l2", "ffn")
    wanted = np.square(array.astype(np.float64)).sum(axis=0)
    assert any(np.allclose(each, wanted, rtol=1e-5) for each in found.values())


def test_nan_in_a_weight_names_the_parameter(net: nn.Module, model: ir.Model) -> None:
    broken = model.clone()
    name, value = next(
        (n, v) for n, v in broken.graph.initializers.items() if list(v.shape.numpy()) == [16, 24]
    )
    array = value.const_value.numpy().copy()
    array[0, 0] = np.nan
    value.const_value = ir.tensor(array, name=name)
    with pytest.raises(BadInputError, match=r"layers\.\d\.up\.weight.*NaN"):
        scores(analyse(broken), "l2", "ffn")


def test_nan_in_an_activation_names_the_weight_that_reads_it(
    analysis: Analysis, model: ir.Model
) -> None:
    broken = model.clone()
    value = next(v for v in broken.graph.initializers.values() if v.shape.numpy() == (40, 16))
    value.const_value = ir.tensor(np.full((40, 16), np.nan, np.float32), name=value.name)
    with pytest.raises(BadInputError, match=r"read by layers\.0\.down"):
        scores(analyse(broken), "output_norm", "ffn", data=[BATCH])


def test_output_norm_without_data_is_refused(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match="needs data"):
        scores(analysis, "output_norm", "heads")


def test_an_unknown_criterion_names_the_nearest(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match="output_norm"):
        scores(analysis, "output_nrm", "heads")


def nan_scores(group, context) -> np.ndarray:
    return np.full(group.size, np.nan)


def few_scores(group, context) -> np.ndarray:
    return np.zeros(1)


@pytest.mark.parametrize(
    ("function", "message"), [("nan_scores", "NaN scores"), ("few_scores", "another shape")]
)
def test_bad_scores_of_a_users_function_are_refused(
    analysis: Analysis, function: str, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        scores(analysis, f"{__name__}:{function}", "heads")


def test_a_function_that_does_not_exist_is_refused(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match="cannot find the criterion"):
        scores(analysis, "numpy:no_such_criterion", "heads")


def test_every_criterion_says_what_it_is_in_one_line() -> None:
    assert all(
        entry.__doc__ and entry.__doc__.split("\n")[0].endswith(".") for entry in CRITERIA.values()
    )
