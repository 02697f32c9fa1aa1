"""Rules of operations that only say which element goes where: slices, joins, reshapes, transposes, copies, patches.

What they do is an index map, and the field follows it exactly: an axis may be cropped, strided, turned round, repeated,
split, merged and moved. An axis whose sizes are unknown can be cropped and moved only.
"""

import math

import keras
import numpy as np

from .algebra import Field, join, reshape, sequence
from .lines import Line, Step, merged, shift, window
from .windows import channel_axis, mixed_channels, normalized, per_axis, spatial_axes, stepped


def repeat(call, fields):
    repeats, axis, shape = call.layer.repeats, call.layer.axis, call.input_shapes[0]
    if axis is None or (np.ndim(repeats) and shape[axis] is None):
        return None
    axis %= len(shape)
    if np.ndim(repeats) and axis in fields[0].positions:
        return fields[0].take(axis, np.repeat(np.arange(shape[axis]), repeats).tolist())
    return fields[0].step({axis: Step(1, ((0,),) * int(np.max(repeats)))}, {axis: call.output_shapes[0][axis]})


def tile(call, fields):
    """Every copy is the same: index o reads o modulo the length."""
    out_shape = call.output_shapes[0]
    missing = len(out_shape) - len(call.input_shapes[0])
    shape = (1,) * missing + call.input_shapes[0]
    field = fields[0].move(lambda axis: axis + missing)
    for axis in field.positions:
        if shape[axis] is None:
            return None
        if shape[axis] != out_shape[axis]:
            field = field.step({axis: Step(0, tuple((at,) for at in range(shape[axis])))}, {axis: out_shape[axis]})
    return field


def flip(call, fields):
    return _turned_round(fields[0], normalized(call.layer.axis, len(call.input_shapes[0])), call.input_shapes[0])


def _turned_round(field, axes, shape):
    steps = {axis: Step(-1, (((shape[axis] or 1) - 1,),), shape[axis] is not None) for axis in axes}
    return field.step(steps, dict(enumerate(shape)))


def rot90(call, fields):
    shape, turns = call.input_shapes[0], call.layer.k % 4
    one, two = (axis % len(shape) for axis in call.layer.axes)
    if turns % 2 == 0 and shape != call.output_shapes[0]:
        return None  # Keras 3.15 describes half a turn as if it exchanged the sides
    field = _turned_round(fields[0], {0: (), 1: (two,), 2: (one, two), 3: (one,)}[turns], shape)
    return field.move(lambda axis: {one: two, two: one}.get(axis, axis)) if turns % 2 else field


def roll(call, fields):
    shape, axes, field = call.input_shapes[0], call.layer.axis, fields[0]
    if axes is None:
        return None
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis, by in zip(axes, per_axis(call.layer.shift, len(axes)), strict=True):
        axis %= len(shape)
        if axis in field.positions:
            if shape[axis] is None:
                return None
            field = field.take(axis, [(at - by) % shape[axis] for at in range(shape[axis])])
    return field


def patches(call, fields):
    """Windows whose pixels lie in the channels: row by row, then the channels of the input."""
    layer, shape, out_shape = call.layer, call.input_shapes[0], call.output_shapes[0]
    axes, last = spatial_axes(layer, len(shape)), channel_axis(layer, len(shape))
    size, strides = per_axis(layer.size, len(axes)), per_axis(layer.strides or layer.size, len(axes))
    dilation = per_axis(layer.dilation_rate or 1, len(axes))
    steps = [
        window(k, s, d, layer.padding, shape[axis]) for axis, k, s, d in zip(axes, size, strides, dilation, strict=True)
    ]
    field = mixed_channels(call, fields[0])
    simple = all(
        len(branch) == 1 and branch[0][0] in axes and len(branch[0][1].lows) == 1 and not branch[0][1].finite
        for axis in field.axes
        for branch in axis.branches
    )
    if not simple or shape[last] is None:
        return stepped(call, (field,), steps)

    def spread(position, line):
        at = axes.index(position)
        digits = [Line(0)] * len(axes) + [Line(0)]
        digits[at] = Line(line.pixels * dilation[at])
        inner = digits[0]
        for count, digit in zip((*size[1:], shape[last]), digits[1:], strict=True):
            inner = merged(inner, digit, count)
        corner = steps[at]._replace(taps=((steps[at].taps[0][0],),))
        return (position, line.through(corner, out_shape[position])), (last, inner)

    axes_out = [axis._replace(branches=tuple(spread(*branch[0]) for branch in axis.branches)) for axis in field.axes]
    return field._replace(axes=tuple(axes_out))


def merge(call, fields):
    """Element by element, with NumPy's broadcasting: missing axes are added in front."""
    out_shape = call.output_shapes[0]
    if call.type == "Where" and call.call_args[-1] is None:
        return None  # the indices of what is true
    lined_up = []
    for field, shape in zip(fields, call.input_shapes, strict=True):
        if field is not None:
            if shape != out_shape:
                missing = len(out_shape) - len(shape)
                field = field.move(lambda axis, missing=missing: axis + missing) if missing else field
                field = field.stretch((1,) * missing + shape, out_shape)
            lined_up.append(field)
    return join(lined_up, call.path)


def operands(call, fields):
    """(field or None, shape) of all tensors of a call, constants too, in their order."""
    leaves = [leaf for leaf in keras.tree.flatten(call.call_args) if hasattr(leaf, "shape")]
    if len(leaves) <= len(fields):
        return list(zip(fields, call.input_shapes, strict=True))
    given = iter(zip(fields, call.input_shapes, strict=True))
    return [next(given) if isinstance(leaf, keras.KerasTensor) else (None, tuple(leaf.shape)) for leaf in leaves]


def concatenate(call, fields):
    if isinstance(call.call_args[0], keras.KerasTensor):
        return None  # one tensor, whose parts along the batch are joined
    axis = {"Hstack": 1, "Vstack": 0}.get(call.type, getattr(call.layer, "axis", -1))
    if axis is None or len(call.output_shapes[0]) < 3:
        return None
    axis %= len(call.output_shapes[0])
    fields, shapes = zip(*operands(call, fields), strict=True)
    return _one_after_another(call, fields, [shape[axis] for shape in shapes], axis)


def stack(call, fields):
    if isinstance(call.call_args[0], keras.KerasTensor):
        return None
    axis = call.layer.axis % len(call.output_shapes[0])
    fields = [field and field.move(lambda at: at + (at >= axis)) for field, _ in operands(call, fields)]
    return _one_after_another(call, fields, [1] * len(fields), axis)


def _one_after_another(call, fields, lengths, axis):
    starts = None if None in lengths else [sum(lengths[:at]) for at in range(len(lengths))]
    apart = starts is None or any(field is not None and field.moves_along(axis) for field in fields)
    moved = []
    for number, field in enumerate(fields):
        if field is not None and apart:
            place = {axis: shift(starts and -starts[number])} if axis in field.positions else {}
            moved.append(field.step(place, {axis: call.output_shapes[0][axis]}))
        elif field is not None:  # what told its channels apart
            moved.append(field.mix({axis}, {axis: lengths[number]}))
    joined = join(moved, call.path)
    if starts is None or (len(moved) == len(fields) and all(one == moved[0] for one in (moved if apart else fields))):
        return joined
    axes, conflicts = [], joined.conflicts
    for number, found in enumerate(joined.axes):
        exact = sequence(found, [field and field.axes[number] for field in fields], lengths, axis, apart)
        if exact != found and (apart or exact.positions == {axis}):  # other features, not other ways to one
            conflicts = tuple(one for one in conflicts if (one.layer, one.axis) != (call.path, number))
        axes.append(exact)
    return Field(tuple(axes), conflicts, joined.lost)


def split(call, fields):
    axis, sections = call.layer.axis % len(call.input_shapes[0]), call.layer.indices_or_sections
    if isinstance(sections, int):
        lengths = [shape[axis] for shape in call.output_shapes]
        if None in lengths:
            return None
        starts = [sum(lengths[:at]) for at in range(len(lengths))]
    else:
        starts = [0, *(int(at) for at in sections)]
    return [
        fields[0].step({axis: shift(start)}, {axis: shape[axis]})
        for start, shape in zip(starts, call.output_shapes, strict=True)
    ]


def unstack(call, fields):
    axis = call.layer.axis % len(call.input_shapes[0])
    return [_picked(fields[0], axis, at) for at in range(len(call.output_shapes))]


def _picked(field, axis, index):
    """One index of a tensor axis; the axis is gone."""
    field = field.step({axis: shift(index)}, {axis: 1})
    return field.move(lambda at: None if at == axis else at - (at > axis))


def _second(call):
    return (*call.call_args, *call.call_kwargs.values())[1]


def get_item(call, fields):
    """x[key]: slices with or without a step, whole numbers, None and Ellipsis; lists of numbers pick one by one."""
    key, shape = _second(call), call.input_shapes[0]
    key = list(key) if isinstance(key, tuple) else [key]
    given = sum(entry is not None and entry is not Ellipsis for entry in key)
    where = next((at for at, entry in enumerate(key) if entry is Ellipsis), len(key))
    key[where : where + 1] = [slice(None)] * (len(shape) - given)
    field, axis, place, moves = fields[0], 0, 0, {}
    for entry in key:
        if entry is None:
            place += 1
            continue
        length = shape[axis]
        seen = axis in field.positions
        if isinstance(entry, slice):
            if seen and entry != slice(None):
                field = _sliced(field, axis, entry, length)
        elif np.ndim(entry) == 0 and hasattr(entry, "__index__"):
            if seen:
                index = int(entry) if length is None else int(entry) % length
                field = field.step({axis: shift(None if index < 0 else index)}, {axis: 1})
            moves[axis] = None
            axis += 1
            continue
        elif seen or not isinstance(entry, list | np.ndarray):
            return None
        moves[axis] = place
        axis, place = axis + 1, place + 1
    return field.move(moves.get)


def _sliced(field, axis, entry, length):
    if length is None:
        step, start = entry.step or 1, entry.start
        if start is None:
            start = 0 if step > 0 else None
        return field.step({axis: Step(step, ((start or 0,),), start is not None and start >= 0)}, {axis: None})
    taken = range(*entry.indices(length))
    return field.step({axis: Step(taken.step, ((taken.start,),))}, {axis: len(taken)})


def slice_operation(call, fields):
    steps = {axis: shift(int(start)) for axis, start in enumerate(_second(call)) if axis in fields[0].positions}
    return fields[0].step(steps, dict(enumerate(call.output_shapes[0])))


def take(call, fields):
    shape, axis = call.input_shapes[0], call.layer.axis
    indices = _second(call)
    if axis is None or isinstance(indices, keras.KerasTensor) or fields[0] is None:
        return None
    axis, indices = axis % len(shape), np.asarray(indices)
    extra = indices.ndim - 1
    if axis not in fields[0].positions:
        return fields[0].move(lambda at: at + extra * (at > axis))
    if shape[axis] is None or indices.ndim > 1:
        return None
    if not indices.ndim:
        return _picked(fields[0], axis, int(indices) % shape[axis])
    return fields[0].take(axis, [int(at) % shape[axis] for at in indices])


def permute(call, fields):
    layer, axes = call.layer, np.empty(range(len(call.input_shapes[0])))  # its sides are the numbers of its axes
    if hasattr(layer, "dims"):
        axes = axes.transpose(0, *layer.dims)
    elif hasattr(layer, "axis1"):
        axes = axes.swapaxes(layer.axis1, layer.axis2)
    elif hasattr(layer, "source"):
        axes = np.moveaxis(axes, layer.source, layer.destination)
    else:
        axes = axes.transpose(layer.axes)
    return fields[0].move(axes.shape.index)


def regroup(call, fields):
    """Reshape and Flatten: axes are split, merged and found again."""
    shape, out_shape = call.input_shapes[0], list(call.output_shapes[0])
    if call.type == "Flatten" and call.layer.data_format == "channels_first":  # it puts the channels last
        last = len(shape) - 1
        shape = (shape[0], *shape[2:], shape[1])
        fields = [fields[0].move(lambda axis: last if axis == 1 else axis - (axis > 1))]
    if shape[0] is None and 0 not in fields[0].positions:
        shape = (1, *shape[1:])
    if out_shape.count(None) == 1 and None not in shape:
        place = out_shape.index(None)
        out_shape[place] = math.prod(shape) // math.prod(side for side in out_shape if side is not None)
    field = reshape(fields[0], shape, out_shape)
    if field is not None:
        return field
    return fields[0]._replace(
        lost=fields[0].lost or f"layer {call.path!r} reshapes axes of unknown size; pass input_size"
    )


def expand_dims(call, fields):
    rank = len(call.output_shapes[0])
    added = normalized(call.layer.axis, rank)
    kept = [axis for axis in range(rank) if axis not in added]
    return fields[0].move(kept.__getitem__)


def squeeze(call, fields):
    shape = call.input_shapes[0]
    axes = getattr(call.layer, "axis", None)
    gone = {a for a, size in enumerate(shape) if size == 1} if axes is None else normalized(axes, len(shape))
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return fields[0].move(lambda axis: None if axis in gone else kept.index(axis))
