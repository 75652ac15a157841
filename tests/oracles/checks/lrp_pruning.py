"""Pruning by explaining: z-plus relevance of every layer and of the filters, and on a graph."""

from __future__ import annotations

import numpy as np
from tests.laws.small_models import network

from secateur.calibration.importance.relevance import (
    _correlate,
    convolution,
    filter_scores,
    linear,
    max_pooling,
)
from secateur.calibration.importance.relevance_walk import relevance_at

LEFT_OUT = {"case3": "the gradient baseline, which needs autograd and is not relevance"}

_NET = (
    ("conv", "features.0"),
    ("relu", ""),
    ("conv", "features.2"),
    ("relu", ""),
    ("pool", ""),
    ("conv", "features.5"),
    ("relu", ""),
    ("pool", ""),
    ("flat", ""),
    ("fc", "classifier.0"),
    ("relu", ""),
    ("fc", "classifier.2"),
)


def check(case) -> None:
    arrays = case.arrays
    assert case.text("method") == "lrp"
    if "linear_rule_input" in arrays:
        inputs = arrays["linear_rule_input"].astype(np.float64)
        rule = linear(inputs, arrays["param__classifier.0.weight"], arrays["rule_R_in"])
        np.testing.assert_allclose(rule, arrays["linear_rule_z"], rtol=1e-3, atol=1e-5)
    totals = [np.zeros(n) for n in arrays["channels"]]
    for batch in ("0", "1"):
        steps, scores = _walk(case, arrays[f"x{batch}"], arrays[f"label{batch}"])
        totals = [a + b for a, b in zip(totals, scores, strict=True)]
        if batch == "0":
            _check_steps(arrays, steps)
    on_graph = _on_a_graph(arrays)
    for k, total in enumerate(totals):
        np.testing.assert_allclose(on_graph[k], arrays[f"raw_score_conv{k}"], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(total, arrays[f"raw_score_conv{k}"], rtol=2e-3, atol=1e-4)
        share = total / total.sum()
        np.testing.assert_allclose(share, arrays[f"norm_score_conv{k}"], rtol=2e-3, atol=1e-5)


def _on_a_graph(arrays) -> list[np.ndarray]:
    """Relevance at the convolutions of the network in ONNX, over both batches."""
    weights, lines, before, convolutions = {}, [], "x", []
    for i, (kind, name) in enumerate(_NET):
        value = f"v{i}"
        if kind in {"conv", "fc"}:
            weights |= {
                f"w{i}": arrays[f"param__{name}.weight"],
                f"b{i}": arrays[f"param__{name}.bias"],
            }
        if kind == "conv":
            pad = weights[f"w{i}"].shape[-1] // 2
            lines.append(
                f"{value} = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> ({before}, w{i}, b{i})"
            )
            convolutions.append((value, 1))
        else:
            form = {
                "relu": "Relu ({0})",
                "pool": "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> ({0})",
                "flat": "Flatten ({0})",
                "fc": f"Gemm <transB = 1> ({{0}}, w{i}, b{i})",
            }[kind]
            lines.append(f"{value} = {form.format(before)}")
        before = value
    _, channels, height, width = arrays["x0"].shape
    classes = len(weights[f"b{len(_NET) - 1}"])
    text = (
        f"net (float[batch, {channels}, {height}, {width}] x) => (float[batch, {classes}] {before})"
        " {\n" + "\n".join(lines) + "\n}"
    )
    data = [{"x": arrays[f"x{batch}"].astype(np.float32)} for batch in "01"]
    labels = np.concatenate([arrays["label0"], arrays["label1"]]).astype(np.int64)
    sums = relevance_at(network(text, {}, weights), convolutions, data, labels)
    return list(sums.values())


def _check_steps(arrays, steps) -> None:
    for j, relevance in enumerate(steps):
        want = arrays.get(f"relevance_step{j}")
        if want is not None:
            np.testing.assert_allclose(relevance[:2], want, rtol=2e-3, atol=1e-4)


def _walk(case, images, labels):
    """Forward, then back: relevance after each module, and a score per filter."""
    seen, x = [], images.astype(np.float64)
    for kind, name in _NET:
        seen.append(x)
        x = _forward(case, kind, name, x)
    relevance = np.eye(x.shape[1])[labels]
    steps, scores = [], []
    for (kind, name), before in zip(reversed(_NET), reversed(seen), strict=True):
        if kind == "conv":
            scores.insert(0, filter_scores(relevance))
        relevance = _back(case, kind, name, (before, relevance))
        if kind != "flat":
            steps.append(relevance)
        elif steps:
            steps[-1] = relevance.reshape(len(relevance), -1)
    return steps, scores


def _forward(case, kind, name, x):
    if kind in {"conv", "fc"}:
        weight = case.arrays[f"param__{name}.weight"].astype(np.float64)
        bias = case.arrays[f"param__{name}.bias"]
        if kind == "fc":
            return x @ weight.T + bias
        return _correlate(x, weight) + bias[:, None, None]
    if kind == "pool":
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    return x.reshape(len(x), -1) if kind == "flat" else np.maximum(x, 0)


def _back(case, kind, name, state):
    before, relevance = state
    if kind in {"conv", "fc"}:
        rule = convolution if kind == "conv" else linear
        return rule(before, case.arrays[f"param__{name}.weight"], relevance)
    if kind == "pool":
        return max_pooling(before, 2, relevance)
    return relevance.reshape(before.shape) if kind == "flat" else relevance
