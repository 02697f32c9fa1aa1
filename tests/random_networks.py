"""Random networks of what the oracles count right: convolutions, depthwise ones, gates, skips, pools."""

import keras
import numpy as np
from hypothesis import strategies as st

L = keras.layers


@st.composite
def networks(draw, quantizable=False, grouped=True):
    """(model, random generator); `quantizable` for photos, `grouped` convolutions where the oracle knows them."""
    side, channels = draw(st.integers(8, 16)), 3 if quantizable else draw(st.integers(1, 4))
    image = x = keras.Input((side, side + draw(st.integers(0, 3)), channels))
    kinds = ["conv", "depthwise", "residual", "gate", "norm"]
    kinds += [] if quantizable else ["valid", "separable", "pool", *(["group"] if grouped else [])]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(kinds))
        kernel, strides = draw(st.integers(1, 3)), draw(st.integers(1, 2)) if min(x.shape[1:3]) > 4 else 1
        filters = draw(st.integers(1, 6))
        if kind == "conv":
            x = L.Conv2D(filters, kernel, strides=strides, padding="same", activation="relu")(x)
        elif kind == "valid":
            x = L.Conv2D(filters, (1, min(kernel, x.shape[2])), strides=strides)(x)
        elif kind == "depthwise":
            x = L.DepthwiseConv2D(3, strides=strides, padding="same", depth_multiplier=1 + (filters > 4))(x)
        elif kind == "separable":
            x = L.SeparableConv2D(filters, 3, padding="same")(x)
        elif kind == "residual":
            x = L.Add()([x, L.Conv2D(x.shape[-1], kernel, padding="same")(x)])
        elif kind == "group":
            x = L.Conv2D(2 * x.shape[-1], kernel, groups=x.shape[-1], padding="same")(x)
        elif kind == "pool":
            x = L.AveragePooling2D(2, padding="same")(x)
        elif kind == "norm":
            x = L.ReLU(6.0)(L.BatchNormalization()(x))
        else:
            pooled = L.GlobalAveragePooling2D(keepdims=True)(x)
            x = L.Multiply()([x, L.Conv2D(x.shape[-1], 1, activation="sigmoid")(pooled)])
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(image, L.Dense(draw(st.integers(2, 6)), activation="softmax")(x))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    model.set_weights([rng.uniform(0.1, 0.6, w.shape) * rng.choice([1, 1, -1], w.shape) if w.ndim > 1 else
                       rng.uniform(0.2, 1, w.shape) for w in model.get_weights()])  # fmt: skip
    return model, rng


def macs_by_size(model):
    """Every kernel is used once a position of the layer's output (a depthwise one has no second axis to sum over)."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, L.DepthwiseConv2D | L.Conv2D | L.SeparableConv2D | L.Dense):
            kernels = [weight for weight in layer.weights if "kernel" in weight.name]
            total += int(np.prod(layer.output.shape[1:3] if len(layer.output.shape) == 4 else 1)) * sum(
                int(np.prod(kernel.shape)) for kernel in kernels
            )
    return total
