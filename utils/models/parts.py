"""Working on parts of a functional model: what trains, the head, batch statistics."""

import keras
import numpy as np

POOLED, CLASSIFIER = "pooled_features", "classifier"  # the names that every transfer model gives these two layers


def set_trainable(model, batch_norm=False):
    """Choose the layers that training may change: all, or all but batch normalization.

    Args:
        model: any functional model, changed in place. Compile it again afterwards.
        batch_norm: also let batch normalization learn and update its statistics. Off, these layers are frozen, which
            in Keras 3 also means that they run in inference mode during training.

    Returns:
        int, how many parameters are trainable now.

    Example:
        >>> from utils import models
        >>> model = models.transfer("efficientnet_lite0", 10, weights=None)
        >>> set_trainable(model), set_trainable(model, batch_norm=True)
        (3341802, 3383818)
    """
    model.trainable = True  # or a model that was frozen as a whole would hide what its layers say
    for layer in model.layers:
        layer.trainable = batch_norm or not isinstance(layer, keras.layers.BatchNormalization)
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def attach_head(model, kernel, bias):
    """Set the weights of the layer "classifier", e.g. to a linear probe fitted on the pooled features.

    Args:
        model: a model whose last layer is named "classifier", changed in place.
        kernel: (D, classes) floats, so that logits = features @ kernel + bias.
        bias: (classes,) floats.

    Returns:
        the model.

    Raises:
        ValueError: no such layer, or shapes that do not fit.

    Example:
        >>> from utils import models
        >>> model = models.transfer("mobilenet_v2", 2, 96, weights=None)
        >>> attach_head(model, np.zeros((1280, 2)), [0.0, np.log(3)])(np.zeros((1, 96, 96, 3))).numpy().round(2)
        array([[0.25, 0.75]], dtype=float32)
    """
    layer = model.get_layer(CLASSIFIER)
    arrays = [np.asarray(kernel, "float32"), np.asarray(bias, "float32")]
    wanted = [tuple(weight.shape) for weight in layer.weights]
    if [array.shape for array in arrays] != wanted:
        raise ValueError(
            f"expected a kernel of shape {wanted[0]} and a bias of shape {wanted[1]}, got {arrays[0].shape} and "
            f"{arrays[1].shape}; fit the probe on this model's features and classes"
        )
    layer.set_weights(arrays)
    return model


def set_weights(model, arrays):
    """Keras' `set_weights` on a layer or model, which then also normalizes by the statistics that it was given.

    Keras alone leaves a copied `Normalization` layer computing with those of before.
    """
    model.set_weights(arrays)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def reestimate_batch_norm(model, images, batch_size=64):
    """Set the statistics of every batch normalization to those of `images`; kernels, scales and offsets stay.

    Each layer sees its inputs normalized by the batch, and its moving mean and variance become the average over all
    batches (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2). Dropout is off meanwhile.

    Args:
        model: a functional model, changed in place; what is trainable stays as it was.
        images: array (n, height, width, 3) of training photos in 0..255; about 1,500 are plenty.
        batch_size: photos in a batch; batches are drawn in random order, so that no batch is of one class.

    Returns:
        the model.

    Raises:
        ValueError: fewer than two photos, or their shape is not the model's.

    Example:
        >>> from utils import models
        >>> model = models.transfer("efficientnet_b0", 10, 64, weights="warm_start")
        >>> photos = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype("uint8")
        >>> reestimate_batch_norm(model, photos, batch_size=4) is model
        True
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != model.input_shape[1:] or len(images) < 2:
        raise ValueError(
            f"model {model.name} needs at least two photos of shape {model.input_shape[1:]}, got {images.shape}"
        )
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    drops = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    trainable = [layer.trainable for layer in model.layers]
    momenta, rates = [norm.momentum for norm in norms], [drop.rate for drop in drops]
    batch_size = min(batch_size, len(images))
    order = np.random.default_rng(0).permutation(len(images))
    try:
        for norm in norms:  # one by one: `model.trainable = True` passes over layers that were made frozen
            norm.trainable = True
        for drop in drops:
            drop.rate = 0.0
        for number in range(len(order) // batch_size):
            for norm in norms:
                norm.momentum = number / (number + 1)  # the moving average of 1, 2, 3 ... batches is their mean
            batch = np.sort(order[number * batch_size : (number + 1) * batch_size])
            model(images[batch].astype("float32"), training=True)
    finally:
        for attribute, layers, values in (
            ("trainable", model.layers, trainable), ("momentum", norms, momenta), ("rate", drops, rates),
        ):  # fmt: skip
            for layer, value in zip(layers, values, strict=True):
                setattr(layer, attribute, value)
    return model
