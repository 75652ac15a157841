"""Pruning by explaining: z-plus relevance of every layer and of the filters."""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.relevance import (
    _correlate,
    convolution,
    filter_scores,
    linear,
    max_pooling,
)

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
    for k, total in enumerate(totals):
        np.testing.assert_allclose(total, arrays[f"raw_score_conv{k}"], rtol=2e-3, atol=1e-4)
        share = total / total.sum()
        np.testing.assert_allclose(share, arrays[f"norm_score_conv{k}"], rtol=2e-3, atol=1e-5)


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
