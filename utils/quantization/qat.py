"""Quantization-aware training in Keras 3: fine-tune a network that already feels its 8-bit rounding.

:func:`train` does it in one call. Its steps: :func:`fold` merges batch normalization into the convolutions, as the int8
file does. :func:`prepare` rounds kernels (per output channel, symmetric) and activations (per tensor, with calibrated
ranges) to 256 levels in the forward pass, while gradients pass straight through the rounding (and stop where a value
was clipped). After `fit`, :func:`finish` returns a plain Keras model for `quantization.convert`.

Source: Jacob et al. 2018, arXiv:1712.05877; straight-through gradients: Bengio et al. 2013, arXiv:1308.3432.
"""

import functools

import keras
import numpy as np
from keras import ops

from utils._checks import whole
from utils.models import set_weights

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
        kernel, options = round_kernel(self.kernel, (0, 1)), (self.strides, self.padding, self.data_format)
        outputs = ops.depthwise_conv(inputs, kernel, *options, self.dilation_rate)
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("clothing")
class RoundedDense(keras.layers.Dense):
    """A dense layer whose kernel is rounded in the forward pass."""

    def call(self, inputs):
        outputs = ops.matmul(inputs, round_kernel(self.kernel, (0,)))
        return self.activation(outputs + self.bias if self.use_bias else outputs)


_ROUNDED = {
    keras.layers.Conv2D: RoundedConv2D,
    keras.layers.DepthwiseConv2D: RoundedDepthwiseConv2D,
    keras.layers.Dense: RoundedDense,
}
_PLAIN = {rounded: plain for plain, rounded in _ROUNDED.items()}


def fold(model):
    """Merge each batch normalization into the convolution before it, in a new model of the same outputs.

    w' = w * gamma / sqrt(var + eps), b' = beta + (b - mean) * gamma / sqrt(var + eps). Other layers stay.

    Raises:
        ValueError: a model of another kind or inside the model, or a batch normalization that does not directly follow
            a convolution of its own.
    """
    model = _functional(model)
    partners = _partners(model)
    norms = set(partners.values())

    def copy(layer):
        changes = {"dtype": "float32"} if isinstance(layer, keras.layers.Layer) else {}  # not an operation
        changes |= {"use_bias": True} if layer.name in partners else {}
        return type(layer).from_config({**layer.get_config(), **changes})

    folded = _with_weights_of(model, _rebuild(model, copy, norms), skip=norms | set(partners))
    for name, norm in partners.items():
        folded.get_layer(name).set_weights(_folded_weights(model.get_layer(name), model.get_layer(norm)))
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
        ValueError: as :func:`fold`; no representative photos, or some that the model does not take.
    """
    photos = collect(representative)
    if photos is None or len(photos) == 0:
        raise ValueError("quantization-aware training needs representative photos; pass some of the training set")
    folded = fold(as_keras_model(model, photos))
    _check_photos(photos, folded, "representative photos")
    ranges = _observed(folded, photos, batch_size)
    dropout = {layer.name for layer in folded.layers if isinstance(layer, keras.layers.Dropout)}
    prepared = _rebuild(folded, functools.partial(_changed, _ROUNDED), skip=dropout, after=lambda layer, output: (
        RoundedActivation(*ranges[layer.name], name=f"{layer.name}_rounded")(output)
        if layer.name in ranges else output
    ))  # fmt: skip
    return _with_weights_of(folded, prepared)


def finish(prepared):
    """The trained model of :func:`prepare` as plain layers without rounding, ready for `quantization.convert`."""
    roundings = {layer.name for layer in prepared.layers if isinstance(layer, RoundedActivation)}
    plain = _rebuild(prepared, functools.partial(_changed, _PLAIN), skip=roundings)
    return _with_weights_of(prepared, plain)


def train(
    model, representative, images, targets=None, epochs=3, learning_rate=1e-5, batch_size=16, seed=0, verbose=0,
    loss=None,
):  # fmt: skip
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
        ValueError: as :func:`prepare`; images or targets with NaN, of other shapes, or that fit no loss; a head that
            does not end in probabilities, without a `loss` that fits it; a loss that became NaN.
    """
    import pandas as pd

    images = np.asarray(images)
    if images.ndim < 3 or len(images) == 0:
        raise ValueError(f"images must be an array of at least one photo, got {images.shape}; pass training photos")
    representative = collect(representative)
    model = _functional(as_keras_model(model, representative))
    _check_photos(images, model, "images")
    epochs, batch_size = whole("epochs", epochs), whole("batch_size", batch_size)
    targets = _targets(targets, len(images), model.output_shape[-1])
    loss = _loss(model, targets, loss)
    keras.utils.set_random_seed(seed)
    prepared = prepare(model, representative, batch_size)
    peaks = [float(np.abs(given).max()) for given in (representative, images)]
    if max(peaks) > 50 * min(peaks):
        raise ValueError(
            f"expected images and representative photos of one scale, got up to {peaks[1]:.3g} and {peaks[0]:.3g}; "
            "pass both as the model takes them"
        )
    if targets is None:
        targets = model.predict(images, batch_size=batch_size, verbose=0)
    prepared.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss)
    history = prepared.fit(images, targets, epochs=epochs, batch_size=batch_size, shuffle=True, verbose=verbose)
    if not np.isfinite(history.history["loss"]).all():
        raise ValueError(
            f"the loss became {history.history['loss'][-1]}; pass a lower learning_rate than {learning_rate}"
        )
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


def _check_photos(photos, model, what):
    """Finite numbers of the model's input shape; the channel axis of grey ones may be missing."""
    shape = model.input_shape[1:]
    fits = any(
        len(given) == len(shape) and all(side in (None, got) for side, got in zip(shape, given, strict=True))
        for given in (photos.shape[1:], (*photos.shape[1:], 1))
    )
    if not fits or photos.dtype.kind not in "biuf" or not np.isfinite(photos.sum(dtype=np.float64)):
        got = f"{photos.shape} of {photos.dtype}" + ", with NaN or infinity" * (fits and photos.dtype.kind == "f")
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{what} must be finite numbers of shape (n, {expected}), got {got}")


def _targets(targets, photos, classes):
    """Targets as (n, classes), or (n,) class indices."""
    if targets is None:
        return None
    targets = np.asarray(targets)
    if targets.ndim == 2 and targets.shape[1] == 1 < classes:
        targets = targets[:, 0]
    if targets.shape not in ((photos,), (photos, classes)):
        raise ValueError(
            f"targets must hold one row for each of {photos} photos, ({photos}, {classes}) or class indices "
            f"({photos},), got {targets.shape}"
        )
    if targets.dtype.kind not in "biuf" or not np.isfinite(targets).all():
        raise ValueError(f"targets must be finite numbers, got {targets.dtype} such as {targets.flat[0]!r}")
    if targets.ndim == 1 < classes and (targets.min() < 0 or targets.max() >= classes):
        raise ValueError(f"class indices must be in 0..{classes - 1}, got {targets.min()}..{targets.max()}")
    return targets


_OF_PROBABILITIES = ("crossentropy", "kl", "kullback", "poisson")


def _loss(model, targets, loss):
    """The loss that fits the head; cross-entropy of what is no probability trains nothing, or the wrong thing."""
    head, classes = _head(model), model.output_shape[-1]
    if head == "softmax" and classes == 1:
        raise ValueError(f"{model.name!r} ends in a softmax of one output, which is always 1; use a sigmoid")
    indices = targets is not None and targets.ndim == 1 < classes
    fitting = {"softmax": f"{'sparse_' * indices}categorical_crossentropy", "sigmoid": "binary_crossentropy"}
    of_logits = hasattr(loss, "get_config") and loss.get_config().get("from_logits")
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    named = getattr(loss, "__name__", getattr(loss, "name", ""))
    wants_probabilities = loss is None or (not of_logits and any(part in named for part in _OF_PROBABILITIES))
    if head not in fitting and (wants_probabilities or (of_logits and targets is None)):
        raise ValueError(
            f"{model.name!r} ends in {head!r}, not in probabilities, got loss={named or None!r}; pass loss="
            "'mean_squared_error', or targets and keras.losses.CategoricalCrossentropy(from_logits=True) for logits"
        )
    crossed = of_logits or loss is None or "entropy" in named or "kl" in named
    if crossed and targets is not None and not indices and not (targets.min() >= 0 and targets.max() <= 1):
        raise ValueError(
            f"targets of a cross-entropy must be probabilities in 0..1, got {targets.min():.3g}..{targets.max():.3g}; "
            "pass such, or another loss"
        )
    if classes == 1 and "categorical" in named and "entropy" in named:
        raise ValueError(f"loss {named!r} of one output is always 0; pass 'binary_crossentropy'")
    if head in fitting and of_logits:
        raise ValueError(f"{model.name!r} ends in {head!r}, got a loss of logits; pass loss= without from_logits")
    loss, named = (fitting[head],) * 2 if loss is None else (loss, named)
    keras_own = isinstance(loss, str) or "keras" in f"{type(loss).__module__} {loss.__module__}"
    if keras_own and ("sparse" in named) != indices:
        wanted = "class indices (n,)" if "sparse" in named else f"targets of shape (n, {classes})"
        raise ValueError(f"loss {named!r} needs {wanted} here; pass them, or another loss")
    return loss


def _head(model):
    """The name of the activation that makes the output, behind layers that pass it on."""
    operation = model.outputs[0]._keras_history.operation
    passing = keras.layers.Identity, keras.layers.Reshape, keras.layers.Flatten, keras.layers.Dropout
    while isinstance(operation, passing):
        operation = operation._inbound_nodes[0].input_tensors[0]._keras_history.operation
    activation = getattr(operation, "activation", None)
    return type(operation).__name__.lower() if activation is None else getattr(activation, "__name__", str(activation))


def _rebuild(model, copy, skip=(), after=lambda layer, output: output):
    """The same graph of new layers; those named in `skip` fall out, `after` may add one behind each."""

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in skip else after(layer, layer(*args, **kwargs))

    return keras.models.clone_model(
        model, clone_function=lambda layer: layer if layer.name in skip else copy(layer), call_function=call
    )


def _changed(kinds, layer):
    return kinds.get(type(layer), type(layer)).from_config(layer.get_config())


def _with_weights_of(source, model, skip=()):
    for layer in source.layers:
        if layer.weights and layer.name not in skip:
            set_weights(model.get_layer(layer.name), layer.get_weights())
    return model


def _consumers(layer):
    return {id(node.operation): node.operation for node in layer._outbound_nodes}


def _partners(model):
    """Convolution name -> name of the batch normalization that is its only consumer."""
    found, members = {}, {id(operation) for operation in model.operations}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        before = [tensor._keras_history.operation for node in layer._inbound_nodes for tensor in node.input_tensors]
        sources = {id(operation): operation for operation in before if id(operation) in members}
        source = next(iter(sources.values())) if len(sources) == 1 else None
        linear = isinstance(source, FOLDABLE) and keras.activations.serialize(source.activation) == "linear"
        linear = linear and layer.axis % 4 == (3 if source.data_format == "channels_last" else 1)
        if not linear or _consumers(source).keys() & members != {id(layer)}:
            raise ValueError(
                f"batch normalization {layer.name!r} does not directly follow a convolution of its own, over its "
                "channels; quantization-aware training cannot merge it"
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
    stored = {layer.name: layer.output for layer in model.layers if _is_stored(layer)}
    extremes = [(ops.min(output), ops.max(output)) for output in stored.values()]
    watch, parts = keras.Model(model.input, extremes), range(0, len(photos), batch_size)
    seen = [watch(np.asarray(photos[at : at + batch_size], np.float32), training=False) for at in parts]
    seen = np.array([[[float(low), float(high)] for low, high in part] for part in seen])  # (parts, layers, 2)
    lows, highs = seen[..., 0].min(0), seen[..., 1].max(0)
    return dict(zip(stored, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))


def _is_stored(layer):
    """A fused activation comes before anything is stored, so a convolution before a ReLU is not rounded itself."""
    if isinstance(layer, keras.layers.Activation) and keras.activations.serialize(layer.activation) == "softmax":
        return False
    fused = keras.layers.ReLU | keras.layers.Activation
    before_one = any(isinstance(consumer, fused) for consumer in _consumers(layer).values())
    return isinstance(layer, ROUNDED_AFTER) or (isinstance(layer, FOLDABLE) and not before_one)
