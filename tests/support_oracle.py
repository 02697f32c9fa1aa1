"""The independent oracle for receptive fields: with positive weights and no nonlinearity, the gradient of a feature is
non-zero exactly at the pixels that it can see."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def positive_linear(model):
    """A float64 copy of a model with positive weights, linear activations and average instead of maximum pooling."""

    def linear(layer):
        config = layer.get_config()
        config["dtype"] = "float64"
        if isinstance(layer, layers.ReLU | layers.Activation):
            return layers.Activation("linear", name=layer.name, dtype="float64")
        if isinstance(layer, layers.MaxPooling2D):
            return layers.AveragePooling2D.from_config(config)
        if "activation" in config:
            config["activation"] = "linear"
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=linear)
    for layer in copy.layers:
        # Averages, so that the numbers stay in range through any depth; variances stay 1, means 0.
        for variable in layer.trainable_variables:
            if "kernel" in variable.name:
                variable.assign(np.full(variable.shape, 1 / np.prod(variable.shape[:-1])))
    return copy


def positive_weights(model):
    """The model itself with all weights positive: every path that there is carries a gradient."""
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, 1 / np.prod(variable.shape[:-1])))
    return model


def support(model, feature, layer=None, dtype="float64", size=None):
    """Box (start, stop) of the pixels with a non-zero gradient for one feature of a model's layer, or None."""
    head = model if layer is None else keras.Model(model.inputs, model.get_layer(layer).output)
    shape = (1, *(model.inputs[0].shape[1:] if size is None else (*size, 3)))
    image = tf.ones(shape, dtype) if dtype == "float64" else tf.random.stateless_uniform(shape, (1, 2), 0.5, 1.5)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(image)
        value = tf.reduce_sum(head(image, training=False)[(0, *feature)])
    gradient = tape.gradient(value, image)
    if gradient is None:
        return None
    seen = np.abs(gradient.numpy()[0]).sum(-1) > 0
    if not seen.any():
        return None
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return (rows[0], columns[0]), (rows[-1] + 1, columns[-1] + 1)
