"""Each criterion against a loop over the torch module's own weights and activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.laws.small_models import group_of, network
from tests.parity import tiny

from secateur.calibration.importance import Context, Scoring, rank
from secateur.calibration.importance.flap import standardised
from secateur.calibration.statistics.moments import Fluctuation
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import Analysis, analyse

LENGTHS = (12, 7, 3)
WIDTH = 4
_RELU = """
relu (float[batch, 6] x) => (float[batch, 3] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    y = MatMul(b, w2)
}
"""
_CNN = """
cnn (float[batch, 3, 6, 6] x) => (float[batch, 2, 6, 6] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    n = BatchNormalization(a, gamma, beta, mean, var)
    b = Relu(n)
    y = Conv <pads = [1, 1, 1, 1]> (b, w2)
}
"""


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(tiny.exported())


def inputs_of(layer: int, name: str) -> list[np.ndarray]:
    """What ``o`` or ``down`` of a layer reads, real tokens of each sentence."""
    net, seen = tiny.bert(), []
    layer_module = net.layers[layer]
    module = layer_module.attention.o if name == "o" else layer_module.down
    hook = module.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    with torch.no_grad():
        net(**{key: torch.from_numpy(x) for key, x in tiny.BATCH.items()})
    hook.remove()
    return [seen[0][b, :n].double().numpy() for b, n in enumerate(LENGTHS)]


def weight_of(layer: int, name: str) -> np.ndarray:
    module = tiny.bert().layers[layer]
    linear = module.attention.o if name == "o" else module.down
    return linear.weight.detach().double().numpy()


def scores(analysis: Analysis, importance: str, role: str, **options: object) -> list[np.ndarray]:
    options.setdefault("data", [tiny.BATCH])
    return list(rank(importance, Context(analysis, analysis.by_role(role), **options)).values())


def per_head(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, WIDTH).sum(axis=1)


def expected(importance: str, layer: int, name: str) -> np.ndarray:
    """The number of every input feature by the paper's formula."""
    samples, w = inputs_of(layer, name), weight_of(layer, name)
    rows = np.concatenate(samples)
    gram = rows.T @ rows
    if importance == "wanda":
        return (np.abs(w) * np.linalg.norm(rows, axis=0)).sum(0)
    if importance == "spatten":
        return np.abs(rows).sum(0)
    if importance == "obd":
        return (w**2 * np.diag(gram)).sum(0) / 2
    if importance == "obs":
        inverse = np.linalg.inv(gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram)))
        return (w**2 / np.diag(inverse)).sum(0) / 2
    assert importance == "cfsp"
    return np.sqrt(np.mean([(s**2).sum(0) for s in samples], axis=0))


@pytest.mark.parametrize("importance", ["wanda", "spatten", "obd", "obs", "cfsp"])
def test_a_criterion_of_activations_is_its_formula_on_real_tokens(
    analysis: Analysis, importance: str
) -> None:
    for layer, got in enumerate(scores(analysis, importance, "heads")):
        np.testing.assert_allclose(got, per_head(expected(importance, layer, "o")), rtol=2e-3)
    for layer, got in enumerate(scores(analysis, importance, "ffn")):
        np.testing.assert_allclose(got, expected(importance, layer, "down"), rtol=2e-3)


def test_flap_standardises_fluctuation_times_weights(analysis: Analysis) -> None:
    for name, role in (("o", "heads"), ("down", "ffn")):
        for layer, got in enumerate(scores(analysis, "flap", role)):
            found = Fluctuation()
            found.add(inputs_of(layer, name))
            metric = found.fluctuation * (weight_of(layer, name) ** 2).sum(0)
            if name == "o":
                want = standardised(metric**2).reshape(-1, WIDTH).mean(axis=1)
            else:
                want = standardised(metric)
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_obspa_adds_rows_of_producers_and_columns_of_readers(analysis: Analysis) -> None:
    def weighted(rows: np.ndarray, w: np.ndarray, n: int) -> np.ndarray:
        hessian = rows.T @ rows * 2 / n
        damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(len(hessian))
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        return w**2 / np.diag(factor) ** 2

    net, seen = tiny.bert(), []
    hook = net.layers[0].up.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    with torch.no_grad():
        net(**{key: torch.from_numpy(x) for key, x in tiny.BATCH.items()})
    hook.remove()
    into = np.concatenate([seen[0][b, :n].double().numpy() for b, n in enumerate(LENGTHS)])
    up = net.layers[0].up.weight.detach().double().numpy()
    want = weighted(into, up, 3).sum(1)
    want += weighted(np.concatenate(inputs_of(0, "down")), weight_of(0, "down"), 3).sum(0)
    np.testing.assert_allclose(scores(analysis, "obspa", "ffn")[0], want, rtol=5e-3)


def test_tyr_orders_units_by_greedy_reconstruction(analysis: Analysis) -> None:
    got = scores(analysis, "tyr", "heads")[0]
    assert sorted(got.tolist()) == [0, 1, 2, 3]
    rows, w = np.concatenate(inputs_of(0, "o")), weight_of(0, "o")

    def error_without(head: int) -> float:
        left = np.delete(np.arange(16), np.arange(head * WIDTH, head * WIDTH + WIDTH))
        gram = rows.T @ rows
        gram += 0.01 * np.diag(gram).mean() * np.eye(16)
        refit = np.zeros((16, 16))
        refit[:, left] = np.linalg.solve(gram[np.ix_(left, left)], (gram @ w.T)[left]).T
        return float(np.trace((refit - w) @ gram @ (refit - w).T))

    assert int(np.argmin(got)) == int(np.argmin([error_without(h) for h in range(4)]))


@pytest.mark.parametrize("importance", ["lamp", "fpgm"])
def test_a_criterion_of_weights_is_its_formula(importance: str) -> None:
    model = network(_RELU, {"w1": (6, 5), "w2": (5, 3)})
    analysis = analyse(model)
    group = group_of(analysis, "w1", 1)
    (got,) = rank(importance, Context(analysis, (group,))).values()
    want = np.zeros(5)
    for name, axis in (("w1", 1), ("w2", 0)):
        w = np.moveaxis(model.graph.initializers[name].const_value.numpy().astype(float), axis, 0)
        if importance == "lamp":
            squares = w**2
            left = np.array([[squares[squares >= s].sum() for s in row] for row in squares])
            want += (squares / left).sum(1)
        else:
            want += [sum(np.linalg.norm(a - b) for b in w) for a in w]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.fixture(scope="module")
def cnn() -> ir.Model:
    weights = {"w1": (4, 3, 3, 3), "gamma": (4,), "beta": (4,), "mean": (4,), "w2": (2, 4, 3, 3)}
    return network(_CNN, weights, {"var": np.full(4, 0.7, np.float32)})


def cnn_scores(cnn: ir.Model, importance: str, **options: object) -> np.ndarray:
    analysis = analyse(cnn)
    (got,) = rank(importance, Context(analysis, (group_of(analysis, "w1", 0),), **options)).values()
    return got


def test_bn_scale_is_the_size_of_gamma(cnn: ir.Model) -> None:
    gamma = cnn.graph.initializers["gamma"].const_value.numpy()
    np.testing.assert_allclose(cnn_scores(cnn, "bn_scale"), np.abs(gamma))


def test_bn_scale_without_a_batch_norm_is_refused(analysis: Analysis) -> None:
    with pytest.raises(PreconditionError, match="no batch norm"):
        scores(analysis, "bn_scale", "ffn")


def test_apoz_is_the_share_of_positions_that_are_not_zero(cnn: ir.Model) -> None:
    from secateur.calibration.activations import observe

    x = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float32)
    ((_, seen),) = observe(cnn, ["b"], [{"x": x}])
    want = (seen["b"] != 0).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(cnn_scores(cnn, "apoz", data=[{"x": x}]), want)


def test_apoz_behind_a_gelu_is_refused(analysis: Analysis) -> None:
    with pytest.raises(PreconditionError, match="ever zero"):
        scores(analysis, "apoz", "ffn")


@pytest.mark.parametrize("importance", ["wanda", "obspa", "obs", "tyr", "flap"])
def test_convolutions_can_be_ranked(cnn: ir.Model, importance: str) -> None:
    x = np.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype(np.float32)
    got = cnn_scores(cnn, importance, data=[{"x": x}])
    assert got.shape == (4,)
    assert len(set(got.tolist())) == 4


def test_flap_needs_two_samples(analysis: Analysis) -> None:
    one = {name: x[:1] for name, x in tiny.BATCH.items()}
    with pytest.raises(BadInputError, match="too few samples"):
        scores(analysis, "flap", "ffn", data=[one])


def gradients(seed: int = 0) -> dict[str, np.ndarray]:
    """By parameter name, in torch's shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(tuple(p.shape)) for name, p in tiny.bert().named_parameters()}


def test_taylor_takes_gradients_in_the_layout_of_torch(analysis: Analysis) -> None:
    given = gradients()
    got = scores(analysis, "taylor", "ffn", arrays=given)[1]
    layer, want = tiny.bert().layers[1], np.zeros(tiny.FFN)
    for name, axis in (("up.weight", 0), ("up.bias", 0), ("down.weight", 1)):
        flow = layer.get_parameter(name).detach().double().numpy() * given[f"layers.1.{name}"]
        want += np.abs(flow).sum(axis=tuple(i for i in range(flow.ndim) if i != axis))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_joint_taylor_of_one_sample_squares_to_its_form_by_sample(analysis: Analysis) -> None:
    given = gradients()
    samples = {f"{name}@samples": array[None] for name, array in given.items()}
    scoring = Scoring("first")
    joint = scores(analysis, "taylor_joint", "heads", arrays=given, scoring=scoring)
    squared = scores(analysis, "taylor_samples", "heads", arrays=samples, scoring=scoring)
    np.testing.assert_allclose(squared[0], joint[0] ** 2)


@pytest.mark.parametrize(("importance", "kind"), [("fisher", "fisher"), ("grasp", "hessian")])
def test_other_arrays_are_found_by_their_kind(
    analysis: Analysis, importance: str, kind: str
) -> None:
    given = {f"{name}@{kind}": np.abs(array) for name, array in gradients().items()}
    assert scores(analysis, importance, "heads", arrays=given)[0].shape == (tiny.H,)
    with pytest.raises(BadInputError, match=f"@{kind}"):
        scores(analysis, importance, "heads", arrays=gradients())


def test_missing_gradients_name_the_parameter(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match=r"no array 'layers\.0\..*' was handed in"):
        scores(analysis, "taylor", "heads")


def test_gradients_of_another_shape_are_refused(analysis: Analysis) -> None:
    given = {name: array[..., :2] for name, array in gradients().items()}
    with pytest.raises(BadInputError, match="another shape"):
        scores(analysis, "taylor", "ffn", arrays=given)


def test_gradients_with_nan_are_refused(analysis: Analysis) -> None:
    given = {name: array * np.nan for name, array in gradients().items()}
    with pytest.raises(BadInputError, match="NaN"):
        scores(analysis, "snip", "ffn", arrays=given)


def test_rank_of_feature_maps_counts_for_channels(cnn: ir.Model) -> None:
    from secateur.calibration.activations import observe

    x = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float32)
    ((_, seen),) = observe(cnn, ["b"], [{"x": x}])
    want = np.linalg.matrix_rank(seen["b"]).mean(axis=0)
    np.testing.assert_allclose(cnn_scores(cnn, "hrank", data=[{"x": x}]), want)


def test_a_reader_behind_a_pooling_does_not_take_the_maps_away() -> None:
    from secateur.calibration.activations import observe

    text = """
    cnn (float[batch, 3, 6, 6] x) => (float[batch, 4, 6, 6] y, float[batch, 5] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        b = Relu(a)
        y = Conv <pads = [1, 1, 1, 1]> (b, w2)
        p = GlobalAveragePool(b)
        f = Flatten(p)
        z = MatMul(f, w3)
    }
    """
    model = network(text, {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 5)}, {})
    x = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float32)
    ((_, seen),) = observe(model, ["b"], [{"x": x}])
    want = np.linalg.matrix_rank(seen["b"]).mean(axis=0)
    np.testing.assert_allclose(cnn_scores(model, "hrank", data=[{"x": x}]), want)


def test_rank_of_single_numbers_is_refused(analysis: Analysis) -> None:
    with pytest.raises(PreconditionError, match="no feature maps"):
        scores(analysis, "hrank", "ffn")


def test_top1_usage_is_the_share_of_tokens_a_head_wins(analysis: Analysis) -> None:
    rows, w = np.concatenate(inputs_of(0, "o")), weight_of(0, "o")
    parts = [rows[:, h * 4 : h * 4 + 4] @ w[:, h * 4 : h * 4 + 4].T for h in range(4)]
    winner = np.stack([np.linalg.norm(part, axis=1) for part in parts]).argmax(axis=0)
    want = np.bincount(winner, minlength=4) / len(rows)
    np.testing.assert_allclose(scores(analysis, "top1_usage", "heads")[0], want)


def test_a_policy_scores_the_rows_that_make_the_units(analysis: Analysis) -> None:
    from secateur.calibration.importance.prunenet import Policy, row_scores

    rng = np.random.default_rng(0)
    policy = Policy(*(rng.standard_normal(shape) for shape in ((24, 16), (24,), (24, 1))))
    given = {
        "prunenet.projection": policy.projection,
        "prunenet.bias": policy.bias,
        "prunenet.row_vector": policy.row_vector,
    }
    up = tiny.bert().layers[0].up.weight.detach().double().numpy()
    got = scores(analysis, "prunenet", "ffn", arrays=given)[0]
    np.testing.assert_allclose(got, row_scores(policy, up), rtol=1e-4)
    with pytest.raises(BadInputError, match="another size"):
        scores(analysis, "prunenet", "heads", arrays=given)


def test_a_policy_can_be_trained_on_the_weights_alone(analysis: Analysis) -> None:
    from secateur.calibration.importance.prunenet_training import Training, train_policy

    told: list[str] = []
    groups = analysis.by_role("ffn")
    policy = train_policy(groups, Training(0.5, episodes=4, progress=told.append))
    again = train_policy(groups, Training(0.5, episodes=4))
    for name, array in policy.items():
        np.testing.assert_array_equal(array, again[name])
    bests = [float(line.rpartition(" ")[2]) for line in told]
    assert bests == sorted(bests)
    assert all(s.shape == (24,) for s in scores(analysis, "prunenet", "ffn", arrays=policy))


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"episodes": 0}, {"ratio": 0.99}])
def test_a_training_without_rows_or_episodes_is_refused(analysis: Analysis, options: dict) -> None:
    from secateur.calibration.importance.prunenet_training import Training, train_policy

    with pytest.raises(BadInputError, match=r"ratio in \(0, 1\)|no row"):
        train_policy(analysis.by_role("ffn"), Training(**options))


def test_a_policy_is_for_one_shape(analysis: Analysis) -> None:
    from secateur.calibration.importance.prunenet_training import Training, train_policy

    groups = (*analysis.by_role("ffn"), *analysis.by_role("heads"))
    with pytest.raises(BadInputError, match="one shape"):
        train_policy(groups, Training())


def test_without_a_policy_prunenet_says_what_it_needs(analysis: Analysis) -> None:
    with pytest.raises(BadInputError, match=r"prunenet\.projection"):
        scores(analysis, "prunenet", "ffn")


def test_lora_factors_are_taken_by_parameter(analysis: Analysis) -> None:
    from secateur.calibration.importance.loraprune import Adapted, weight_importance

    rng, given, want = np.random.default_rng(0), {"lora.scale": np.array(2.0)}, np.zeros(24)
    for i in range(3):
        for name, (out, into) in (("up", (24, 16)), ("down", (16, 24))):
            key = f"layers.{i}.{name}.weight"
            factors = [rng.standard_normal(s) for s in ((2, into), (out, 2)) * 2]
            names = ("lora_a", "lora_b", "grad_a", "grad_b")
            given |= {f"{key}@{n}": array for n, array in zip(names, factors, strict=True)}
            if i == 0:
                weight = tiny.bert().get_parameter(key).detach().double().numpy()
                sums = weight_importance(Adapted(weight, *factors, 2.0)).sum(int(name == "up"))
                want = want + sums / np.linalg.norm(sums)
    np.testing.assert_allclose(scores(analysis, "loraprune", "ffn", arrays=given)[0], want)
    with pytest.raises(BadInputError, match="was handed in"):
        scores(analysis, "loraprune", "ffn")


def test_gaprune_sums_its_scores_over_the_matrices_of_a_unit(analysis: Analysis) -> None:
    from secateur.calibration.importance.gaprune import Evidence, raw_score

    rng, given, want = np.random.default_rng(0), {}, np.zeros(24)
    for i in range(3):
        for name, shape in (("up", (24, 16)), ("down", (16, 24))):
            key = f"layers.{i}.{name}.weight"
            arrays = [rng.standard_normal(shape) for _ in range(4)]
            arrays[2:] = [np.abs(array) for array in arrays[2:]]
            kinds = ("general", "domain", "fisher_general", "fisher_domain")
            given |= {f"{key}@{kind}": a for kind, a in zip(kinds, arrays, strict=True)}
            if i == 0:
                weight = tiny.bert().get_parameter(key).detach().double().numpy()
                want += raw_score(weight, Evidence(*arrays)).sum(int(name == "up"))
    np.testing.assert_allclose(scores(analysis, "gaprune", "ffn", arrays=given)[0], want, rtol=1e-6)
