"""A small MobileNet-like classifier and its files, built once for the tests of quantization."""

import functools

import keras
import numpy as np

from utils import quantization

SIZE, CLASSES = 32, ("boot", "coat", "gown", "sock")


@functools.cache
def network():
    """Expansion, depthwise, projection, a residual: every operator of the real backbones; batch norms with a past."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocess")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = short = layers.ReLU(6.0, name="stem_relu")(x)
    for block in ("a", "b"):
        x = layers.Conv2D(24, 1, use_bias=False, name=f"{block}_expand")(x)
        x = layers.ReLU(6.0, name=f"{block}_expand_relu")(layers.BatchNormalization(name=f"{block}_expand_bn")(x))
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{block}_dwconv")(x)
        x = layers.ReLU(6.0, name=f"{block}_relu")(layers.BatchNormalization(name=f"{block}_bn")(x))
        x = layers.Conv2D(8, 1, use_bias=False, name=f"{block}_project")(x)
        x = layers.BatchNormalization(name=f"{block}_project_bn")(x)
        x = short = layers.Add(name=f"{block}_add")([x, short])
    x = layers.GlobalAveragePooling2D(name="pooled_features")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    model = keras.Model(image, layers.Dense(len(CLASSES), activation="softmax", name="classifier")(x), name="small")
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            n = layer.gamma.shape[0]
            gamma, beta = random.uniform(0.5, 1.5, n), random.normal(0, 0.3, n)
            layer.set_weights([gamma, beta, random.normal(0, 0.2, n), random.uniform(0.3, 2, n)])
    pooled = keras.Model(image, model.get_layer("pooled_features").output).predict(photos(), verbose=0)
    logits = (pooled - pooled.mean(0)) @ (
        kernel := random.normal(size=(8, 4))
    )  # answers that differ from photo to photo
    kernel = 0.6 * kernel / logits.std(0)
    model.get_layer("classifier").set_weights([kernel, -pooled.mean(0) @ kernel])
    return model


@functools.cache
def photos(count=24, seed=1):
    """Smooth coloured blobs: neighbouring pixels resemble each other, as they do in photos."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.repeat(np.repeat(coarse, SIZE // 4, 1), SIZE // 4, 2)


@functools.cache
def files():
    """name -> bytes of the network in every scheme."""
    return quantization.convert_all(network(), representative=photos())


def plain_loop(content, images):
    """The interpreter without this project's wrapper: set, invoke, get; quantized by the specification's formula."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in images:
        values = image[None].astype(np.float64)
        if source["dtype"] != np.float32:
            scale, zero = source["quantization"]
            limits = np.iinfo(source["dtype"])
            values = np.clip(np.round(values / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(source["index"], values.astype(source["dtype"]))
        interpreter.invoke()
        row = interpreter.get_tensor(target["index"])[0].astype(np.float64)
        if target["dtype"] != np.float32:
            scale, zero = target["quantization"]
            row = (row - zero) * scale
        rows.append(row)
    return np.array(rows)
