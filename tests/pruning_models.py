"""Small networks and batches for the tests of pruning."""

import keras
import numpy as np

L = keras.layers


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)), L.Conv2D(8, 3, padding="same", name="stem"), L.BatchNormalization(name="stem_bn"),
            L.Conv2D(16, 1, name="expand"), L.ReLU(), L.DepthwiseConv2D(3, padding="same", name="depthwise"),
            L.Conv2D(8, 1, name="project"), L.GlobalAveragePooling2D(), L.Dense(3, activation="softmax", name="top"),
        ]
    )  # fmt: skip


def batches_of_noise():
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(6, 8, 8, 3)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, 6)])
        for _ in range(4)
    ]


def zeros(model, name):
    return int((np.asarray(model.get_layer(name).kernel) == 0).sum())


def inverted_residuals(squeeze_excite=False, seed=0):
    """Two blocks of 24 expansion channels on a residual stream of 8, the second with a residual sum."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((16, 16, 3))
    x = stream = L.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    for name in ("a", "b"):
        x = L.Conv2D(24, 1, use_bias=False, name=f"{name}_expand")(x)
        x = L.BatchNormalization(name=f"{name}_expand_bn")(x)
        x = L.ReLU(6.0)(x)
        x = L.ZeroPadding2D(1)(x)
        x = L.DepthwiseConv2D(3, name=f"{name}_depthwise")(x)
        x = L.BatchNormalization(name=f"{name}_bn")(x)
        x = gated = L.Activation("swish")(x)
        if squeeze_excite:
            x = L.GlobalAveragePooling2D()(x)
            x = L.Reshape((1, 1, 24), name=f"{name}_reshape")(x)
            x = L.Conv2D(4, 1, activation="swish", name=f"{name}_reduce")(x)
            x = L.Conv2D(24, 1, activation="sigmoid", name=f"{name}_gate")(x)
            x = L.Multiply()([gated, x])
        x = L.Conv2D(8, 1, name=f"{name}_project")(x)
        if name == "b":
            x = L.Add()([x, stream])
        stream = x
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(image, L.Dense(3, activation="softmax", name="top")(x), name="small")
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):  # as after training: nothing is at its default
            layer.set_weights([rng.uniform(0.5, 1.5, array.shape) for array in layer.get_weights()])
    return model
