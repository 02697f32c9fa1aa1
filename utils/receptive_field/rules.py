"""What each Keras layer or operation does to the field of a tensor: one small function a kind of layer.

A rule is `rule(call, fields) -> Field | None`: `call` is a utils.layer_calls.LayerCall, `fields` holds one
utils.receptive_field.algebra.Field for each of its inputs (None for an input that sees nothing of the image). None as
an answer means that the rule cannot say. Rules are looked up by class name along the class hierarchy, among Keras' own
classes only, so that a layer of yours that happens to be called "Pad" is not mistaken for one of Keras'.

Everything is described as in inference: dropout and random augmentation pass the image through.
"""

import dataclasses
import math

import keras

from .algebra import Axis, Step, adaptive_window, join, resize_window, transposed_window, window


def spatial_axes(layer, rank):
    """Tensor axes that are neither batch nor channels, from the layer's data format."""
    data_format = getattr(layer, "data_format", None) or keras.config.image_data_format()
    return tuple(range(2, rank)) if data_format == "channels_first" else tuple(range(1, rank - 1))


def channel_axis(layer, rank):
    data_format = getattr(layer, "data_format", None) or keras.config.image_data_format()
    return 1 if data_format == "channels_first" else rank - 1


def per_axis(value, count):
    """An int or a sequence as a tuple with one entry a spatial axis."""
    return (value,) * count if value is None or isinstance(value, int | str) else tuple(value)


def pairs(value, count):
    """Padding or cropping in any of Keras' spellings as ((before, after), ...)."""
    if isinstance(value, int):
        return ((value, value),) * count
    if count == 1 and all(isinstance(entry, int) for entry in value):
        return (tuple(value),)
    return tuple((entry, entry) if isinstance(entry, int) else tuple(entry) for entry in value)


def normalized(axes, rank):
    axes = range(rank) if axes is None else (axes,) if isinstance(axes, int) else axes
    return {axis % rank for axis in axes}


def first(fields):
    return next((field for field in fields if field is not None), None)


def stepped(call, fields, steps):
    """Apply `steps`, one a spatial axis of the first input."""
    out_shape = call.output_shapes[0]
    axes = spatial_axes(call.layer, len(call.input_shapes[0]))
    return fields[0].step(dict(zip(axes, steps, strict=True)), {axis: out_shape[axis] for axis in axes})


def shifted(call, fields, starts):
    """Output o is input o + start, along each spatial axis."""
    return stepped(call, fields, [Step(1, start, 0) for start in starts])


# Convolution and pooling -------------------------------------------------------------------------------------------


def windowed(call, fields):
    layer, shape = call.layer, call.input_shapes[0]
    axes = spatial_axes(layer, len(shape))
    count = len(axes)
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None:  # keras.ops.conv: the kernel is an operand
        if len(call.operand_shapes) < 2:
            return None
        kernel = call.operand_shapes[1][:count]
    # Pooling operations leave `strides=None` for "as large as the window".
    strides = per_axis(layer.strides if layer.strides is not None else kernel, count)
    dilation = per_axis(getattr(layer, "dilation_rate", 1) or 1, count)
    steps = [
        window(k, s, d, layer.padding, shape[axis])
        for axis, k, s, d in zip(axes, per_axis(kernel, count), strides, dilation, strict=True)
    ]
    field = stepped(call, fields, steps)
    # After a Permute the channel axis may be one of the image's: then the layer mixes all of it.
    return field if "Pool" in call.type else field.mix({channel_axis(layer, len(shape))})


def transposed(call, fields):
    layer, shape, out_shape = call.layer, call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(layer, len(shape))
    count = len(axes)
    kernel = getattr(layer, "kernel_size", None) or call.operand_shapes[1][:count]
    settings = (kernel, layer.strides, getattr(layer, "dilation_rate", 1) or 1, getattr(layer, "output_padding", None))
    steps = [
        transposed_window(k, s, d, layer.padding, shape[axis], out_shape[axis], extra)
        for axis, k, s, d, extra in zip(axes, *(per_axis(setting, count) for setting in settings), strict=True)
    ]
    return stepped(call, fields, steps).mix({channel_axis(layer, len(shape))})


def global_pool(call, fields):
    return fields[0].mix(set(spatial_axes(call.layer, len(call.input_shapes[0]))))


def adaptive_pool(call, fields):
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(call.layer, len(shape))
    field = fields[0].mix({axis for axis in axes if out_shape[axis] == 1})
    if any(shape[axis] is None for axis in axes if out_shape[axis] != 1):
        return None
    return stepped(call, (field,), [adaptive_window(shape[a] or 1, out_shape[a]) for a in axes])


# Cropping, padding, resizing ---------------------------------------------------------------------------------------


def zero_padding(call, fields):
    count = len(spatial_axes(call.layer, len(call.input_shapes[0])))
    return shifted(call, fields, [-before for before, _ in pairs(call.layer.padding, count)])


def cropping(call, fields):
    count = len(spatial_axes(call.layer, len(call.input_shapes[0])))
    return shifted(call, fields, [before for before, _ in pairs(call.layer.cropping, count)])


def center_crop(call, fields):
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(call.layer, len(shape))
    if any(shape[axis] is not None and shape[axis] < out_shape[axis] for axis in axes):
        return None  # then the layer resizes
    return shifted(call, fields, [None if shape[a] is None else (shape[a] - out_shape[a]) // 2 for a in axes])


def pad_operation(call, fields):
    if getattr(call.layer, "mode", "constant") != "constant":
        return None
    rank, out_shape = len(call.input_shapes[0]), call.output_shapes[0]
    widths = pairs(call.layer.pad_width, rank)
    widths = widths * rank if len(widths) == 1 else widths
    steps = {axis: Step(1, -before, 0) for axis, (before, _) in enumerate(widths)}
    return fields[0].step(steps, dict(enumerate(out_shape)))


def up_sampling(call, fields):
    axes = spatial_axes(call.layer, len(call.input_shapes[0]))
    interpolation = getattr(call.layer, "interpolation", "nearest")
    return stepped(call, fields, [resize_window(1, s, interpolation) for s in per_axis(call.layer.size, len(axes))])


def resizing(call, fields):
    layer, shape, out_shape = call.layer, call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(layer, len(shape))
    reshapes = getattr(layer, "crop_to_aspect_ratio", False) or getattr(layer, "pad_to_aspect_ratio", False)
    if reshapes or any(shape[axis] is None or out_shape[axis] is None for axis in axes):
        return None
    how = layer.interpolation, getattr(layer, "antialias", False)
    return stepped(call, fields, [resize_window(shape[axis], out_shape[axis], *how) for axis in axes])


def depth_to_space(call, fields):
    step = resize_window(1, call.layer.block_size, "nearest")
    return stepped(call, fields, [step] * 2)


def space_to_depth(call, fields):
    return stepped(call, fields, [Step(call.layer.block_size, 0, call.layer.block_size - 1)] * 2)


# Branches ----------------------------------------------------------------------------------------------------------


def merge(call, fields):
    """Element by element, with NumPy's broadcasting: missing axes are added in front."""
    out_shape = call.output_shapes[0]
    lined_up = []
    for field, shape in zip(fields, call.input_shapes, strict=True):
        if field is not None:
            missing = len(out_shape) - len(shape)
            lined_up.append(field.move(lambda axis, missing=missing: axis + missing) if missing > 0 else field)
    return join(lined_up, call.path, dict(enumerate(out_shape)))


def concatenate(call, fields):
    out_shape = call.output_shapes[0]
    axis = getattr(call.layer, "axis", -1)
    if axis is None:
        return None
    axis %= len(out_shape)
    offset, moved = 0, []
    for field, shape in zip(fields, call.input_shapes, strict=True):
        if field is not None and any(grid.position == axis for grid in field.axes):
            moved.append(field.step({axis: Step(1, None if offset is None else -offset, 0)}, {axis: out_shape[axis]}))
        else:
            moved.append(field)
        offset = None if offset is None or shape[axis] is None else offset + shape[axis]
    return merge(call, moved)


# Axes moved, merged, removed ---------------------------------------------------------------------------------------


def permute(call, fields):
    layer, rank = call.layer, len(call.input_shapes[0])
    if hasattr(layer, "dims"):
        order = (0, *layer.dims)
    elif getattr(layer, "axes", None) is not None:
        order = tuple(axis % rank for axis in layer.axes)
    elif hasattr(layer, "axis1"):
        order = list(range(rank))
        one, two = layer.axis1 % rank, layer.axis2 % rank
        order[one], order[two] = order[two], order[one]
    else:
        order = tuple(reversed(range(rank)))
    return fields[0].move(list(order).index)


def regroup(call, fields):
    """Reshape and Flatten: grid axes that are merged with others turn flat, and find themselves again when split."""
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    groups = _groups(shape[1:], out_shape[1:])

    def change(axis):
        if axis.position is None:
            return axis
        for sources, targets in groups or ():
            if axis.position - 1 not in sources:
                continue
            lengths = tuple(shape[source + 1] for source in sources)
            if len(sources) == len(targets) == 1:
                return dataclasses.replace(axis, position=targets[0] + 1)
            if len(targets) == 1 and axis.flat is None:
                place = axis.position - 1 - sources[0]
                return dataclasses.replace(axis, position=targets[0] + 1, flat=(lengths, place))
            split = tuple(out_shape[target + 1] for target in targets)
            if len(sources) == 1 and axis.flat is not None and axis.flat[0] == split:
                return dataclasses.replace(axis, position=targets[axis.flat[1]] + 1, flat=None)
            break
        if len(out_shape) == 2:  # flattened while sizes are unknown
            return dataclasses.replace(axis, position=1, flat=((None,), 0))
        return axis.mixed()  # another grid: a feature of it may come from anywhere on the old one

    return fields[0].with_axes(change)


def _groups(shape, out_shape):
    """Pairs (input axes, output axes) that hold the same elements in the same order; None where sizes are unknown."""
    if None in shape or None in out_shape:
        return None
    groups, i, o = [], 0, 0
    while i < len(shape) or o < len(out_shape):
        sources, targets = [i] if i < len(shape) else [], [o] if o < len(out_shape) else []
        size = math.prod(shape[s] for s in sources)
        out_size = math.prod(out_shape[t] for t in targets)
        while size != out_size:
            if size < out_size:
                sources.append(sources[-1] + 1)
                size *= shape[sources[-1]]
            else:
                targets.append(targets[-1] + 1)
                out_size *= out_shape[targets[-1]]
        groups.append((sources, targets))
        i, o = i + len(sources), o + len(targets)
    return groups


def expand_dims(call, fields):
    rank = len(call.output_shapes[0])
    added = normalized(call.layer.axis, rank)
    kept = [axis for axis in range(rank) if axis not in added]
    return fields[0].move(kept.__getitem__)


def squeeze(call, fields):
    shape = call.input_shapes[0]
    axes = getattr(call.layer, "axis", None)
    gone = {a for a, size in enumerate(shape) if size == 1 and a > 0} if axes is None else normalized(axes, len(shape))
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return fields[0].move(lambda axis: None if axis in gone else kept.index(axis))


def get_item(call, fields):
    """Slices of the channels only; where a slice of the image begins, the graph does not say."""
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    positions = [axis.position for axis in fields[0].axes if axis.position is not None]
    same = len(shape) == len(out_shape) and all(shape[axis] == out_shape[axis] is not None for axis in positions)
    return fields[0] if same else None


def reduction(call, fields):
    """Mean, sum, maximum over axes: those of the image are mixed and gone."""
    rank = len(call.input_shapes[0])
    gone = normalized(getattr(call.layer, "axis", None), rank)
    field = fields[0].mix(gone)
    if getattr(call.layer, "keepdims", False):
        return field
    kept = [axis for axis in range(rank) if axis not in gone]
    return field.move(kept.index)


# Layers that mix positions -----------------------------------------------------------------------------------------


def dense(call, fields):
    return fields[0].mix({len(call.input_shapes[0]) - 1})


def einsum_dense(call, fields):
    source, rest = call.layer.equation.replace(" ", "").split(",")
    target = rest.split("->")[1]
    if source.startswith("...") or target.startswith("..."):
        # The ellipsis holds the leading axes of both sides; count the named ones from the back.
        rank = len(call.input_shapes[0])
        extra = [chr(0x100 + number) for number in range(rank - len(source.lstrip(".")))]
        source, target = "".join(extra) + source.lstrip("."), "".join(extra) + target.lstrip(".")
    contracted = {axis for axis, letter in enumerate(source) if letter not in target}
    field = fields[0].mix(contracted)
    return field.move(lambda axis: target.index(source[axis]))


def over_axis(call, fields):
    """Normalized over `axis`: whatever lies along it is mixed, and stays."""
    axis = getattr(call.layer, "axis", -1)
    return fields[0].mix(normalized(-1 if axis is None else axis, len(call.input_shapes[0])), keep=True)


def over_image(call, fields):
    """Statistics over all positions of one image."""
    return fields[0].mix(set(range(1, len(call.input_shapes[0]))), keep=True)


def attention(call, fields):
    """Every query meets every key; the local path is that of the query."""
    field, rank = fields[0], len(call.input_shapes[0])
    axes = set(getattr(call.layer, "_attention_axes", None) or range(1, rank - 1))
    if field is None:
        return first(fields).mix(set(range(1, rank)))
    return field.mix(axes, keep=True)


def recurrent(call, fields):
    return fields[0].mix({1}, keep=len(call.output_shapes[0]) == len(call.input_shapes[0]))


def mix_all(call, fields):
    """Everything meets everything, and no grid is left."""
    return first(fields).with_axes(Axis.mixed)


def average(call, fields):
    return merge(call, fields) if isinstance(call.layer, keras.layers.Layer) else reduction(call, fields)


# Wrappers ----------------------------------------------------------------------------------------------------------


def wrapper(call, fields):
    inner = call.layer.layer
    rule = lookup(inner)
    return None if rule is None else rule(dataclasses.replace(call, layer=inner, type=type(inner).__name__), fields)


def time_distributed(call, fields):
    """The inner layer's rule on every time step: axis 1 steps aside for the while."""
    rule = lookup(call.layer.layer)
    if rule is None or len(fields) != 1:
        return None
    inner = dataclasses.replace(
        call,
        layer=call.layer.layer,
        type=type(call.layer.layer).__name__,
        input_shapes=tuple((shape[0], *shape[2:]) for shape in call.input_shapes),
        output_shapes=tuple((shape[0], *shape[2:]) for shape in call.output_shapes),
    )
    aside = -1000  # a position that no inner rule touches
    field = rule(inner, (fields[0].move(lambda axis: aside if axis == 1 else axis - 1),))
    return None if field is None else field.move(lambda axis: 1 if axis == aside else axis + 1)


# The table ---------------------------------------------------------------------------------------------------------

_KINDS = {
    windowed: """
        BaseConv BaseDepthwiseConv BaseSeparableConv BasePooling Conv DepthwiseConv SeparableConv MaxPool
        AveragePool""",
    transposed: "BaseConvTranspose ConvTranspose",
    global_pool: "BaseGlobalPooling",
    adaptive_pool: "BaseAdaptivePooling AdaptiveAveragePool AdaptiveMaxPool",
    zero_padding: "ZeroPadding1D ZeroPadding2D ZeroPadding3D",
    cropping: "Cropping1D Cropping2D Cropping3D",
    center_crop: "CenterCrop",
    pad_operation: "Pad",
    up_sampling: "UpSampling1D UpSampling2D UpSampling3D",
    resizing: "Resizing Resize",
    depth_to_space: "DepthToSpace",
    space_to_depth: "SpaceToDepth",
    concatenate: "Concatenate",
    permute: "Permute Transpose Swapaxes",
    regroup: "Reshape Flatten Ravel",
    expand_dims: "ExpandDims",
    squeeze: "Squeeze",
    get_item: "GetItem",
    reduction: "Mean Sum Prod Max Min Amax Amin Std Var Any All Argmax Argmin Median Logsumexp CountNonzero",
    average: "Average",
    dense: "Dense",
    einsum_dense: "EinsumDense",
    over_axis: """
        LayerNormalization RMSNormalization UnitNormalization Softmax LogSoftmax Sparsemax Normalize LayerNorm RMSNorm
        Cumsum Cumprod""",
    over_image: "GroupNormalization AutoContrast Equalization CLAHE",
    attention: "MultiHeadAttention GroupQueryAttention Attention AdditiveAttention DotProductAttention",
    recurrent: "RNN Bidirectional",
    mix_all: "Dot Matmul Tensordot Einsum",
    wrapper: "SpectralNormalization",
    time_distributed: "TimeDistributed",
    # Element-wise, with one input or several.
    merge: """
        Add Subtract Multiply Maximum Minimum Divide TrueDivide DivideNoNan FloorDivide Power Mod Where Arctan2 Hypot
        Activation ReLU LeakyReLU ELU PReLU Dropout BaseSpatialDropout GaussianNoise GaussianDropout AlphaDropout
        ActivityRegularization BatchNormalization Rescaling Normalization Identity Masking LayerScale StochasticDepth
        CustomScaleLayer BaseImagePreprocessingLayer Discretization
        Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink SparsePlus Silu Squareplus LogSigmoid LeakyRelu
        HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink Threshold BatchNorm Rsqrt Erf Erfc
        Absolute Arccos Arcsin Arctan Cbrt Ceil Clip Conjugate Copy Cos Cosh Equal Exp Exp2 Expm1 Floor Greater
        GreaterEqual Isfinite Isinf Isnan Less LessEqual Log Log10 Log1p Log2 Logaddexp LogicalAnd LogicalNot LogicalOr
        Negative NotEqual Reciprocal Round Sign Sin Sinh Sqrt Square Tan Tanh Trunc NanToNum OnesLike ZerosLike
        StopGradient Cast SaturateCast ConvertToTensor Select""",
}  # fmt: skip
RULES = {name: rule for rule, names in _KINDS.items() for name in names.split()}

# At inference these cut or resize in a way that depends on the image's aspect, or are not local at all.
UNREADABLE = {"RandomCrop", "AugMix", "RandAugment", "ConvLSTM", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Lambda"}


def lookup(layer, rules=None):
    """The rule for a layer, or None. `rules` {class or class name: rule} come first and apply to any class."""
    mro = type(layer).__mro__
    if rules:
        for cls in mro:
            rule = rules.get(cls) or rules.get(cls.__name__)
            if rule is not None:
                return rule
    for cls in mro:
        if cls.__module__.split(".")[0] == "keras":
            if cls.__name__ in UNREADABLE:
                return None
            if cls.__name__ in RULES:
                return RULES[cls.__name__]
    return None


# Rules that can do with a first input that sees nothing of the image.
TAKES_NONE = {merge, average, concatenate, attention, mix_all}
