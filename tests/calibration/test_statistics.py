"""What is gathered inside a running graph, against the same numbers computed in torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from tests.laws.small_models import group_of, network
from tests.parity import tiny

from secateur.calibration.statistics import (
    BY_KERNEL,
    Gram,
    How,
    Moments,
    all_places,
    gather,
    places_of,
)
from secateur.calibration.statistics.moments import Fluctuation, Sums
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import Analysis, analyse
from secateur.workflow.selecting import Select, select_tokens

LENGTHS = (12, 7, 3)
_CONV = """
conv (float[batch, 3, 9, 8] x) => (float[batch, 2, oh, ow] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu(a)
    y = Conv <strides = [2, 1], dilations = [1, 2], pads = [0, 1, 2, 1]> (b, w2)
}
"""


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(tiny.exported())


def down(analysis: Analysis, layer: int = 0):
    (place,) = places_of(analysis.group(f"FFN of layers.{layer}"), all_places(analysis))
    return place


def rows_in_torch(layer: int = 0) -> list[np.ndarray]:
    """Inputs of a layer's down projection, one array of real tokens per sentence."""
    net, seen = tiny.bert(), []
    hook = net.layers[layer].down.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    with torch.no_grad():
        net(**{name: torch.from_numpy(x) for name, x in tiny.BATCH.items()})
    hook.remove()
    return [seen[0][b, :n].double().numpy() for b, n in enumerate(LENGTHS)]


def test_moments_are_sums_over_real_tokens(analysis: Analysis) -> None:
    sums = Moments()
    gather(analysis.model, [(down(analysis), sums)], [tiny.BATCH])
    rows = np.concatenate(rows_in_torch())
    assert (sums.n_samples, sums.n_rows) == (3, sum(LENGTHS))
    np.testing.assert_allclose(sums.total, rows.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sums.square, (rows**2).sum(0), rtol=1e-4)
    np.testing.assert_allclose(sums.norm, np.linalg.norm(rows, axis=0), rtol=1e-4)


def test_the_gram_matrix_is_that_of_the_real_tokens(analysis: Analysis) -> None:
    sums = Gram()
    gather(analysis.model, [(down(analysis), sums)], [tiny.BATCH])
    rows = np.concatenate(rows_in_torch())
    np.testing.assert_allclose(sums.products, rows.T @ rows, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(sums.hessian, rows.T @ rows * 2 / 3, rtol=1e-3, atol=1e-4)


def test_batches_can_be_cut_anywhere(analysis: Analysis) -> None:
    together, apart = Gram(), Gram()
    single = [{name: x[i : i + 1] for name, x in tiny.BATCH.items()} for i in range(3)]
    gather(analysis.model, [(down(analysis), together)], [tiny.BATCH])
    gather(analysis.model, [(down(analysis), apart)], iter(single))
    np.testing.assert_allclose(apart.products, together.products, rtol=1e-4, atol=1e-5)


def test_a_graph_that_drops_tokens_is_calibrated_on_those_it_keeps() -> None:
    analysis = analyse(select_tokens(tiny.exported(), [Select("layers.0", keep=0.5)]))
    before, behind = Moments(), Moments()
    pairs = [(down(analysis, 0), before), (down(analysis, 1), behind)]
    budget = {"layers.0.permille": np.array([500], np.int64)}
    gather(analysis.model, pairs, [tiny.BATCH | budget])
    assert before.n_rows == 12 + 7 + 3
    assert behind.n_rows == 6 + 4 + 2


def test_a_convolution_is_seen_as_patches() -> None:
    model = network(_CONV, {"w1": (4, 3, 3, 3), "w2": (2, 4, 3, 2)})
    analysis = analyse(model)
    (place,) = places_of(group_of(analysis, "w1", 0), all_places(analysis))
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    sums = Gram()
    gather(model, [(place, sums)], [{"x": x}], BY_KERNEL)
    w1, w2 = (
        torch.from_numpy(model.graph.initializers[n].const_value.numpy().copy())
        for n in ("w1", "w2")
    )
    hidden = F.pad(F.relu(F.conv2d(torch.from_numpy(x), w1, padding=1)), (1, 1, 0, 2))
    rows = F.unfold(hidden, (3, 2), dilation=(1, 2), stride=(2, 1)).transpose(1, 2).reshape(-1, 24)
    np.testing.assert_allclose(sums.products, (rows.T @ rows).numpy(), rtol=1e-3, atol=1e-3)
    got = rows.double().numpy() @ place.matrix().T
    want = F.conv2d(hidden, w2, stride=(2, 1), dilation=(1, 2)).double()
    np.testing.assert_allclose(got, want.flatten(2).transpose(1, 2).reshape(-1, 2), atol=1e-4)


def test_padding_by_name_is_that_of_onnx_runtime() -> None:
    text = _CONV.replace("pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER", strides = [2, 2]')
    text = text.replace("strides = [2, 1], dilations = [1, 2], pads = [0, 1, 2, 1]",
                        'auto_pad = "SAME_LOWER", strides = [2, 2]')  # fmt: skip
    model = network(text, {"w1": (4, 3, 3, 3), "w2": (2, 4, 3, 2)})
    place = next(p for p in all_places(analyse(model)) if p.initialiser == "w2")
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    sums, outputs = Gram(), Sums(lambda rows: rows @ place.matrix().T)
    gather(model, [(place, sums), (place, outputs)], [{"x": x}], BY_KERNEL)
    from secateur.calibration.activations import observe

    ((_, seen),) = observe(model, ["y"], [{"x": x}])
    np.testing.assert_allclose(outputs.total, seen["y"].sum(axis=(0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_fluctuation_follows_the_published_rule() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((n, 5)) for n in (3, 4, 2)]
    found = Fluctuation()
    found.add(samples)
    mean, wanted = samples[0].mean(0), np.zeros(5)
    for k, rows in enumerate(samples[1:], start=1):
        mean = mean * k / (k + 1) + rows.mean(0) / (k + 1)
        wanted = wanted * (k - 1) / k + ((rows - mean) ** 2).sum(0) / (k + 1)
    np.testing.assert_allclose(found.fluctuation, wanted)
    np.testing.assert_allclose(found.mean, np.mean([s.mean(0) for s in samples], axis=0))


def test_the_width_of_queries_and_keys_is_read_by_no_weight(analysis: Analysis) -> None:
    with pytest.raises(PreconditionError, match="no weight reads"):
        places_of(analysis.group("query-key width of layers.0"), all_places(analysis))


def test_infinities_are_named_with_the_weight_that_reads_them() -> None:
    model = tiny.exported().clone()
    value = next(v for v in model.graph.initializers.values() if v.shape.numpy() == (40, 16))
    value.const_value = ir.tensor(np.full((40, 16), np.inf, np.float32), name=value.name)
    analysis = analyse(model)
    with pytest.raises(BadInputError, match=r"read by layers\.0\.down\.weight"):
        gather(model, [(down(analysis), Moments())], [tiny.BATCH])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "needs data"),
        ([{name: x[:1] for name, x in tiny.BATCH.items()}] * 2, "every sample of the data"),
        ([{name: np.repeat(x[:1], 4, 0) for name, x in tiny.BATCH.items()}], "every sample"),
        ([{name: x[:1] for name, x in tiny.BATCH.items()}], "too few samples"),
        ([{"input_ids": tiny.BATCH["input_ids"]}], "attention_mask"),
        ([{**tiny.BATCH, "input_ids": np.zeros((3, 12), np.float32)}], "input_ids"),
    ],
)
def test_data_that_says_too_little_is_refused(analysis: Analysis, data, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        gather(analysis.model, [(down(analysis), Moments())], data, How(at_least=2))
