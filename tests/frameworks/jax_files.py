"""Functions in plain JAX, converted by jax2onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.frameworks.converted import Converted, opened


def perceptron(folder: Path) -> Converted:
    """Two hidden layers of tanh."""
    import jax.numpy as jnp

    draw = _weights()
    layers = [(draw(a, b), draw(b)) for a, b in ((6, 20), (20, 16), (16, 4))]

    def net(x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jnp.tanh(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    return _converted(net, ("B", 6), folder)


def convnet(folder: Path) -> Converted:
    """Images (B, H, W, C), kernels (h, w, I, O): a depthwise branch, a stride, gates."""
    import jax

    draw = _weights()
    stem, depthwise, pointwise = draw(3, 3, 3, 8), draw(3, 3, 1, 8), draw(1, 1, 8, 8)
    wide, gate, head = draw(3, 3, 8, 12), draw(12, 12), draw(12, 5)

    def conv(x: Any, kernel: Any, stride: int = 1, groups: int = 1) -> Any:
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, "SAME", dimension_numbers=names, feature_group_count=groups
        )

    def net(x: Any) -> Any:
        x = jax.nn.relu(conv(x, stem))
        x = x + conv(conv(x, depthwise, groups=8), pointwise)
        x = jax.nn.silu(conv(x, wide, 2))
        pooled = x.mean((1, 2))
        return (pooled * jax.nn.sigmoid(pooled @ gate)) @ head

    return _converted(net, ("B", 16, 16, 3), folder)


def transformer(folder: Path) -> Converted:
    """One block with einsum attention over separate head axes, and RMS norms."""
    import jax
    import jax.numpy as jnp

    draw = _weights()
    query, key, value, out = draw(24, 4, 6), draw(24, 4, 6), draw(24, 4, 6), draw(4, 6, 24)
    up, bias, down, scale, head = draw(24, 48), draw(48), draw(48, 24), draw(24), draw(24, 5)

    def norm(x: Any) -> Any:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def net(x: Any) -> Any:
        y = norm(x)
        q, k, v = (jnp.einsum("bne,ehd->bnhd", y, w) for w in (query, key, value))
        scores = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / 6**0.5, -1)
        x = x + jnp.einsum("bnhd,hde->bne", jnp.einsum("bhnm,bmhd->bnhd", scores, v), out)
        x = x + jax.nn.gelu(norm(x) @ up + bias) @ down
        return x.mean(1) @ head

    return _converted(net, ("B", 10, 24), folder)


def _weights() -> Callable[..., Any]:
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)


def _converted(net: Callable[[Any], Any], shape: tuple[Any, ...], folder: Path) -> Converted:
    from jax2onnx import to_onnx

    feed = np.random.default_rng(1).normal(size=(3, *shape[1:])).astype(np.float32)
    return opened(to_onnx(net, [shape]), folder, feed, [np.asarray(net(feed))])
