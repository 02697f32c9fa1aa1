"""Rules of layers with a window: convolution, pooling, padding, cropping, resizing; and what rules ask of a layer."""

import keras
import numpy as np

from .lines import Step, adaptive_window, resize_window, shift, transposed_window, window


def data_format(layer):
    """Where a layer, or the one that it wraps, has its channels; None where it does not say."""
    inner = getattr(layer, "layer", None) or getattr(layer, "forward_layer", None)
    return getattr(layer, "data_format", None) or getattr(inner, "data_format", None)


def channel_axis(layer, rank):
    """The tensor axis of the channels; where time is axis 1, they come after it."""
    if (data_format(layer) or keras.config.image_data_format()) == "channels_last":
        return rank - 1
    timed = keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D, keras.layers.TimeDistributed
    return 2 if isinstance(getattr(layer, "forward_layer", layer), timed) else 1


def spatial_axes(layer, rank):
    """Tensor axes that are neither batch nor channels, from the layer's data format."""
    channels = channel_axis(layer, rank)
    return tuple([axis for axis in range(1, rank) if axis != channels])


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


def stepped(call, fields, steps):
    """Apply `steps`, one a spatial axis of the first input."""
    out_shape = call.output_shapes[0]
    axes = spatial_axes(call.layer, len(call.input_shapes[0]))
    return fields[0].step(dict(zip(axes, steps, strict=True)), {axis: out_shape[axis] for axis in axes})


def shifted(call, fields, starts):
    """Output o is input o + start, along each spatial axis."""
    return stepped(call, fields, [shift(start) for start in starts])


def mixed_channels(call, field):
    shape = call.input_shapes[0]
    return field.mix({channel_axis(call.layer, len(shape))}, shape, call.path, stays=True)


def pointwise(call, fields):
    """Colours into colours."""
    return mixed_channels(call, fields[0])


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
    strides = getattr(layer, "strides", 1)
    strides = per_axis(kernel if strides is None else strides, count)
    dilation = per_axis(getattr(layer, "dilation_rate", 1) or 1, count)
    steps = [
        window(k, s, d, getattr(layer, "padding", "same"), shape[axis])
        for axis, k, s, d in zip(axes, per_axis(kernel, count), strides, dilation, strict=True)
    ]
    field = stepped(call, fields, steps)
    if "Pool" in call.type or call.type == "GaussianBlur":
        return field
    # After a join the channels differ, and after a Permute their axis may be one of the image's.
    last, out_shape = channel_axis(layer, len(shape)), call.output_shapes[0]
    count, made = shape[last], out_shape[last]
    if last not in field.positions or count is None or "Separable" in call.type:
        return mixed_channels(call, field)
    if "Depthwise" in call.type or hasattr(layer, "depth_multiplier"):
        groups = count
    else:
        groups = getattr(layer, "groups", None) or count // call.operand_shapes[1][-2]
    if groups == 1:
        return mixed_channels(call, field)
    return field.step({last: Step(count // groups, (range(count // groups),) * (made // groups))}, {last: made})


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
    return mixed_channels(call, stepped(call, fields, steps))


def global_pool(call, fields):
    shape = call.input_shapes[0]
    axes = spatial_axes(call.layer, len(shape))
    return removed(fields[0].mix(set(axes), shape, call.path), axes, call)


def removed(field, axes, call):
    """The field once tensor axes are gone or, where the output keeps its rank, of length 1."""
    rank = len(call.input_shapes[0])
    kept = [axis for axis in range(rank) if axis not in axes]
    if len(call.output_shapes[0]) == rank:
        return field.move(lambda axis: None if axis in axes else axis)
    return field.move(lambda axis: None if axis in axes else kept.index(axis))


def adaptive_pool(call, fields):
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(call.layer, len(shape))
    if [out_shape[axis] for axis in axes] != list(per_axis(call.layer.output_size, len(axes))):
        return None  # Keras 3.15 describes keras.ops.adaptive_average_pool without data_format as channels first
    field = fields[0].mix({axis for axis in axes if out_shape[axis] == 1}, shape, call.path)
    if any(shape[axis] is None for axis in axes if out_shape[axis] != 1):
        return None
    return stepped(call, (field,), [adaptive_window(shape[a] or 1, out_shape[a]) for a in axes])


def margins(call, fields):
    """Zeros around the image, or its edges cut off."""
    layer, count = call.layer, len(spatial_axes(call.layer, len(call.input_shapes[0])))
    if hasattr(layer, "cropping"):
        return shifted(call, fields, [before for before, _ in pairs(layer.cropping, count)])
    return shifted(call, fields, [-before for before, _ in pairs(layer.padding, count)])


def center_crop(call, fields):
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(call.layer, len(shape))
    if any(shape[axis] is not None and shape[axis] < out_shape[axis] for axis in axes):
        return None  # then the layer resizes
    return shifted(call, fields, [None if shape[a] is None else (shape[a] - out_shape[a]) // 2 for a in axes])


def pad_operation(call, fields):
    shape, out_shape, mode = call.input_shapes[0], call.output_shapes[0], getattr(call.layer, "mode", "constant")
    widths = pairs(call.layer.pad_width, len(shape))
    widths = widths * len(shape) if len(widths) == 1 else widths
    field = fields[0]
    for axis in sorted(field.positions):
        if mode == "constant":
            field = field.step({axis: shift(-widths[axis][0])}, {axis: out_shape[axis]})
        elif shape[axis] is None:
            return None
        elif any(widths[axis]):
            field = field.take(axis, np.pad(np.arange(shape[axis]), widths[axis], mode).tolist())
    return field


def image_margins(call, fields):
    """keras.ops.image.crop_images, pad_images."""
    layer, crops = call.layer, call.type == "CropImages"
    shape, out_shape = call.input_shapes[0], call.output_shapes[0]
    starts = []
    for axis, (before, after) in zip(
        spatial_axes(layer, len(shape)), (("top", "bottom"), ("left", "right")), strict=True
    ):
        start, stop = (getattr(layer, f"{side}_{'cropping' if crops else 'padding'}") for side in (before, after))
        if start is None and shape[axis] is not None and out_shape[axis] is not None:
            start = abs(shape[axis] - out_shape[axis]) - stop
        starts.append(start if crops or start is None else -start)
    return shifted(call, fields, starts)


def up_sampling(call, fields):
    axes = spatial_axes(call.layer, len(call.input_shapes[0]))
    interpolation = getattr(call.layer, "interpolation", "nearest")
    return stepped(call, fields, [resize_window(1, s, interpolation) for s in per_axis(call.layer.size, len(axes))])


def resizing(call, fields):
    layer, shape, out_shape = call.layer, call.input_shapes[0], call.output_shapes[0]
    axes = spatial_axes(layer, len(shape))
    if not fields[0].positions & set(axes):
        return fields[0]
    if any(shape[axis] is None or out_shape[axis] is None for axis in axes):
        return None
    sizes, wanted, field = [shape[axis] for axis in axes], [out_shape[axis] for axis in axes], fields[0]
    crops = getattr(layer, "crop_to_aspect_ratio", False)
    if crops or getattr(layer, "pad_to_aspect_ratio", False):
        starts, lengths = [], []
        for at, size in enumerate(sizes):  # as Keras rounds it
            other = int(sizes[1 - at] * wanted[at] / wanted[1 - at])
            margin = int((size - max(min(size, other), 1)) / 2) if crops else -int((max(size, other) - size) / 2)
            starts.append(shift(margin))
            lengths.append(max(min(size, other), 1) if crops else size - 2 * margin)
        field, sizes = field.step(dict(zip(axes, starts, strict=True)), dict(zip(axes, lengths, strict=True))), lengths
    how = layer.interpolation, getattr(layer, "antialias", False)
    steps = [resize_window(size, out, *how) for size, out in zip(sizes, wanted, strict=True)]
    return stepped(call, (field,), steps)


def depth_to_space(call, fields):
    return stepped(call, (mixed_channels(call, fields[0]),), [resize_window(1, call.layer.block_size, "nearest")] * 2)


def space_to_depth(call, fields):
    size = call.layer.block_size
    return stepped(call, fields, [Step(size, (range(size),))] * 2)


def recurrent_convolution(call, fields):
    """A convolution of each frame; the state is convolved again at each later one."""
    layer, shape = call.layer, call.input_shapes[0]
    rank, steps = len(shape), shape[1]
    axes = [axis for axis in spatial_axes(layer, rank) if axis > 1]
    settings = [per_axis(value, len(axes)) for value in (layer.kernel_size, layer.strides, layer.dilation_rate)]
    field = mixed_channels(call, fields[0]).step(
        {axis: window(k, s, d, layer.padding, shape[axis]) for axis, k, s, d in zip(axes, *settings, strict=True)}, {}
    )
    if steps is None:
        field = field.mix(set(axes), shape, call.path, keep=True)
    else:
        again = {}
        for axis, kernel in zip(axes, settings[0], strict=True):
            before, times = (kernel - 1) // 2, steps - 1
            again[axis] = Step(1, (range(-before * times, (kernel - 1 - before) * times + 1),))
        field = field.step(again, {})
    return mixed_steps(call, field)


def mixed_steps(call, field):
    """Every step is mixed with the others; all of them are given, or the last one."""
    shape = call.input_shapes[0]
    keep = len(call.output_shapes[0]) == len(shape)
    field = field.mix({1}, shape, call.path, keep=keep)
    return field if keep else removed(field, {1}, call)


def difference(call, fields):
    axis = call.layer.axis % len(call.input_shapes[0])
    return fields[0].step({axis: window(call.layer.n + 1)}, {axis: call.output_shapes[0][axis]})


def glu(call, fields):
    axis = call.layer.axis % len(call.input_shapes[0])
    half = call.output_shapes[0][axis]
    if half is None:
        return None
    return fields[0].step({axis: Step(1, ((0, half),))}, {axis: half})
