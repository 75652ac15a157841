"""Keras networks, converted by tf2onnx: images stay (B, H, W, C) at both ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from tests.frameworks.converted import Converted, opened


def convnet(folder: Path) -> Converted:
    """Batch norm, a depthwise branch around a sum, a stride, pooling."""
    keras = _keras()
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(images)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    branch = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, layers.Conv2D(8, 1)(branch)])
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(16, 3, activation="swish")(x)
    logits = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return _converted(keras.Model(images, logits), (None, 16, 16, 3), folder)


def autoencoder(folder: Path) -> Converted:
    """Transposed convolutions, upsampling and a joined skip connection, images out."""
    keras = _keras()
    layers = keras.layers
    images = keras.Input((8, 8, 2))
    skip = layers.Conv2D(6, 3, padding="same", activation="relu")(images)
    x = layers.Conv2D(10, 3, strides=2, padding="same", activation="relu")(skip)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="elu")(x)
    x = layers.Concatenate()([x, skip])
    x = layers.Conv2D(7, 3, padding="same", activation="tanh")(layers.UpSampling2D()(x))
    return _converted(
        keras.Model(images, layers.Conv2D(2, 3, padding="same")(x)), (None, 8, 8, 2), folder
    )


def transformer(folder: Path) -> Converted:
    """One block: attention of four heads (Einsum in Keras) and a feed-forward part."""
    keras = _keras()
    layers = keras.layers
    tokens = keras.Input((None, 24))
    y = layers.LayerNormalization()(tokens)
    x = layers.Add()([tokens, layers.MultiHeadAttention(4, 6)(y, y)])
    y = layers.Dense(48)(layers.LayerNormalization()(x))
    y = layers.Activation(lambda z: keras.activations.gelu(z, approximate=True))(y)
    x = layers.Add()([x, layers.Dense(24)(y)])
    logits = layers.Dense(5)(layers.GlobalAveragePooling1D()(x))
    return _converted(keras.Model(tokens, logits), (None, None, 24), folder)


def _keras() -> Any:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras

    keras.utils.set_random_seed(0)
    return keras


def _converted(net: Any, shape: tuple[int | None, ...], folder: Path) -> Converted:
    import tensorflow as tf
    import tf2onnx

    rng = np.random.default_rng(0)
    # biases of 0 and scales of 1 would hide a cut in the wrong place; variances stay positive
    net.set_weights([np.abs(w + 0.1 * rng.normal(size=w.shape)) if _is_scale(w) else
                     w + 0.1 * rng.normal(size=w.shape) for w in net.get_weights()])  # fmt: skip
    signature = [tf.TensorSpec(shape, tf.float32, name="inputs")]
    function = tf.function(lambda inputs: net(inputs, training=False), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
    feed = rng.normal(size=[d or 7 for d in shape]).astype(np.float32)
    return opened(proto, folder, feed, [np.asarray(net(feed, training=False))])


def _is_scale(weight: np.ndarray) -> bool:
    return weight.ndim == 1 and bool(np.all(weight == 1))
