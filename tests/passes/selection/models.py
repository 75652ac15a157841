"""Small transformers as plain ONNX protos, in the variants that exporters write.

Weights depend on the seed only, so that two variants of one network give equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.passes.selection.sizes import DH, FFN, OUT, PLACES, D, H
from tests.passes.selection.written import WRITTEN


@dataclass(frozen=True)
class Variant:
    """How a network is written down.

    Attributes:
        mask: none, bool, where (scores replaced), additive, legacy arithmetic, pairs
            (B, 1, N, N), or causal and padding together.
        form: decomposed, fused (the Attention op), microsoft (MultiHeadAttention), and those
            of ``written.py``: merged, folded, einsum, disentangled, and talking heads, which
            add a bias behind the softmax where ``guard`` asks for it.
        scale: where 1/sqrt(Dh) stands: query, after, both.
        key: late (B, H, N, Dh) transposed, direct (perm 0 2 3 1), merged (B*H, Dh, N).
        norm: post or pre.
        pool: class, mask (masked mean), mean, max, sum, rest (mean of tokens 1 on), last,
            argmax, tokens, divided (sum over the number of tokens), flat (Reshape over tokens),
            late (a class token joins the tokens, their mean is added to it).
        extra: none, positions (made from Shape in every layer), rotary, bias (1, H, N, N),
            rows (N, D), patches (rows for all but the first), window (a convolution over
            tokens), normalised (over tokens).
        tokens: fixed number of tokens, 0 for a dynamic axis.
        sizes: how Reshape targets are spelled: copy (0), constant, shape.
        opset: 17 to 23.
    """

    mask: str = "bool"
    form: str = "decomposed"
    scale: str = "query"
    key: str = "late"
    norm: str = "post"
    pool: str = "class"
    extra: str = "none"
    tokens: int = 0
    sizes: str = "shape"
    opset: int = 20
    layers: int = 3
    guard: bool = False
    half: bool = False
    unmasked_from: int = 99


class Writer:
    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.float = np.float16 if variant.half else np.float32
        self.kind = TensorProto.FLOAT16 if variant.half else TensorProto.FLOAT
        self.low = float(np.finfo(self.float).min)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(7)
        self.scope = ""
        self.names: dict[str, str] = {}
        self._n = 0

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        self._n += 1
        name = f"{self.scope}/{kind}_{self._n}".strip("/")
        out = f"{kind.lower()}_{self._n}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=name, **attributes))
        return out

    def const(self, array: object, dtype: type = np.int64) -> str:
        dtype = self.float if dtype is np.float32 else dtype
        value = np.array(array, dtype=dtype)
        name = f"c_{value.dtype}_{'x'.join(map(str, value.shape))}_{crc32(value.tobytes())}"
        self.weights[name] = value
        return name

    def number(self, value: float) -> str:
        return self.const(value, np.float32)

    def weight(self, name: str, *shape: int) -> str:
        spread = 1 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
        self.weights[name] = (self.rng.standard_normal(shape) * spread).astype(self.float)
        return name

    def linear(self, x: str, name: str, n_in: int, n_out: int) -> str:
        made = self.op("MatMul", x, self.weight(f"{name}.weight", n_in, n_out))
        return self.op("Add", made, self.weight(f"{name}.bias", n_out))

    def norm(self, x: str, name: str) -> str:
        gain, shift = self.weight(f"{name}.gain", D), self.weight(f"{name}.shift", D)
        self.weights[gain] += 1
        return self.op("LayerNormalization", x, gain, shift, axis=-1)

    def size(self, x: str, axis: int) -> str:
        shape = self.op("Shape", x)
        return self.op("Gather", shape, self.const([axis]), axis=0)

    def masked(self, s: str, mask: str) -> str:
        """Scores (B, H, N, N) with the mask, in the form that the variant names."""
        if not mask:
            return s
        if self.variant.mask == "where":
            return self.op("Where", mask, s, self.number(self.low))
        if self.variant.mask in ("additive", "legacy"):
            return self.op("Add", s, mask)
        return self.op("Add", s, self.op("Where", mask, self.number(0.0), self.number(self.low)))

    def target(self, x: str, *rest: int) -> str:
        """(B, N, *rest), spelled as the variant says."""
        if self.variant.sizes == "copy":
            return self.const([0, 0, *rest])
        if self.variant.sizes == "constant":
            return self.const([-1, self.variant.tokens, *rest])
        return self.op("Concat", self.size(x, 0), self.size(x, 1), self.const(list(rest)), axis=0)


def build(variant: Variant = Variant()) -> onnx.ModelProto:
    return write(variant)[0]


def write(variant: Variant) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model, and the names of values that a reference wants to see."""
    w = Writer(variant)
    n = variant.tokens or "tokens"
    x = _embed(w)
    mask = _mask(w, x)
    for layer in range(variant.layers):
        w.scope = f"encoder.layer.{layer}"
        x = _block(w, x, mask if layer < variant.unmasked_from else "", layer)
        w.names[f"hidden.{layer}"] = x
    w.scope = "head"
    out, shape = _pool(w, x)
    inputs = [helper.make_tensor_value_info("x", w.kind, ["batch", n, D])]
    if variant.mask != "none" or variant.pool == "mask":
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", n]))
    if variant.pool == "argmax":
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", n]))
    w.nodes.append(helper.make_node("Identity", [out], ["y"], name="out"))
    graph = helper.make_graph(
        w.nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info("y", w.kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in w.weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", variant.opset)], ir_version=9
    )
    if variant.form == "microsoft":
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.checker.check_model(model, full_check=True)
    return model, w.names


def _embed(w: Writer) -> str:
    w.scope = "embeddings"
    return w.linear("x", "embed", D, D)


def _mask(w: Writer, x: str) -> str:
    kind = w.variant.mask
    if kind == "none":
        return ""
    w.scope = "mask"
    rows = w.op("Unsqueeze", "mask", w.const([1, 2]))
    if kind == "legacy":
        off = w.op("Sub", w.number(1.0), w.op("Cast", rows, to=w.kind))
        return w.op("Mul", off, w.number(w.low))
    allowed = w.op("Cast", rows, to=TensorProto.BOOL)
    if kind == "pairs":
        one, n = w.const([1]), w.size(x, 1)
        allowed = w.op("Expand", allowed, w.op("Concat", one, one, n, one, axis=0))
    if kind == "causal":
        last = w.op("Squeeze", w.size(x, 1))
        at = w.op("Range", w.const(0), last, w.const(1))
        later = w.op("Unsqueeze", at, w.const([1]))
        allowed = w.op("And", allowed, w.op("GreaterOrEqual", later, at))
    if kind == "additive":
        return w.op("Where", allowed, w.number(0.0), w.number(w.low))
    return allowed


def _block(w: Writer, x: str, mask: str, layer: int) -> str:
    name, pre = f"layer.{layer}", w.variant.norm == "pre"
    if w.variant.extra == "positions":
        x = _positions(w, x, name)
    if w.variant.extra == "rows":
        w.weights["rows"] = w.weights.get(
            "rows", w.rng.standard_normal((w.variant.tokens, D)).astype(np.float32)
        )
        x = w.op("Add", x, "rows")
    if w.variant.extra == "patches":
        x = _patches(w, x)
    if w.variant.extra == "window" and layer == 2:
        x = _window(w, x)
    if w.variant.extra == "normalised" and layer == 2:
        x = _over_tokens(w, x)
    seen = w.norm(x, f"{name}.norm1") if pre else x
    attended = w.linear(_attention(w, seen, mask, name), f"{name}.out", D, D)
    x = w.op("Add", attended, x)
    if not pre:
        x = w.norm(x, f"{name}.norm1")
    seen = w.norm(x, f"{name}.norm2") if pre else x
    hidden = w.op("Relu", w.linear(seen, f"{name}.up", D, FFN))
    x = w.op("Add", w.linear(hidden, f"{name}.down", FFN, D), x)
    return x if pre else w.norm(x, f"{name}.norm2")


def _positions(w: Writer, x: str, name: str) -> str:
    at = w.op("Range", w.const(0), w.op("Squeeze", w.size(x, 1)), w.const(1))
    return w.op("Add", x, w.op("Gather", w.weight(f"{name}.places", PLACES, D), at, axis=0))


def _patches(w: Writer, x: str) -> str:
    """Something is added to all tokens but the first, as rotary embedding is to patches."""
    one, end = w.const([1]), w.const([2**63 - 1])
    n = w.variant.tokens
    rows = w.rng.standard_normal((1, n - 1, D)).astype(np.float32)
    first = w.op("Slice", x, w.const([0]), one, one)
    rest = w.op("Add", w.op("Slice", x, one, end, one), w.const(rows, np.float32))
    return w.op("Concat", first, rest, axis=1)


def _window(w: Writer, x: str) -> str:
    turned = w.op("Transpose", x, perm=[0, 2, 1])
    mixed = w.op("Conv", turned, w.weight("window", D, D, 3), pads=[1, 1])
    return w.op("Transpose", mixed, perm=[0, 2, 1])


def _over_tokens(w: Writer, x: str) -> str:
    turned = w.op("Transpose", x, perm=[0, 2, 1])
    gain = w.const(np.ones(w.variant.tokens), np.float32)
    return w.op("Transpose", w.op("LayerNormalization", turned, gain, axis=-1), perm=[0, 2, 1])


def _heads(w: Writer, x: str, name: str) -> str:
    return w.op("Reshape", x, w.target(x, H, DH), allowzero=int(w.variant.sizes == "shape"))


def _attention(w: Writer, x: str, mask: str, name: str) -> str:
    q, k, v = (_heads(w, w.linear(x, f"{name}.{part}", D, D), name) for part in "qkv")
    q, v = (w.op("Transpose", item, perm=[0, 2, 1, 3]) for item in (q, v))
    scope, w.scope = w.scope, f"{w.scope}.attention"
    if w.variant.extra == "rotary":
        k = w.op("Transpose", k, perm=[0, 2, 1, 3])
        q, k = _rotate(w, q), _rotate(w, k)
        k = w.op("Transpose", k, perm=[0, 2, 1, 3])
    w.names[f"keys.{name[-1]}"], w.names[f"values.{name[-1]}"] = k, v
    forms = {"fused": _fused, "microsoft": _microsoft, "decomposed": _scores, **WRITTEN}
    out = forms[w.variant.form](w, q, k, v, mask)
    out = w.op("Transpose", out, perm=[0, 2, 1, 3])
    out = w.op("Reshape", out, w.target(out, D))
    w.scope = scope
    return out


def _microsoft(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    """com.microsoft.MultiHeadAttention on (B, N, D), with an additive (B, 1, N, N) bias."""
    q, v = (w.op("Transpose", item, perm=[0, 2, 1, 3]) for item in (q, v))
    q, k, v = (w.op("Reshape", item, w.const([0, 0, D])) for item in (q, k, v))
    bias = []
    if mask:
        one = w.const([1])
        low = w.op("Where", mask, w.number(0.0), w.number(w.low))
        full = w.op("Concat", one, one, w.size(q, 1), one, axis=0)
        bias = ["", "", w.op("Expand", low, full)]
    inputs = [q, k, v, *bias]
    out = w.op("MultiHeadAttention", *inputs, domain="com.microsoft", num_heads=H)
    out = w.op("Reshape", out, w.const([0, 0, H, DH]))
    return w.op("Transpose", out, perm=[0, 2, 1, 3])


def _fused(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    k = w.op("Transpose", k, perm=[0, 2, 1, 3])
    if mask and w.variant.mask != "pairs":  # ONNX Runtime wants the query axis
        one = w.const([1])
        mask = w.op("Expand", mask, w.op("Concat", one, one, w.size(q, 2), one, axis=0))
    return w.op("Attention", *([q, k, v, mask] if mask else [q, k, v]))


def _rotate(w: Writer, x: str) -> str:
    """(B, H, N, Dh) with cos and sin (1, 1, N, Dh) computed in place from the size of x."""
    at = w.op("Range", w.const(0), w.op("Squeeze", w.size(x, 2)), w.const(1))
    angle = w.op(
        "Mul",
        w.op("Unsqueeze", w.op("Cast", at, to=w.kind), w.const([0, 1, 3])),
        w.const(np.tile(10.0 ** -np.arange(DH // 2), 2).reshape(1, 1, 1, DH), np.float32),
    )
    left = w.op("Slice", x, w.const([0]), w.const([DH // 2]), w.const([3]))
    right = w.op("Slice", x, w.const([DH // 2]), w.const([DH]), w.const([3]))
    turned = w.op("Concat", w.op("Neg", right), left, axis=-1)
    return w.op("Add", w.op("Mul", x, w.op("Cos", angle)), w.op("Mul", turned, w.op("Sin", angle)))


def _scores(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    kind, scale = w.variant.scale, 1 / np.sqrt(DH)
    if kind == "query":
        q = w.op("Mul", q, w.number(scale))
    kt = _turned_keys(w, k)
    if kind == "both":
        q, kt = (w.op("Mul", item, w.number(np.sqrt(scale))) for item in (q, kt))
    s = w.op("MatMul", q, kt)
    if kind == "after":
        s = w.op("Div", s, w.number(1 / scale))
    if w.variant.extra == "bias":
        n = w.variant.tokens
        bias = w.rng.standard_normal((1, H, n, n)).astype(np.float32)
        s = w.op("Add", s, w.const(bias, np.float32))
    s = w.masked(s, mask)
    p = w.op("Softmax", s, axis=-1)
    if w.variant.guard:
        p = w.op("Where", w.op("IsNaN", p), w.number(0.0), p)
    return w.op("MatMul", p, v)


def _turned_keys(w: Writer, k: str) -> str:
    """(B, N, H, Dh) -> (B, H, Dh, N)."""
    if w.variant.key == "direct":
        return w.op("Transpose", k, perm=[0, 2, 3, 1])
    k = w.op("Transpose", k, perm=[0, 2, 1, 3])
    if w.variant.key == "late":
        return w.op("Transpose", k, perm=[0, 1, 3, 2])
    b, n, h, d = w.size(k, 0), w.size(k, 2), w.const([H]), w.const([DH])
    flat = w.op("Reshape", k, w.op("Concat", w.const([-1]), n, d, axis=0))
    turned = w.op("Transpose", flat, perm=[0, 2, 1])
    return w.op("Reshape", turned, w.op("Concat", b, h, d, n, axis=0))


def _late(w: Writer, x: str) -> str:
    first = w.op("Concat", w.size(x, 0), w.const([1, D]), axis=0)
    joined = w.op("Concat", w.op("Expand", w.weight("late", 1, 1, D), first), x, axis=1)
    mean = w.op("ReduceMean", joined, w.const([1]), keepdims=0)
    return w.op("Add", mean, w.op("Gather", joined, w.const(0), axis=1))


def _flat(w: Writer, x: str) -> str:
    grid = w.op("Reshape", x, w.const([0, 4, w.variant.tokens // 4, D]))
    return w.op("ReduceMean", grid, w.const([1, 2]), keepdims=0)


_POOLS = {"late": _late, "flat": _flat}
_REDUCTIONS = {"mean": "ReduceMean", "max": "ReduceMax", "sum": "ReduceSum"}


def _pool(w: Writer, x: str) -> tuple[str, list[int | str]]:
    pool, one = w.variant.pool, w.const([1])
    if pool == "tokens":
        return x, ["batch", w.variant.tokens or "tokens", D]
    if pool in _POOLS:
        x = _POOLS[pool](w, x)
    elif pool in _REDUCTIONS:
        x = w.op(_REDUCTIONS[pool], x, one, keepdims=0)
    elif pool in ("class", "last"):
        x = w.op("Gather", x, w.const(0 if pool == "class" else -1), axis=1)
    elif pool == "rest":
        rest = w.op("Slice", x, one, w.const([2**63 - 1]), one)
        x = w.op("ReduceMean", rest, one, keepdims=0)
    elif pool == "mask":
        m = w.op("Cast", w.op("Unsqueeze", "mask", w.const([-1])), to=w.kind)
        total = w.op("ReduceSum", w.op("Mul", x, m), one, keepdims=0)
        x = w.op("Div", total, w.op("ReduceSum", m, one, keepdims=0))
    elif pool == "divided":
        n = w.op("Cast", w.size(x, 1), to=w.kind)
        x = w.op("Div", w.op("ReduceSum", x, one, keepdims=0), n)
    elif pool == "argmax_flat":
        last = w.op("ArgMax", w.op("ReduceSum", x, w.const([2]), keepdims=0), axis=1, keepdims=0)
        x = w.op("ReduceMax", w.op("Gather", x, last, axis=1), one, keepdims=0)
    elif pool == "argmax":
        x = w.op("GatherND", x, w.op("ArgMax", "ids", axis=1, keepdims=1), batch_dims=1)
    return w.linear(x, "head", D, OUT), ["batch", OUT]
