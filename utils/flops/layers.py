"""What each layer of Keras costs, and the table in which its rule is looked up.

A rule is a pure function `rule(layer, input_shapes, output_shapes) -> Cost`, with full shapes, batch included. A layer
that moves or looks up data costs 0: it computes nothing, however long it takes. The convention: :mod:`.formulas`.
"""

import dataclasses
import functools
import math

import keras

from .formulas import (
    ACTIVATION_OPS,
    CONVENTIONS,
    Cost,
    attention_macs,
    conv_macs,
    conv_transpose_macs,
    dense_macs,
    each,
    each_input,
    einsum_macs,
    elements,
    nothing,
    product,
    relu_cost,
    repeated,
    resize_cost,
)

layers = keras.layers


# --- layers that multiply and add -------------------------------------------------------------------------------------


def _channels(layer, shape):
    return shape[1] if layer.data_format == "channels_first" else shape[-1]


def _grid(layer, shape):
    return shape[2:] if layer.data_format == "channels_first" else shape[1:-1]


def _finish(layer, macs, out_shape):
    """Add the bias (one addition an output element) and the activation to the MACs of a layer."""
    cost = Cost(macs, elements(out_shape) if layer.use_bias else 0)
    return cost + activation(getattr(layer, "activation", None), out_shape)


def activation(function, shape):
    """Cost of an activation of Keras on a tensor (a layer with another one is looked into instead)."""
    return Cost() if function is None else Cost(0, ACTIVATION_OPS[function.__name__] * elements(shape))


def conv(layer, input_shapes, output_shapes):
    """Conv1D, Conv2D, Conv3D, any padding, strides, dilation, groups."""
    channels = _channels(layer, input_shapes[0])
    return _finish(layer, conv_macs(layer.kernel_size, channels, output_shapes[0], layer.groups), output_shapes[0])


def depthwise(layer, input_shapes, output_shapes):
    """DepthwiseConv1D, DepthwiseConv2D: every output channel reads one input channel."""
    channels = _channels(layer, input_shapes[0])
    return _finish(layer, conv_macs(layer.kernel_size, channels, output_shapes[0], channels), output_shapes[0])


def separable(layer, input_shapes, output_shapes):
    """SeparableConv1D, SeparableConv2D: depthwise, then 1x1. MACs = positions * C_in * m * (kernel + C_out)."""
    filters = _channels(layer, output_shapes[0])
    positions = elements(output_shapes[0]) // filters
    middle = _channels(layer, input_shapes[0]) * layer.depth_multiplier
    return _finish(layer, positions * middle * (product(layer.kernel_size) + filters), output_shapes[0])


def conv_transpose(layer, input_shapes, output_shapes):
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose."""
    macs = conv_transpose_macs(layer.kernel_size, input_shapes[0], _channels(layer, output_shapes[0]))
    return _finish(layer, macs, output_shapes[0])


def dense(layer, input_shapes, output_shapes):
    """Dense on input of any rank."""
    return _finish(layer, dense_macs(input_shapes[0], layer.units), output_shapes[0])


def einsum_dense(layer, input_shapes, output_shapes):
    """EinsumDense: its equation on the input and the kernel."""
    left, _, right = layer.equation.replace(" ", "").partition("->")
    source, kernel = left.split(",")
    sizes = {}
    for term, shape in ((source, input_shapes[0]), (right, output_shapes[0])):
        head, dots, tail = term.partition("...")
        sizes.update(zip(head, shape, strict=not dots))
        if dots:
            sizes.update(zip(tail, shape[len(shape) - len(tail) :], strict=True))
    macs = einsum_macs(layer.equation, input_shapes[0], tuple(sizes[label] for label in kernel))
    cost = Cost(macs, elements(output_shapes[0]) if layer.bias_axes else 0)
    return cost + activation(layer.activation, output_shapes[0])


def dot(layer, input_shapes, output_shapes):
    """Dot (the merging layer): a batched matrix product over `axes`."""
    axes = layer.axes if isinstance(layer.axes, (tuple, list)) else (layer.axes, layer.axes)
    macs = elements(output_shapes[0]) * input_shapes[0][axes[0]]
    return Cost(macs, sum(map(elements, input_shapes)) * 3 if layer.normalize else 0)


def embedding(layer, input_shapes, output_shapes):
    """Embedding looks up; ReversibleEmbedding called with `reverse=True` multiplies by the whole table."""
    if len(input_shapes[0]) < len(output_shapes[0]):
        return Cost()
    capped = 3 * elements(output_shapes[0]) if getattr(layer, "logit_soft_cap", None) else 0  # divide, tanh, multiply
    return Cost(dense_macs(input_shapes[0], output_shapes[0][-1]), capped)


# --- recurrent layers: cost of a step times the number of steps -------------------------------------------------------


def _activations(cell, shape, recurrent, plain):
    gates = activation(getattr(cell, "recurrent_activation", None), shape)
    return repeated(gates, recurrent) + repeated(activation(cell.activation, shape), plain)


def cell_cost(cell, batch, features):
    """Cost of one step of an RNN cell, and the number of features that it gives.

    MACs = gates * units * (features + units), bias excluded: LSTM has 4 gates (Hochreiter and Schmidhuber 1997, gates
    as in Gers et al. 2000), GRU 3 (Cho et al. 2014, arXiv:1406.1078), with the reset before or after the product alike.
    """
    if isinstance(cell, layers.StackedRNNCells):
        total = Cost()
        for part in cell.cells:
            cost, features = cell_cost(part, batch, features)
            total += cost
        return total, features
    units = getattr(cell, "units", None)
    state, bias = (batch, units), bool(getattr(cell, "use_bias", False))
    if isinstance(cell, layers.LSTMCell):  # gates: sum of both products and bias; then f*c + i*g and o*act(c)
        gates, others, activations = 4, 4 + 4 * bias + 4, (3, 2)
    elif isinstance(cell, layers.GRUCell):  # three sums, r*h, then z*h + (1 - z)*g
        gates, others, activations = 3, 3 + 3 * bias * (2 if cell.reset_after else 1) + 1 + 4, (2, 1)
    elif isinstance(cell, layers.SimpleRNNCell):
        gates, others, activations = 1, 1 + bias, (0, 1)
    else:
        return Cost(unknown=f"its cell {type(cell).__name__!r}"), None
    own = Cost(batch * gates * units * (features + units), batch * units * others)
    return own + _activations(cell, state, *activations), units


def recurrent(layer, input_shapes, output_shapes):
    """LSTM, GRU, SimpleRNN and RNN over cells of Keras: every step of every sequence is computed."""
    batch, steps = input_shapes[0][:2]
    cost, _ = cell_cost(layer.cell, batch, product(input_shapes[0][2:]))
    return repeated(cost, steps)


def conv_lstm(layer, input_shapes, output_shapes):
    """ConvLSTM1D, 2D, 3D: four gates of one convolution over the input and one, SAME, over the state.

    MACs = steps * positions_out * kernel_elements * (C_in + filters) * 4 * filters. Shi et al. 2015, arXiv:1506.04214.
    """
    first = layer.data_format == "channels_first"
    batch, steps = input_shapes[0][:2]
    channels = input_shapes[0][2] if first else input_shapes[0][-1]
    rank = len(layer.kernel_size)
    inside = output_shapes[0][-rank:] if first else output_shapes[0][-rank - 1 : -1]
    state = (batch, *inside, layer.filters)
    macs = elements(state) * product(layer.kernel_size) * (channels + layer.filters) * 4
    own = Cost(macs, elements(state) * (4 + 4 * bool(layer.use_bias) + 4))
    return repeated(own + _activations(layer.cell, state, 3, 2), steps)


def bidirectional(layer, input_shapes, output_shapes):
    """Bidirectional's closing call: joining both directions costs nothing; sum and product one operation, mean two."""
    operations_each = {"sum": 1, "mul": 1, "ave": 2}.get(layer.merge_mode, 0)
    return Cost(0, operations_each * elements(output_shapes[0]))


# --- attention --------------------------------------------------------------------------------------------------------


def _query_value_key(input_shapes):
    query, value = input_shapes[0], input_shapes[1]
    return query, value, input_shapes[2] if len(input_shapes) > 2 else value


def multi_head_attention(layer, input_shapes, output_shapes):
    """MultiHeadAttention: four projections, scores, weighted sum; attention over any axes."""
    query, value, key = _query_value_key(input_shapes)
    heads, key_dim, value_dim = layer.num_heads, layer.key_dim, layer.value_dim
    axes = layer.attention_axes
    axes = (axes,) if isinstance(axes, int) else tuple(axes or range(1, len(query) - 1))
    axes = tuple(axis % len(query) for axis in axes)
    free = product(dim for axis, dim in enumerate(query[:-1]) if axis not in axes)
    queries, keys = product(query[axis] for axis in axes), product(value[axis] for axis in axes)
    out = elements(output_shapes[0])
    rows, value_rows, key_rows = product(query[:-1]), product(value[:-1]), product(key[:-1])
    projections = heads * ((elements(query) + elements(key)) * key_dim + (elements(value) + out) * value_dim)
    biases = heads * ((rows + key_rows) * key_dim + value_rows * value_dim) + out
    scale, softmax = rows * heads * key_dim, 5 * free * heads * queries * keys
    return Cost(
        projections + attention_macs(free, heads, queries, keys, key_dim, value_dim),
        scale + softmax + (biases if layer.use_bias else 0),
    )


def group_query_attention(layer, input_shapes, output_shapes):
    """GroupQueryAttention: keys and values have fewer heads, repeated. Ainslie et al. 2023, arXiv:2305.13245."""
    query, value, key = _query_value_key(input_shapes)
    heads, shared, dim = layer.num_query_heads, layer.num_key_value_heads, layer.head_dim
    gate = bool(getattr(layer, "use_gate", False))
    batch, queries, keys = query[0], product(query[1:-1]), product(value[1:-1])
    out, scale = elements(output_shapes[0]), batch * queries * heads * dim
    projections = (elements(query) * (1 + gate) + out) * heads * dim + (elements(key) + elements(value)) * shared * dim
    biases = scale * (1 + gate) + 2 * batch * keys * shared * dim + out
    softmax = 5 * batch * heads * queries * keys
    return Cost(
        projections + attention_macs(batch, heads, queries, keys, dim, dim),
        scale + softmax + (biases if layer.use_bias else 0) + gate * 5 * scale,
    )


def attention(layer, input_shapes, output_shapes):
    """Attention: scores by product, or by tanh of a sum ("concat"), then the weighted sum. arXiv:1508.04025."""
    query, value, _ = _query_value_key(input_shapes)
    pairs = product(query[:-1]) * value[-2]
    macs = pairs * value[-1]
    scaled = bool(layer.use_scale)
    if layer.score_mode == "dot":
        return Cost(macs + pairs * query[-1], pairs * (5 + scaled))
    # concat: q + k, times the scale, tanh, sum over the features; then one weight for all scores
    return Cost(macs, pairs * (query[-1] * (3 + scaled) + 1 + 5))


def additive_attention(layer, input_shapes, output_shapes):
    """AdditiveAttention: a learned vector times tanh(q + k), then the weighted sum. Bahdanau 2014, arXiv:1409.0473."""
    query, value, _ = _query_value_key(input_shapes)
    pairs = product(query[:-1]) * value[-2]
    learned = pairs * query[-1] if layer.use_scale else 0
    summed = 0 if layer.use_scale else pairs * query[-1]
    return Cost(pairs * value[-1] + learned, pairs * (2 * query[-1] + 5) + summed)


# --- element-wise operations only -------------------------------------------------------------------------------------


def moments_norm(layer, input_shapes, output_shapes):
    """LayerNormalization, GroupNormalization: mean, difference, square, mean, product; scale and offset if there."""
    return Cost(0, (5 + bool(layer.scale) + bool(layer.center)) * elements(output_shapes[0]))


def pool(layer, input_shapes, output_shapes):
    """Max and average pooling: one operation for each element of each window."""
    return Cost(0, elements(output_shapes[0]) * product(layer.pool_size))


def adaptive_pool(layer, input_shapes, output_shapes):
    """Adaptive pooling: windows from floor(i * in / out) to ceil((i + 1) * in / out)."""
    windows = input_shapes[0][0] * _channels(layer, input_shapes[0])
    for size, bins in zip(_grid(layer, input_shapes[0]), _grid(layer, output_shapes[0]), strict=True):
        windows *= sum(-(-(at + 1) * size // bins) - at * size // bins for at in range(bins))
    return Cost(0, windows)


def merge(layer, input_shapes, output_shapes):
    """Add, Multiply, Maximum, Minimum, Subtract: one operation less than there are inputs; Average one more."""
    operations_each = len(input_shapes) - 1 + isinstance(layer, layers.Average)
    return Cost(0, operations_each * elements(output_shapes[0]))


def resize(layer, input_shapes, output_shapes):
    """Resizing and up-sampling."""
    first = layer.data_format == "channels_first"
    antialias = getattr(layer, "antialias", False)
    return resize_cost(layer.interpolation, antialias, first, input_shapes[0], output_shapes[0])


def center_crop(layer, input_shapes, output_shapes):
    """CenterCrop cuts; RandomCrop at inference, and both for a photo that is too small, resize bilinearly."""
    first = layer.data_format == "channels_first"
    inside = slice(-2, None) if first else slice(-3, -1)
    fits = all(size >= wanted for size, wanted in zip(input_shapes[0][inside], output_shapes[0][inside], strict=True))
    if input_shapes[0] == output_shapes[0] or (fits and isinstance(layer, layers.CenterCrop)):
        return Cost()
    return resize_cost("bilinear", False, first, input_shapes[0], output_shapes[0])


def discretization(layer, input_shapes, output_shapes):
    """Discretization: a binary search, ceil(log2(bins)) comparisons an element."""
    if layer.bin_boundaries is None:
        return Cost(unknown="the number of its bins, before adapt() or set_weights(),")
    bins = len(layer.bin_boundaries) + 1
    return Cost(0, math.ceil(math.log2(bins)) * elements(input_shapes[0]))


RULES = {  # "?" is 1, 2 and 3; a Keras that has not got one of them yet is no error
    conv: "Conv?D",
    depthwise: "DepthwiseConv?D",
    separable: "SeparableConv?D",
    conv_transpose: "Conv?DTranspose",
    dense: "Dense",
    einsum_dense: "EinsumDense",
    dot: "Dot",
    embedding: "Embedding",
    recurrent: "RNN",
    conv_lstm: "ConvLSTM?D",
    bidirectional: "Bidirectional",
    multi_head_attention: "MultiHeadAttention",
    group_query_attention: "GroupQueryAttention",
    attention: "Attention",
    additive_attention: "AdditiveAttention",
    lambda layer, given, gives: activation(layer.activation, gives[0]): "Activation",
    lambda layer, given, gives: relu_cost(layer, gives[0]): "ReLU",
    moments_norm: "LayerNormalization GroupNormalization",
    each(2): "BatchNormalization LeakyReLU PReLU Normalization Rescaling",
    each(3): "ELU UnitNormalization",
    each(4): "RMSNormalization",
    each(5): "Softmax",
    each(12): "AutoContrast",  # range in and out 2 each, minimum, maximum, scale, offset, clipping 2, isnan, selection
    pool: "MaxPooling?D AveragePooling?D",
    each_input(1): "GlobalMaxPooling?D GlobalAveragePooling?D",
    adaptive_pool: "AdaptiveMaxPooling?D AdaptiveAveragePooling?D",
    merge: "Add Multiply Maximum Minimum Subtract Average",
    center_crop: "CenterCrop RandomCrop",
    discretization: "Discretization",
    # data that is moved, looked up, or handed on at inference
    nothing: """
        InputLayer Identity Flatten Reshape Permute RepeatVector Concatenate Masking Cropping?D ZeroPadding?D
        SpatialDropout?D UpSampling?D Dropout AlphaDropout GaussianDropout GaussianNoise ActivityRegularization
        CategoryEncoding Hashing HashedCrossing IntegerLookup StringLookup TextVectorization MaxNumBoundingBoxes
        TimeDistributed SpectralNormalization AugMix CutMix MixUp RandAugment Equalization Solarization RandomBrightness
        RandomColorDegeneration RandomColorJitter RandomContrast RandomElasticTransform RandomErasing RandomFlip
        RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
        RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom""",
    resize: "UpSampling2D Resizing",
}
RULES = {
    getattr(layers, name.replace("?", rank)): rule
    for rule, names in RULES.items()
    for name in names.split()
    for rank in "123"
    if hasattr(layers, name.replace("?", rank))
}


# --- the studies' convention ------------------------------------------------------------------------------------------


def _over_stride(rule, layer, input_shapes, output_shapes):
    """A convolution's cost with its MACs at floor(input / stride) positions, as Keras_FLOP_Estimator counts."""
    cost = rule(layer, input_shapes, output_shapes)
    counted = [dim // stride for dim, stride in zip(_grid(layer, input_shapes[0]), layer.strides, strict=True)]
    real = product(_grid(layer, output_shapes[0]))
    return dataclasses.replace(cost, macs=cost.macs * product(counted) // real if real else 0)


OVER_STRIDE_RULES = {
    layer_type: functools.partial(_over_stride, rule)
    for layer_type, rule in RULES.items()
    if rule in (conv, depthwise, separable)
}


def rules_for(convention):
    """The table of rules of a convention: {layer type: rule}; ValueError where there is no such convention."""
    if convention not in list(CONVENTIONS):  # may not be hashable
        raise ValueError(f"convention must be one of {', '.join(map(repr, CONVENTIONS))}, got {convention!r}")
    return {**RULES, **OVER_STRIDE_RULES} if convention == "input_over_stride" else RULES
