"""Grad-CAM: which part of a photo spoke for a class, for any flat Keras 3 model with a graph on TensorFlow.

heat = ReLU( sum over channels k of alpha_k * A_k ), alpha_k = mean over (y, x) of d score / d A_k, where A are the
activations of the last convolution and the score is the class's logit.
"""

import dataclasses

import numpy as np

from utils.layer_calls import keras_graph

LAYER = "pooled_features"


@dataclasses.dataclass(frozen=True, eq=False)
class GradCam:
    """Heat over n photos; made by :func:`gradcam`.

    Attributes:
        images: (n, s, s, 3) uint8, as the model saw them.
        heat: (n, s, s) float32, 0..1, each photo scaled by its own maximum (all 0 where nothing spoke for the class).
        class_index: (n,) int, which class was explained; probability: (n,) float, what the model gave it.
        captions: n strings for the figure, from the frame or from the probabilities.
        layer: name of the layer whose map was weighted; grid: (y, x) of that map, the real resolution of the heat.
    """

    images: np.ndarray
    heat: np.ndarray
    class_index: np.ndarray
    probability: np.ndarray
    captions: tuple
    layer: str
    grid: tuple

    def __repr__(self):
        y, x = self.grid
        return f"Grad-CAM of {len(self.images)} photos at layer {self.layer}, a map of {y} x {x}"


def gradcam(model, photos, class_index=None, layer=None):
    """Grad-CAM of a few photos, all at once.

    Args:
        model: functional or Sequential keras.Model from (n, s, s, 3) in 0..255 to probabilities (n, C).
        photos: DataFrame with `path` (with `true` and `predicted`, as worst_mistakes gives it, for captions), or an
            array (n, s, s, 3) in 0..255 at the model's input size.
        class_index: class to explain: one number, or n of them; None: what the model predicts for each photo.
        layer: name of the layer to look at; None: the map that goes into `pooled_features` or the last global pooling,
            else the last layer whose output is a map.

    Returns:
        GradCam.

    Raises:
        ValueError: a model without a graph or with several outputs, no photos, wrong shape, a class or layer that the
            model does not have, or a layer without a map.
        RuntimeError: the class does not depend on that layer.

    Example:
        >>> import keras
        >>> image = keras.Input((32, 32, 3))
        >>> maps = keras.layers.Conv2D(4, 3, strides=4, activation="relu")(image)
        >>> pooled = keras.layers.GlobalAveragePooling2D(name="pooled_features")(maps)
        >>> model = keras.Model(image, keras.layers.Dense(2, activation="softmax")(pooled))
        >>> gradcam(model, np.full((3, 32, 32, 3), 127)).heat.shape
        (3, 32, 32)

    Source: Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391.
    """
    import keras
    import tensorflow as tf

    from utils.datasets import pipeline

    inputs, outputs = getattr(model, "inputs", None) or (), getattr(model, "outputs", None) or ()
    if len(inputs) != 1 or len(outputs) != 1 or keras_graph.graph_of(model) is None:
        raise ValueError(
            f"expected a functional or built Sequential model of one input and one output, got {type(model).__name__} "
            f"of {len(inputs)} and {len(outputs)}; name them in keras.Model(inputs, outputs)"
        )
    frame = photos if hasattr(photos, "columns") else None
    if frame is not None and len(frame):
        photos = pipeline.load_images(frame, inputs[0].shape[1])
    photos = np.asarray(photos)
    if photos.ndim != 4 or len(photos) == 0 or photos.shape[-1] != 3:
        raise ValueError(f"expected at least one photo, (n, height, width, 3), got shape {photos.shape}")
    name, maps = _map_tensor(model, layer)
    inner, kernel = _logits(outputs[0])
    watched = keras.Model(inputs, [maps, inner, outputs[0]])
    wanted, classes = class_index, outputs[0].shape[-1]
    if class_index is not None:
        wanted = np.asarray(class_index)
        whole = wanted.dtype.kind in "iu" and wanted.shape in ((), (len(photos),))
        if not whole or ((wanted < 0) | (wanted >= classes)).any():
            raise ValueError(
                f"class_index must lie between 0 and {classes - 1}, one number or one for each of the {len(photos)} "
                f"photos, got {class_index}"
            )
        wanted = np.broadcast_to(wanted, len(photos))

    batch = tf.convert_to_tensor(photos.astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(batch)  # a map in front of the first weight would not be recorded
        found, features, probabilities = watched(batch, training=False)
        # The logit, not the probability: softmax is flat where the model is sure, and its gradient vanishes.
        scores = features if kernel is None else tf.linalg.matmul(tf.cast(features, kernel.dtype), kernel)
        probabilities = probabilities.numpy()
        chosen = probabilities.argmax(-1) if wanted is None else wanted
        score = tf.reduce_sum(tf.gather(scores, chosen, axis=1, batch_dims=1))
    slope = tape.gradient(score, found)
    if slope is None:
        raise RuntimeError(f"the output does not depend on layer {name!r}; name one on the way to the output")
    alpha = tf.reduce_mean(slope, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(alpha * found, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, photos.shape[1:3], method="bilinear")[..., 0].numpy()
    top = heat.max(axis=(1, 2), keepdims=True)
    given = probabilities[np.arange(len(chosen)), chosen]
    return GradCam(
        images=np.clip(np.rint(photos), 0, 255).astype(np.uint8),
        heat=np.divide(heat, top, out=np.zeros_like(heat), where=top > 0),
        class_index=chosen,
        probability=given,
        captions=tuple(_captions(frame, chosen, given)),
        layer=name,
        grid=tuple(int(side) for side in found.shape[1:3]),
    )


def _map_tensor(model, layer):
    """(layer name, symbolic map) to weight."""
    import keras

    names = [item.name for item in model.layers]
    if layer is not None and layer not in names:
        raise ValueError(f"the model has no layer {layer!r}; its last ones are {', '.join(names[-5:])}")
    pools = [item.name for item in model.layers if isinstance(item, keras.layers.GlobalAveragePooling2D)]
    # A layer may have calls in other models too, and what a nested model calls its output is none of this graph.
    calls = {node.operation.name: node for node in keras_graph.nodes(keras_graph.graph_of(model))}
    maps = [name for name, node in calls.items() if name in names and _is_map(node.outputs[0])]
    chosen = layer or next(iter([LAYER] * (LAYER in names) + pools[-1:] + maps[-1:]), None)
    node = calls.get(chosen)
    for tensor in model.inputs if node is None else (node.outputs[0], node.input_tensors[0]):
        if _is_map(tensor):
            return chosen, tensor
    raise ValueError(f"layer {chosen!r} has no map (y, x, channels) on either side; name a convolution or a pooling")


def _is_map(tensor):
    return len(getattr(tensor, "shape", ())) == 4


def _logits(output):
    """(tensor, kernel): their product is the logits but for the bias; without a kernel the tensor itself is taken."""
    import keras

    last = keras_graph.maker(output)
    if isinstance(last, keras.layers.Dropout):  # inference passes it
        return _logits(last.input)
    squashes = getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid)
    if isinstance(last, keras.layers.Dense) and squashes and len(last.input.shape) == 2:
        return last.input, last.kernel
    if type(last).__name__ in ("Softmax", "Sigmoid") or (isinstance(last, keras.layers.Activation) and squashes):
        return last.input, None
    return output, None


def _captions(frame, chosen, given):
    if frame is not None and {"true", "predicted"} <= set(frame.columns):
        pairs = zip(frame["true"], frame["predicted"], given, strict=True)
        return [f"{true}, called {predicted} ({p:.0%})" for true, predicted, p in pairs]
    return [f"class {number} ({p:.0%})" for number, p in zip(chosen, given, strict=True)]
