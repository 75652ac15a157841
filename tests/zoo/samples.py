"""Random inputs that a model accepts, made from one example of each of its inputs."""

from __future__ import annotations

import numpy as np


def random_like(example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw an input set of the same names, shapes and dtypes.

    Floats are normal. Integers are drawn from the values of the example, so they stay
    valid indices. A matrix of ones is a padding mask: its rows get a random tail of zeros.
    """
    return {name: _random_array(array, rng) for name, array in example.items()}


def _random_array(example: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if example.dtype.kind == "f":
        return rng.standard_normal(example.shape).astype(example.dtype)
    if example.ndim == 2 and np.all(example == 1):
        length = example.shape[1]
        valid = rng.integers(length // 2 + 1, length + 1, size=(example.shape[0], 1))
        return (np.arange(length) < valid).astype(example.dtype)
    return rng.choice(example.ravel(), size=example.shape)
