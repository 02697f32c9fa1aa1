"""Quantization-aware training in Keras 3: fine-tune a network that already feels its 8-bit rounding.

Three steps. :func:`fold` merges batch normalization into the convolutions, because that is what the int8 file holds.
:func:`prepare` rounds kernels (per output channel, symmetric) and activations (per tensor, with calibrated ranges) to
256 levels in the forward pass, while gradients pass straight through the rounding (and stop where a value was
clipped). After `fit`, :func:`finish` gives back a plain Keras model with the trained weights, which goes through
`quantization.convert(..., "int8", ...)` like any other.

Source: Jacob et al. 2018, arXiv:1712.05877; straight-through gradients: Bengio et al. 2013, arXiv:1308.3432.
"""

import functools

import keras
import numpy as np
from keras import ops

from .inputs import as_keras_model, collect

LEVELS = 255  # steps between the 256 levels of an activation
KERNEL_LEVELS = 127  # int8 kernels are symmetric: -127..127
FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
ROUNDED_AFTER = (
    keras.layers.ReLU, keras.layers.Activation, keras.layers.Add, keras.layers.GlobalAveragePooling2D,
    keras.layers.Rescaling,
)  # fmt: skip


def round_kernel(kernel, axes):
    """A kernel rounded to 255 symmetric levels for each channel; gradients pass straight through.

    scale = max|w| / 127 over `axes`; w_q = round(w / scale) * scale.
    """
    scale = ops.maximum(ops.max(ops.abs(kernel), axis=axes, keepdims=True) / KERNEL_LEVELS, 1e-12)
    rounded = ops.round(kernel / scale) * scale
    return kernel + ops.stop_gradient(rounded - kernel)


@keras.saving.register_keras_serializable("clothing")
class RoundedActivation(keras.layers.Layer):
    """An activation rounded to 256 levels between `low` and `high`; values outside are clipped, and get no gradient.

    The calibrated range is widened to hold 0, and moved so that 0 is one of the levels, as int8 tensors have it.
    """

    def __init__(self, low, high, **options):
        super().__init__(**options)
        self.low, self.high = min(float(low), 0.0), max(float(high), 0.0)
        self.scale = (self.high - self.low) / LEVELS or 1.0
        self.zero = round(-self.low / self.scale)

    def call(self, inputs):
        low, high = -self.zero * self.scale, (LEVELS - self.zero) * self.scale
        clipped = ops.clip(inputs, low, high)
        rounded = ops.round(clipped / self.scale) * self.scale
        return clipped + ops.stop_gradient(rounded - clipped)

    def get_config(self):
        return {**super().get_config(), "low": self.low, "high": self.high}


@keras.saving.register_keras_serializable("clothing")
class RoundedConv2D(keras.layers.Conv2D):
    """A convolution whose kernel is rounded in the forward pass."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, round_kernel(kernel, (0, 1, 2)))


@keras.saving.register_keras_serializable("clothing")
class RoundedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution whose kernel is rounded in the forward pass."""

    def call(self, inputs):
        kernel = round_kernel(self.kernel, (0, 1))
        outputs = ops.depthwise_conv(
            inputs, kernel, self.strides, self.padding, dilation_rate=self.dilation_rate, data_format=self.data_format
        )
        return _finished(self, outputs)


@keras.saving.register_keras_serializable("clothing")
class RoundedDense(keras.layers.Dense):
    """A dense layer whose kernel is rounded in the forward pass."""

    def call(self, inputs):
        outputs = ops.matmul(inputs, round_kernel(self.kernel, (0,)))
        return _finished(self, outputs)


def _finished(layer, outputs):
    outputs = outputs + layer.bias if layer.use_bias else outputs
    return outputs if layer.activation is None else layer.activation(outputs)


_ROUNDED = {
    keras.layers.Conv2D: RoundedConv2D,
    keras.layers.DepthwiseConv2D: RoundedDepthwiseConv2D,
    keras.layers.Dense: RoundedDense,
}
_PLAIN = {rounded: plain for plain, rounded in _ROUNDED.items()}


def fold(model):
    """Merge each batch normalization into the convolution before it.

    w' = w * gamma / sqrt(var + eps), b' = beta + (b - mean) * gamma / sqrt(var + eps). Other layers stay.

    Args:
        model: a functional or Sequential keras.Model.

    Returns:
        keras.Model, a new one with the same layer names and the same outputs in inference mode.

    Raises:
        ValueError: a model of another kind or inside the model, or a batch normalization that does not directly follow
            a convolution of its own.
    """
    model = _functional(model)
    partners = _partners(model)
    norms = set(partners.values())
    folded = _rebuild(model, lambda layer: _copy(layer, **{"use_bias": True} if layer.name in partners else {}), norms)
    for layer in model.layers:
        if layer.name in partners:
            folded.get_layer(layer.name).set_weights(_folded_weights(layer, model.get_layer(partners[layer.name])))
        elif layer.weights and layer.name not in norms:
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    return folded


def prepare(model, representative, batch_size=16):
    """A model that computes as its int8 file would, ready for `compile` and `fit`.

    Args:
        model: a functional or Sequential keras.Model; folded here.
        representative: (n, height, width, channels) training photos, as the model takes them, that calibrate the
            activations (min-max); or a stream of them, as for `quantization.convert`.
        batch_size: photos at a time.

    Returns:
        keras.Model, uncompiled, from photos to rounded-arithmetic probabilities. Dropout falls out: a short fine-tune
        near the float model's answers needs no noise beside that of the rounding.

    Raises:
        ValueError: as :func:`fold`; no representative photos.
    """
    photos = collect(representative)
    if photos is None or len(photos) == 0:
        raise ValueError("quantization-aware training needs representative photos; pass some of the training set")
    folded = fold(as_keras_model(model, photos))
    ranges = _observed(folded, photos, batch_size)
    dropout = {layer.name for layer in folded.layers if isinstance(layer, keras.layers.Dropout)}
    prepared = _rebuild(folded, functools.partial(_changed, _ROUNDED), skip=dropout, after=lambda layer, output: (
        RoundedActivation(*ranges[layer.name], name=f"{layer.name}_rounded")(output)
        if layer.name in ranges else output
    ))  # fmt: skip
    return _with_weights_of(folded, prepared)


def finish(prepared):
    """The trained model of :func:`prepare` without its rounding: plain layers, ready for `quantization.convert`."""
    roundings = {layer.name for layer in prepared.layers if isinstance(layer, RoundedActivation)}
    plain = _rebuild(prepared, functools.partial(_changed, _PLAIN), skip=roundings)
    return _with_weights_of(prepared, plain)


def train(
    model,
    representative,
    images,
    targets=None,
    epochs=3,
    learning_rate=1e-5,
    batch_size=16,
    seed=0,
    verbose=0,
    loss=None,
):
    """Quantization-aware fine-tuning in one call.

    Args:
        model: the float model, or the path of a .keras file.
        representative: photos that calibrate the activations.
        images: (n, height, width, channels) training photos as the model takes them, uint8 or float.
        targets: (n, classes) probabilities to learn, or (n,) class indices. None: the float model's own answers
            (distillation), which needs no labels and cannot drift from what the float model knows.
        epochs, learning_rate (Adam), batch_size, seed: of the fit.
        verbose: Keras' progress bar.
        loss: any Keras loss that fits head and targets. None: cross-entropy for a head of probabilities.

    Returns:
        (keras.Model from :func:`finish`, DataFrame of the loss an epoch).

    Raises:
        ValueError: as :func:`prepare`; targets of another length; a head that ends in no probabilities, without `loss`.
    """
    import pandas as pd

    if targets is not None and len(targets) != len(images):
        raise ValueError(f"targets must hold one row for each of {len(images)} photos, got {len(targets)}")
    representative = collect(representative)
    model = _functional(as_keras_model(model, representative))
    loss = _loss(model, targets, loss)
    keras.utils.set_random_seed(seed)
    prepared = prepare(model, representative, batch_size)
    if targets is None:
        targets = model.predict(images, batch_size=batch_size, verbose=0)
    prepared.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss)
    history = prepared.fit(images, targets, epochs=epochs, batch_size=batch_size, shuffle=True, verbose=verbose)
    return finish(prepared), pd.DataFrame(history.history).rename_axis("epoch")


# --- inside -----------------------------------------------------------------------------------------------------------


def _functional(model):
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    if not isinstance(model, keras.Model) or not hasattr(model, "_run_through_graph"):
        raise ValueError(
            f"expected a functional model, got {getattr(model, 'name', model)!r}; build it from keras.Input onwards"
        )
    inside = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    if inside:
        raise ValueError(
            f"expected a model of layers, got the model {inside[0]!r} inside {model.name!r}, whose layers would not be "
            f"rounded; build the head on {inside[0]}.output instead: keras.Model({inside[0]}.input, …)"
        )
    return model


def _loss(model, targets, loss):
    """The loss that fits the head; cross-entropy of what is no probability trains nothing, or the wrong thing."""
    head = model.layers[-1]
    activation = "softmax" if isinstance(head, keras.layers.Softmax) else getattr(head, "activation", None)
    activation = activation if isinstance(activation, str) else keras.activations.serialize(activation)
    indices = targets is not None and np.ndim(targets) == 1 and model.output_shape[-1] > 1
    fitting = {"softmax": "sparse_categorical_crossentropy" if indices else "categorical_crossentropy",
               "sigmoid": "binary_crossentropy"}  # fmt: skip
    if activation == "softmax" and model.output_shape[-1] == 1:
        raise ValueError(f"{model.name!r} ends in a softmax of one output, which is always 1; use a sigmoid")
    named = loss if isinstance(loss, str) else getattr(loss, "__name__", getattr(loss, "name", ""))
    of_logits = targets is not None and hasattr(loss, "get_config") and loss.get_config().get("from_logits")
    if activation not in fitting and (loss is None or ("crossentropy" in named and not of_logits)):
        raise ValueError(
            f"{model.name!r} ends in {activation!r}, not in probabilities, got loss={loss!r}; pass loss="
            "'mean_squared_error', or targets and keras.losses.CategoricalCrossentropy(from_logits=True) for logits"
        )
    return loss if loss is not None else fitting[activation]


def _rebuild(model, copy, skip=(), after=lambda layer, output: output):
    """The same graph of new layers; those named in `skip` fall out, `after` may add one behind each."""

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in skip else after(layer, layer(*args, **kwargs))

    return keras.models.clone_model(
        model, clone_function=lambda layer: layer if layer.name in skip else copy(layer), call_function=call
    )


def _copy(layer, **changes):
    return type(layer).from_config({**layer.get_config(), **changes})


def _changed(kinds, layer):
    return kinds.get(type(layer), type(layer)).from_config(layer.get_config())


def _with_weights_of(source, model):
    for layer in source.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def _consumers(layer):
    return [node.operation for node in layer._outbound_nodes]


def _partners(model):
    """Convolution name -> name of the batch normalization that is its only consumer."""
    found = {}
    members = {id(layer) for layer in model.layers}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        (source,) = {id(t._keras_history.operation): t._keras_history.operation
                     for t in layer._inbound_nodes[0].input_tensors}.values()  # fmt: skip
        alone = [consumer for consumer in _consumers(source) if id(consumer) in members] == [layer]
        linear = isinstance(source, FOLDABLE) and keras.activations.serialize(source.activation) == "linear"
        if not (alone and linear):
            raise ValueError(
                f"batch normalization {layer.name!r} does not directly follow a convolution of its own; "
                "quantization-aware training cannot merge it"
            )
        found[source.name] = layer.name
    return found


def _folded_weights(layer, norm):
    kernel, *bias = layer.get_weights()
    mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
    factor = 1 / np.sqrt(variance + norm.epsilon)
    factor = factor * np.asarray(norm.gamma) if norm.scale else factor
    shift = np.asarray(norm.beta) if norm.center else 0.0
    old = bias[0] if bias else 0.0
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    scaled = kernel * (factor.reshape(kernel.shape[2:]) if depthwise else factor)
    return [scaled, shift + (old - mean) * factor]


def _observed(model, photos, batch_size):
    """Layer name -> (low, high) over the photos, for the activations that the int8 file stores."""
    chosen = [layer for layer in model.layers if _is_stored(layer)]
    watch = keras.Model(model.input, [layer.output for layer in chosen])
    ranges = {layer.name: [np.inf, -np.inf] for layer in chosen}
    for start in range(0, len(photos), batch_size):
        outputs = watch(np.asarray(photos[start : start + batch_size], np.float32), training=False)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        for layer, output in zip(chosen, outputs, strict=True):
            values = np.asarray(output)
            seen = ranges[layer.name]
            seen[0], seen[1] = min(seen[0], float(values.min())), max(seen[1], float(values.max()))
    return ranges


def _is_stored(layer):
    """A fused activation comes before anything is stored, so a convolution before a ReLU is not rounded itself."""
    if isinstance(layer, keras.layers.Activation) and keras.activations.serialize(layer.activation) == "softmax":
        return False
    if isinstance(layer, ROUNDED_AFTER):
        return True
    if isinstance(layer, FOLDABLE):
        return not any(
            isinstance(consumer, keras.layers.ReLU | keras.layers.Activation) for consumer in _consumers(layer)
        )
    return False
