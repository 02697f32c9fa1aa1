"""What layers cost that multiply no matrices: activations, normalization, pooling, merging, resizing, preprocessing.

All of these count in the column of element-wise operations only. A layer that moves or looks up data costs 0 there: it
computes nothing, however long it takes.
"""

import math

import keras

from .formulas import Cost, elements, product

layers = keras.layers

# Operations an element, written out from each function's definition (one for each arithmetic operation, comparison,
# selection or call of exp, log, tanh, erf, sqrt). Softmax: maximum, subtraction, exp, sum, division.
ACTIVATION_OPS = {
    "linear": 0,
    "relu": 1,
    "relu6": 2,
    "leaky_relu": 2,
    "elu": 3,
    "selu": 5,
    "celu": 4,
    "exponential": 1,
    "sigmoid": 4,
    "hard_sigmoid": 4,
    "log_sigmoid": 5,
    "sparse_sigmoid": 4,
    "tanh": 1,
    "hard_tanh": 2,
    "tanh_shrink": 2,
    "softplus": 3,
    "softsign": 3,
    "silu": 5,
    "hard_silu": 5,
    "gelu": 5,
    "mish": 5,
    "glu": 3,
    "softmax": 5,
    "log_softmax": 5,
    "threshold": 2,
    "hard_shrink": 3,
    "soft_shrink": 4,
    "squareplus": 5,
    "sparse_plus": 6,
}


def activation(function, shape):
    """Cost of an activation function on a tensor of a shape.

    Args:
        function: None, a function of `keras.activations`, a layer, or any callable that runs on symbolic tensors.
        shape: full shape of the tensor.

    Returns:
        Cost; with `unknown` set where the function is not in :data:`ACTIVATION_OPS` and cannot be traced.
    """
    if function is None:
        return Cost()
    name = getattr(function, "__name__", None)
    if name in ACTIVATION_OPS and getattr(keras.activations, name, None) is function:
        return Cost(0, ACTIVATION_OPS[name] * elements(shape))
    if isinstance(function, keras.Layer):
        for layer_type in type(function).__mro__:
            if layer_type in RULES:
                return RULES[layer_type](function, (shape,), (shape,))
    from .operations import callable_cost  # that module knows the activations by this one

    return callable_cost(function, shape)


def each(operations):
    """A rule: so many operations for each output element."""
    return lambda layer, input_shapes, output_shapes: Cost(0, operations * elements(output_shapes[0]))


def each_input(operations):
    """A rule: so many operations for each element of the first input."""
    return lambda layer, input_shapes, output_shapes: Cost(0, operations * elements(input_shapes[0]))


def nothing(layer, input_shapes, output_shapes):
    """A rule: data is moved, looked up or handed on; nothing is computed."""
    return Cost()


def activation_layer(layer, input_shapes, output_shapes):
    """Activation: what its function costs."""
    return activation(layer.activation, output_shapes[0])


def relu(layer, input_shapes, output_shapes):
    """ReLU: a comparison, one more for a ceiling (ReLU6), a multiplication for a slope, two for a threshold."""
    operations = 1 + (layer.max_value is not None) + bool(layer.negative_slope) + 2 * bool(layer.threshold)
    return Cost(0, operations * elements(output_shapes[0]))


def batch_norm(layer, input_shapes, output_shapes):
    """BatchNormalization at inference: one multiplication and one addition, whatever it scales and centres."""
    return Cost(0, 2 * elements(output_shapes[0]))


def moments_norm(layer, input_shapes, output_shapes):
    """LayerNormalization, GroupNormalization: mean, difference, square, mean, product; scale and offset if there."""
    return Cost(0, (5 + bool(layer.scale) + bool(layer.center)) * elements(output_shapes[0]))


def pool(layer, input_shapes, output_shapes):
    """Max and average pooling: one operation for each element of each window."""
    return Cost(0, elements(output_shapes[0]) * product(layer.pool_size))


def adaptive_pool(layer, input_shapes, output_shapes):
    """Adaptive pooling: windows from floor(i * in / out) to ceil((i + 1) * in / out)."""
    first = layer.data_format == "channels_first"
    inside = slice(2, None) if first else slice(1, -1)
    windows = 1
    for size, bins in zip(input_shapes[0][inside], output_shapes[0][inside], strict=True):
        windows *= sum(-(-(at + 1) * size // bins) - at * size // bins for at in range(bins))
    channels = input_shapes[0][1] if first else input_shapes[0][-1]
    return Cost(0, input_shapes[0][0] * channels * windows)


def merge(layer, input_shapes, output_shapes):
    """Add, Multiply, Maximum, Minimum, Subtract: one operation less than there are inputs; Average one more."""
    operations = len(input_shapes) - 1 + isinstance(layer, layers.Average)
    return Cost(0, operations * elements(output_shapes[0]))


INTERPOLATION_RADIUS = {"nearest": 0, "bilinear": 1, "area": 1, "bicubic": 2, "lanczos3": 3, "lanczos5": 5}


def resize(layer, input_shapes, output_shapes, interpolation=None, antialias=None):
    """Resizing and up-sampling: 2 * taps - 1 operations an output element; nearest computes nothing.

    taps = product over the two axes of 2 * radius, and with antialiasing of 2 * radius * max(1, in / out).
    """
    interpolation = interpolation or layer.interpolation
    if interpolation not in INTERPOLATION_RADIUS:
        return Cost(unknown=f"its interpolation {interpolation!r}")
    antialias = getattr(layer, "antialias", False) if antialias is None else antialias
    radius = INTERPOLATION_RADIUS[interpolation]
    if not radius:
        return Cost()
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    inside = slice(-2, None) if first else slice(-3, -1)
    taps = 1
    for size, wanted in zip(input_shapes[0][inside], output_shapes[0][inside], strict=True):
        taps *= math.ceil(2 * radius * (max(1.0, size / wanted) if antialias else 1.0))
    return Cost(0, (2 * taps - 1) * elements(output_shapes[0]))


def center_crop(layer, input_shapes, output_shapes):
    """CenterCrop cuts; RandomCrop at inference, and both for a photo that is too small, resize bilinearly."""
    first = layer.data_format == "channels_first"
    inside = slice(-2, None) if first else slice(-3, -1)
    fits = all(size >= wanted for size, wanted in zip(input_shapes[0][inside], output_shapes[0][inside], strict=True))
    if input_shapes[0] == output_shapes[0] or (fits and isinstance(layer, layers.CenterCrop)):
        return Cost()
    return resize(layer, input_shapes, output_shapes, "bilinear", False)


def discretization(layer, input_shapes, output_shapes):
    """Discretization: a binary search, ceil(log2(bins)) comparisons an element."""
    bins = len(layer.bin_boundaries) + 1
    return Cost(0, math.ceil(math.log2(bins)) * elements(input_shapes[0]))


def _present(*names):
    """Layer types of those names; a Keras that lacks one (or has not got it yet) is no error."""
    return [getattr(layers, name) for name in names if hasattr(layers, name)]


RULES = {
    layers.Activation: activation_layer,
    layers.ReLU: relu,
    layers.LeakyReLU: each(2),
    layers.PReLU: each(2),
    layers.ELU: each(3),
    layers.Softmax: each(5),
    layers.BatchNormalization: batch_norm,
    layers.LayerNormalization: moments_norm,
    layers.GroupNormalization: moments_norm,
    layers.UnitNormalization: each(3),
    layers.Normalization: each(2),
    layers.Rescaling: each(2),
    **dict.fromkeys(_present("RMSNormalization"), each(4)),
    **dict.fromkeys(
        _present(*(f"{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3))),
        pool,
    ),
    **dict.fromkeys(
        _present(*(f"Global{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3))),
        each_input(1),
    ),
    **dict.fromkeys(
        _present(*(f"Adaptive{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3))),
        adaptive_pool,
    ),
    **dict.fromkeys(_present("Add", "Multiply", "Maximum", "Minimum", "Subtract", "Average"), merge),
    layers.UpSampling2D: resize,
    layers.Resizing: resize,
    layers.CenterCrop: center_crop,
    layers.RandomCrop: center_crop,
    layers.Discretization: discretization,
    # AutoContrast: range in and out 2 each, minimum, maximum, scale, offset, clipping 2, isnan, selection
    **dict.fromkeys(_present("AutoContrast"), each(12)),
    # data that is moved, looked up, or handed on at inference
    **dict.fromkeys(
        _present(
            *("InputLayer", "Identity", "Flatten", "Reshape", "Permute", "RepeatVector", "Concatenate", "Masking"),
            *(f"{kind}{rank}D" for kind in ("Cropping", "ZeroPadding", "SpatialDropout") for rank in (1, 2, 3)),
            *("UpSampling1D", "UpSampling3D", "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
            *("ActivityRegularization", "CategoryEncoding", "Hashing", "HashedCrossing"),
            *("IntegerLookup", "StringLookup", "TextVectorization", "MaxNumBoundingBoxes"),
            *("TimeDistributed", "Bidirectional", "SpectralNormalization"),
            *("AugMix", "CutMix", "MixUp", "RandAugment", "Equalization", "Solarization", "RandomBrightness"),
            *("RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomElasticTransform"),
            *("RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert"),
            *("RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness"),
            *("RandomShear", "RandomTranslation", "RandomZoom"),
        ),
        nothing,
    ),
}
