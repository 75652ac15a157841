"""A selecting graph equals the dense graph with dropped keys masked, however it is written."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from tests.passes.selection.models import Variant, build, write
from tests.passes.selection.reference import dense, relative_error, run
from tests.passes.selection.support import (
    TOLERANCE,
    amounts,
    assert_selects_like,
    check,
    expect,
    feeds,
    insert,
    selections,
)

RAGGED = (9, 4, 7)
EVEN = (8, 8)

WRITINGS = {
    "plain": Variant(),
    "additive mask": Variant(mask="additive"),
    "mask arithmetic of old exports": Variant(mask="legacy", opset=17),
    "masked scores replaced by Where": Variant(mask="where"),
    "mask for every pair": Variant(mask="pairs"),
    "causal and padding": Variant(mask="causal"),
    "scale after the product": Variant(scale="after"),
    "scale on both operands": Variant(scale="both"),
    "keys transposed at once": Variant(key="direct"),
    "keys merged with the batch": Variant(key="merged"),
    "softmax guarded against NaN": Variant(guard=True, mask="pairs", key="merged", scale="both"),
    "pre-norm": Variant(norm="pre"),
    "targets that copy": Variant(sizes="copy"),
    "masked mean": Variant(pool="mask"),
    "mean without a mask": Variant(pool="mean"),
    "last block without a mask": Variant(unmasked_from=2),
    "last block without a mask, fused": Variant(unmasked_from=2, form="fused", opset=23),
    "last block without a mask, com.microsoft": Variant(
        unmasked_from=2, form="microsoft", sizes="copy"
    ),
    "maximum without a mask": Variant(pool="max"),
    "sum without a mask": Variant(pool="sum"),
    "fused attention": Variant(form="fused", opset=23),
    "fused attention, mask for every pair": Variant(form="fused", opset=23, mask="pairs"),
    "fused attention, additive mask": Variant(form="fused", opset=23, mask="additive"),
    "com.microsoft attention": Variant(form="microsoft", sizes="copy"),
    "positions made in every layer": Variant(extra="positions"),
    "rotary tables made in every layer": Variant(extra="rotary", mask="causal"),
    "tokens returned": Variant(pool="tokens"),
    "mask only at the pooling": Variant(mask="none", pool="mask"),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_two_sites_equal_the_masked_dense_graph(name: str) -> None:
    lengths = EVEN if name == "mask only at the pooling" else RAGGED
    check(WRITINGS[name], (0, 1), lengths, permille=(700, 600))


FIXED = {
    "no mask": Variant(mask="none", tokens=8, sizes="constant"),
    "no mask, fused": Variant(mask="none", tokens=8, sizes="constant", form="fused", opset=23),
    "mean": Variant(mask="none", tokens=8, sizes="constant", pool="mean"),
    "mean of the tokens after the first": Variant(
        mask="none", tokens=8, sizes="constant", pool="rest"
    ),
    "com.microsoft attention": Variant(mask="none", tokens=8, sizes="copy", form="microsoft"),
    "bias for all samples": Variant(mask="none", tokens=8, extra="bias"),
    "a parameter per token, without batch axis": Variant(mask="none", tokens=8, extra="rows"),
    "a parameter per patch": Variant(mask="none", tokens=8, extra="patches"),
    "as many tokens as a head is wide": Variant(mask="bool", tokens=8, sizes="constant"),
    "as many tokens as the model is wide": Variant(mask="none", tokens=16, sizes="constant"),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_number_of_tokens(name: str) -> None:
    variant = FIXED[name]
    check(variant, (0, 1), (variant.tokens,) * 3, permille=(700, 600))


@pytest.mark.parametrize("signal", ["class_row", "column_mean", "keys", "values", "hidden"])
@pytest.mark.parametrize("form", ["decomposed", "fused"])
def test_every_signal(signal: str, form: str) -> None:
    variant = Variant(form=form, scale="both", opset=23 if form == "fused" else 20)
    check(variant, (0, 1), RAGGED, signal=signal, permille=(700, 600))


@pytest.mark.parametrize("form", ["decomposed", "fused"])
def test_half_precision(form: str) -> None:
    """Selections are made in float32, so that they agree; values to half precision."""
    variant = Variant(half=True, pool="mask", form=form, opset=23 if form == "fused" else 20)
    model = insert(build(variant), selections((0, 1), "keys"))
    full = Variant(pool="mask")
    fed = feeds(variant, RAGGED)
    want = run(
        insert(build(full), selections((0, 1), "keys")),
        fed | {"x": fed["x"].astype(np.float32)} | amounts((0, 1), (700, 600)),
    )
    got = run(model, fed | amounts((0, 1), (700, 600)))
    for layer in (0, 1):
        name = f"encoder.layer.{layer}.kept"
        np.testing.assert_array_equal(got[name], want[name])
    assert got["y"].dtype == np.float16
    assert relative_error(got["y"].astype(np.float32), want["y"]) < 2e-2


@pytest.mark.parametrize("permille", [(1, 1), (1000, 1000), (500, 1), (1000, 300)])
def test_extreme_shares(permille: tuple[int, int]) -> None:
    check(Variant(pool="mask"), (0, 1), RAGGED, permille=permille)


def test_one_site_behind_the_last_block() -> None:
    check(Variant(pool="mask"), (2,), RAGGED, permille=(500,))


@pytest.mark.parametrize("permille", [(1, 1), (400, 500), (1000, 1000)])
def test_a_computed_position_is_followed(permille: tuple[int, int]) -> None:
    variant = Variant(pool="argmax")
    model = insert(build(variant), selections((0, 1), "keys"))
    fed = feeds(variant, RAGGED)
    at = np.array([6, 1, 3])
    fed["ids"] = np.zeros((3, 9), np.int64)
    fed["ids"][np.arange(3), at] = 9
    got = run(model, fed | amounts((0, 1), permille))
    dense_model, names = write(variant)
    twin = dense(dense_model, [0, 1], watch=(names["hidden.2"],))
    alive = []
    for layer in (0, 1):
        kept = got[f"encoder.layer.{layer}.kept"]
        assert all(at[b] in kept[b] for b in range(3))
        alive.append(np.array([[j in row for j in range(9)] for row in kept]))
    hidden = twin.run(fed, [~rows for rows in alive])[names["hidden.2"]]
    weights = {i.name: numpy_helper.to_array(i) for i in dense_model.graph.initializer}
    want = hidden[np.arange(3), at] @ weights["head.weight"] + weights["head.bias"]
    assert relative_error(got["y"], want) < TOLERANCE


LEFT = {
    "bool": Variant(pool="mask"),
    "additive": Variant(pool="mask", mask="additive"),
    "arithmetic": Variant(pool="mask", mask="legacy", opset=17),
    "pairs": Variant(pool="mask", mask="pairs"),
    "causal": Variant(pool="mask", mask="causal", extra="positions"),
    "replaced": Variant(pool="mask", mask="where"),
    "fused": Variant(pool="mask", form="fused", opset=23),
    "fused, additive": Variant(pool="mask", form="fused", opset=23, mask="additive"),
    "mean": Variant(pool="mean"),
}


@pytest.mark.parametrize("name", LEFT)
def test_padding_on_the_left(name: str) -> None:
    """Empty slots point at the last token, which is a real one here: only validity hides it."""
    variant = LEFT[name]
    model = insert(build(variant), selections((0, 1), "keys"))
    fed = feeds(variant, RAGGED)
    fed["mask"] = np.ascontiguousarray(fed["mask"][:, ::-1])
    want = expect(variant, (0, 1), fed, signal="keys", permille=(700, 600))
    got = run(model, fed | amounts((0, 1), (700, 600)))
    assert_selects_like(got, want, (0, 1))
