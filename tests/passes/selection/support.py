"""Selectors as small graphs, insertion with the checks every result must pass, comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from tests.passes.selection.models import D, H, Variant, write
from tests.passes.selection.reference import (
    Arrays,
    choose,
    class_row,
    dense,
    positions,
    relative_error,
    run,
)
from tests.passes.selection.written import WRITTEN

from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import Selection, insert_selections

DEFAULT = Budget()
TOLERANCE = 1e-5  # relative, float32

_BODIES = {
    "class_row": "score = Identity(class_row)",
    "column_mean": "score = Identity(column_mean)",
    "keys": "a = Constant<value_ints=[3]>() n = ReduceL2<keepdims=0>(keys, a)"
    " b = Constant<value_ints=[1]>() score = ReduceMean<keepdims=0>(n, b)",
    "values": "a = Constant<value_ints=[3]>() n = ReduceL2<keepdims=0>(values, a)"
    " b = Constant<value_ints=[1]>() score = ReduceMean<keepdims=0>(n, b)",
    "hidden": "a = Constant<value_ints=[2]>() score = ReduceL2<keepdims=0>(hidden, a)",
    "valid": "score = Cast<to=1>(valid)",
}
_TYPES = {
    "keys": "float[batch,H,tokens,Dh]",
    "values": "float[batch,H,tokens,Dh]",
    "hidden": "float[batch,tokens,D]",
    "valid": "bool[batch,tokens]",
}


def selector(signal: str) -> ir.Model:
    kind = _TYPES.get(signal, "float[batch,tokens]")
    return ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : 18]> {signal}_selector ({kind} {signal})'
        f" => (float[batch,tokens] score) {{ {_BODIES[signal]} }}"
    )


def site(layer: int) -> str:
    return f"encoder.layer.{layer}"


def selections(
    layers: tuple[int, ...], signal: str = "class_row", budget: Budget = DEFAULT, **more: object
) -> tuple[Selection, ...]:
    options = {"expose_kept": True} | more
    return tuple(Selection(site(at), selector(signal), budget, **options) for at in layers)


def insert(
    model: onnx.ModelProto, chosen: tuple[Selection, ...], outputs: str = "zero"
) -> onnx.ModelProto:
    """Insert, and hold the result to the checker with strict shape inference."""
    made = insert_selections(ir.from_proto(model), chosen, outputs=outputs)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def feeds(variant: Variant, lengths: tuple[int, ...], seed: int = 0) -> Arrays:
    """Random hidden states; samples are padded on the right to the longest."""
    rng = np.random.default_rng(seed)
    n = variant.tokens or max(lengths)
    kind = np.float16 if variant.half else np.float32
    made = {"x": rng.standard_normal((len(lengths), n, D)).astype(kind)}
    if variant.mask != "none" or variant.pool == "mask":
        made["mask"] = (np.arange(n) < np.array(lengths)[:, None]).astype(np.int64)
    return made


def amounts(layers: tuple[int, ...], values: tuple[int, ...], unit: str = "permille") -> Arrays:
    return {
        f"{site(layer)}.{unit}": np.array([value])
        for layer, value in zip(layers, values, strict=True)
    }


@dataclass
class Expected:
    """What the masked dense graph says."""

    y: np.ndarray
    kept: list[np.ndarray]
    scores: list[np.ndarray]


def expect(
    variant: Variant,
    layers: tuple[int, ...],
    fed: Arrays,
    *,
    signal: str = "class_row",
    permille: tuple[int, ...] = (),
    counts: tuple[int, ...] = (),
    protected: int = 1,
) -> Expected:
    """Run the dense graph, select in NumPy, mask, and run again: once per site."""
    is_written = variant.form in WRITTEN
    model, names = write(variant if is_written else replace(variant, form="decomposed"))
    folded = H if variant.form == "folded" else 0
    watch = [f"{signal}.{at}" for at in layers if f"{signal}.{at}" in names]
    last = names[f"hidden.{variant.layers - 1}"]
    mixed = {names[key]: int(key[-1]) for key in names if key.startswith("weights.")}
    watched = (*(names[name] for name in watch), *mixed, last)
    twin = dense(model, list(layers), watch=watched, mixed=mixed)
    alive = fed["mask"].astype(bool) if "mask" in fed else np.ones(fed["x"].shape[:2], bool)
    gone = [np.zeros_like(alive)] * len(layers)
    kept, scores = [], []
    for i, at in enumerate(layers):
        seen = twin.run(fed, gone, folded)
        weights = names.get(f"weights.{at}", twin.probabilities[at])
        score = _score(signal, seen, names.get(f"{signal}.{at}", ""), weights, alive)
        alive = choose(
            score,
            alive,
            permille=permille[i] if permille else 1000,
            count=counts[i] if counts else 0,
            protected=protected,
        )
        kept.append(alive)
        scores.append(score)
        gone = [~kept[min(j, i)] for j in range(len(layers))]
    hidden = twin.run(fed, gone, folded)[last]
    return Expected(_head(variant, model, hidden, alive), kept, scores)


def _score(
    signal: str, seen: Arrays, name: str, probabilities: str, alive: np.ndarray
) -> np.ndarray:
    if signal == "class_row":
        return class_row(seen[probabilities])
    if signal == "column_mean":
        share = alive / alive.sum(axis=1, keepdims=True)
        return np.einsum("bi,bhij->bj", share, seen[probabilities]) / seen[probabilities].shape[1]
    norms = np.linalg.norm(seen[name], axis=-1)
    if norms.ndim == 2:
        return norms
    return norms.mean(axis=2 if signal == "keys" else 1)


def _head(
    variant: Variant, model: onnx.ModelProto, hidden: np.ndarray, alive: np.ndarray
) -> np.ndarray:
    if variant.pool == "tokens":
        return np.where(alive[:, :, None], hidden, 0)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    if variant.pool == "class":
        pooled = hidden[:, 0]
    elif variant.pool == "late":
        first = weights["late"][0]
        means = [
            np.concatenate([first, h[a]]).mean(axis=0) for h, a in zip(hidden, alive, strict=True)
        ]
        pooled = np.stack(means) + first
    else:
        counted = alive.copy()
        counted[:, 0] &= variant.pool != "rest"
        fold = {"max": np.max, "sum": np.sum}.get(variant.pool, np.mean)
        pairs = zip(hidden, counted, strict=True)
        pooled = np.stack([fold(rows[which], axis=0) for rows, which in pairs])
    return pooled @ weights["head.weight"] + weights["head.bias"]


def assert_selects_like(got: Arrays, want: Expected, layers: tuple[int, ...]) -> None:
    for at, kept in zip(layers, want.kept, strict=True):
        np.testing.assert_array_equal(got[f"{site(at)}.kept"], positions(kept))
    assert relative_error(got["y"], want.y) < TOLERANCE


def check(
    variant: Variant,
    layers: tuple[int, ...],
    lengths: tuple[int, ...],
    *,
    signal: str = "class_row",
    permille: tuple[int, ...],
) -> onnx.ModelProto:
    """The whole comparison with optimisation off and on; returns the selecting model."""
    model = insert(write(variant)[0], selections(layers, signal))
    fed = feeds(variant, lengths)
    want = expect(variant, layers, fed, signal=signal, permille=permille)
    for optimised in (False, True):
        got = run(model, fed | amounts(layers, permille), optimised=optimised)
        assert_selects_like(got, want, layers)
    return model
