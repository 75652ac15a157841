"""Signals of a class token are refused where the graph shows that none leads the tokens."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from secateur.errors import BadInputError
from secateur.graph_passes.attention import find_sites
from secateur.workflow.selecting import Select, select_tokens

SIDE, WIDTH = 3, 8
PATCHES = SIDE * SIDE

IN_FRONT = {
    "a class token": ("made, patches", 1),
    "a class token and registers": ("made, four, patches", 5),
    "registers alone": ("four, patches", 4),
    "nothing": ("patches", 0),
    "patches, the class token behind": ("patches, made", 1),
}
REFUSED = ("registers alone", "nothing", "patches, the class token behind")


def picture_tower(joined: str, n_more: int) -> ir.Model:
    """Patches of a picture and what is joined to them, one block of attention, all tokens out."""
    join = f"tokens = Concat<axis = 1>({joined})" if "," in joined else "tokens = Identity(patches)"
    n = PATCHES + n_more
    return ir.from_onnx_text(f"""
    <ir_version: 10, opset_import: ["" : 20]>
    tower (float[batch, 3, {2 * SIDE}, {2 * SIDE}] x) => (float[batch, {n}, {WIDTH}] y)
    <float[{WIDTH}, 3, 2, 2] kernel = {numbers(WIDTH * 12)},
     float[1, 1, {WIDTH}] one = {numbers(WIDTH)}, float[1, 4, {WIDTH}] more = {numbers(4 * WIDTH)},
     float[{WIDTH}, {WIDTH}] wq = {numbers(64)}, float[{WIDTH}, {WIDTH}] wk = {numbers(64)},
     float[{WIDTH}, {WIDTH}] wv = {numbers(64)}, float[{WIDTH}, {WIDTH}] wo = {numbers(64)},
     int64[3] flat = {{0, {WIDTH}, -1}}, int64[4] apart = {{0, -1, 2, 4}},
     int64[3] together = {{0, -1, {WIDTH}}}, int64[2] rest = {{1, 1}}, float half = {{0.5}}>
    {{
        grid = Conv<strides = [2, 2], kernel_shape = [2, 2]>(x, kernel)
        line = Reshape(grid, flat)
        patches = Transpose<perm = [0, 2, 1]>(line)
        batch_size = Shape<start = 0, end = 1>(x)
        sizes = Concat<axis = 0>(batch_size, rest)
        made = Expand(one, sizes)
        four = Expand(more, sizes)
        {join}
        q = MatMul(tokens, wq)
        k = MatMul(tokens, wk)
        v = MatMul(tokens, wv)
        q4 = Reshape(q, apart)
        k4 = Reshape(k, apart)
        v4 = Reshape(v, apart)
        qh = Transpose<perm = [0, 2, 1, 3]>(q4)
        kh = Transpose<perm = [0, 2, 3, 1]>(k4)
        vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        products = MatMul(qh, kh)
        scores = Mul(products, half)
        weights = Softmax<axis = -1>(scores)
        mixed = MatMul(weights, vh)
        back = Transpose<perm = [0, 2, 1, 3]>(mixed)
        joined = Reshape(back, together)
        projected = MatMul(joined, wo)
        stream = Add(tokens, projected)
        y = Relu(stream)
    }}
    """)


def numbers(n: int) -> str:
    return "{" + ", ".join(f"{(i * 7 % 11 - 5) / 10}" for i in range(n)) + "}"


def selecting(name: str, by: str, **stated: bool) -> ir.Model:
    model = picture_tower(*IN_FRONT[name])
    return select_tokens(model, [Select(find_sites(model)[0].name, by, 0.5, 0, **stated)])


@pytest.mark.parametrize("name", [name for name in IN_FRONT if name not in REFUSED])
def test_a_class_token_in_front_gives_its_row(name: str) -> None:
    assert selecting(name, "class_row").metadata_props["secateur.sites"]


@pytest.mark.parametrize("name", REFUSED)
def test_without_one_its_row_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadInputError, match="reads the signal 'class_row'") as caught:
        selecting(name, "class_row")
    assert "no class token" in str(caught.value)
    assert "column_mean" in caught.value.next_step


@pytest.mark.parametrize("name", REFUSED)
def test_who_says_that_the_first_is_one_is_believed(name: str) -> None:
    assert selecting(name, "class_row", class_token=True).metadata_props["secateur.sites"]


@pytest.mark.sweep
@pytest.mark.parametrize("by", ["vtc_cls", "fastervlm", "flowcut", "holov"])
def test_every_method_that_reads_the_class_token_is_refused(by: str) -> None:
    with pytest.raises(BadInputError, match=r"reads the signal 'class_\w+'"):
        selecting("nothing", by)


@pytest.mark.parametrize("by", ["column_mean", "key_norm"])
def test_other_signals_need_none(by: str) -> None:
    assert selecting("nothing", by).metadata_props["secateur.sites"]
