"""Multilayer perceptrons of scikit-learn, converted by skl2onnx."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from tests.frameworks.converted import Converted, opened


def classifier(folder: Path) -> Converted:
    """Two hidden layers on handwritten digits; label and probabilities come out."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five rounds do not converge
        net = MLPClassifier((32, 24), max_iter=5, random_state=0).fit(images, labels)
    proto = to_onnx(net, images[:1], options={"zipmap": False})
    return opened(
        proto, folder, images[:16], [net.predict(images[:16]), net.predict_proba(images[:16])]
    )


def regressor(folder: Path) -> Converted:
    """A scaler before one hidden layer of tanh, as a pipeline."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    table = rng.normal(3.0, 2.0, (200, 7)).astype(np.float32)
    target = np.stack([table[:, 0] * table[:, 1], np.sin(table[:, 2])], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = make_pipeline(
            StandardScaler(),
            MLPRegressor(hidden_layer_sizes=(20,), activation="tanh", max_iter=20, random_state=0),
        ).fit(table, target)
    return opened(to_onnx(net, table[:1]), folder, table[:16], [net.predict(table[:16])])
