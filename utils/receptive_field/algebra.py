"""The algebra of receptive fields: affine lines, one step of a layer, and the field of one tensor.

Along one axis, feature u of a tensor reads the input pixels low(u) ... high(u) with

    low(u) = stride * u - padding,   high(u) = low(u) + size - 1                                    (a Line)

and every local layer reads, for its output o, its own inputs scale * o + low ... scale * o + low + span (a Step).
Putting a step behind a line gives a line again (Araujo, Norris, Sim, "Computing receptive fields of convolutional
neural networks", Distill 2019, equations 3 to 5, with dilation as an effective kernel of d * (k - 1) + 1).

Transposed convolutions and up-sampling read a set that repeats with a period instead of moving evenly. Their lines have
a fractional stride and are the tightest pair of lines around that set, so sizes and regions behind them are bounds.
"""

import dataclasses
import math
from fractions import Fraction


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """Input pixels that feature u reads along one axis; `padding` is None where the input size would decide it."""

    stride: int | Fraction = 1
    size: int | Fraction = 1
    padding: int | Fraction | None = 0

    @property
    def center(self):
        """Centre of feature 0 in pixels, or None where the padding is unknown."""
        if self.padding is None:
            return None
        doubled = self.size - 1 - 2 * self.padding
        return doubled // 2 if doubled % 2 == 0 else Fraction(doubled) / 2

    def bounds(self, u):
        """First and last pixel (integers) of feature u; first > last where it reads none."""
        low = self.stride * u - self.padding
        return math.ceil(low), math.floor(low + self.size - 1)

    def pixels(self):
        """The largest number of pixels that a feature reads: `size` but for fractional strides."""
        if isinstance(self.size, int) and isinstance(self.stride, int):
            return self.size
        stride, size, padding = Fraction(self.stride), Fraction(self.size), Fraction(self.padding or 0)
        counts = []
        for u in range(stride.denominator):
            low = stride * u - padding
            counts.append(math.floor(low + size - 1) - math.ceil(low) + 1)
        return max(counts)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What one layer reads along one axis: scale * o + low ... scale * o + low + span. `low` None: not known."""

    scale: int | Fraction = 1
    low: int | Fraction | None = 0
    span: int | Fraction = 0

    def behind(self, line):
        """The line of this layer's output, when `line` is that of its input."""
        known = line.padding is not None and self.low is not None
        return Line(
            line.stride * self.scale,
            line.size + line.stride * self.span,
            line.padding - line.stride * self.low if known else None,
        )


def same_padding(kernel, stride, length):
    """Zeros that SAME padding puts before the first element, or None where `length` would decide it.

    total = max((ceil(n / s) - 1) * s + k - n, 0), of which floor(total / 2) stand in front.

    Args:
        kernel: effective kernel size, dilation included.
        stride: stride.
        length: input length n, or None.

    Example:
        >>> same_padding(3, 2, 224), same_padding(3, 2, 225), same_padding(3, 1, None), same_padding(3, 2, None)
        (0, 1, 1, None)

    Source: TensorFlow's documentation of tf.nn ("Notes on padding").
    """
    if length is not None:
        return max((-(-length // stride) - 1) * stride + kernel - length, 0) // 2
    answers = {max(kernel - rest, 0) // 2 for rest in range(1, stride + 1)}
    return answers.pop() if len(answers) == 1 else None


def window(kernel, stride=1, dilation=1, padding="valid", length=None):
    """Step of a convolution or pooling; `padding` is "valid", "same", "causal" or a number of leading zeros."""
    effective = dilation * (kernel - 1) + 1
    if padding == "same":
        padding = same_padding(effective, stride, length)
    elif padding == "causal":
        padding = effective - 1
    elif padding == "valid":
        padding = 0
    return Step(stride, None if padding is None else -padding, effective - 1)


def transposed_window(kernel, stride, dilation, padding, length, out_length, output_padding=None):
    """Step of a transposed convolution: the inputs i with o = stride * i + dilation * j - crop for some tap j.

    The crop is the leading padding of the forward convolution whose gradient this is.
    """
    effective = dilation * (kernel - 1) + 1
    if padding == "valid":
        crop = 0
    elif length is not None and out_length is not None:
        crop = max((length - 1) * stride + effective - out_length, 0) // 2
    elif output_padding is None:
        crop = max(effective - stride, 0) // 2
    else:
        crop = max(effective - (effective - 2 * (effective // 2) + output_padding), 0) // 2
    return Step(Fraction(1, stride), Fraction(crop - effective + 1, stride), Fraction(effective - 1, stride))


RESIZE_RADIUS = {"bilinear": 1, "bicubic": 2, "lanczos3": 3, "lanczos5": 5}


def resize_window(length, out_length, interpolation="bilinear", antialias=False):
    """Step of a resize from `length` to `out_length` pixels with half-pixel centres."""
    ratio = Fraction(length, out_length)
    if interpolation == "nearest":  # floor((o + 1/2) * ratio)
        grain = Fraction(1, (ratio / 2).denominator)
        return Step(ratio, ratio / 2 - 1 + grain, 1 - grain)
    radius = RESIZE_RADIUS[interpolation] * (max(ratio, 1) if antialias else 1)
    # The source position is a multiple of the grain, and a pixel at the very edge of the kernel has weight zero.
    grain = Fraction(
        1, math.lcm(ratio.denominator, (ratio / 2 - Fraction(1, 2)).denominator, Fraction(radius).denominator)
    )
    return Step(ratio, ratio / 2 - Fraction(1, 2) - radius + grain, 2 * (radius - grain))


def adaptive_window(length, out_length):
    """Step of adaptive pooling: floor(o * n / m) ... ceil((o + 1) * n / m) - 1."""
    ratio = Fraction(length, out_length)
    grain = 1 - Fraction(1, ratio.denominator)
    return Step(ratio, -grain, ratio - 1 + 2 * grain)


def union(groups):
    """Lines that cover the lines of all groups: one line a stride, equal strides merged.

    Args:
        groups: iterable of tuples of Line.

    Returns:
        tuple of Line, the widest first. More than one: the union moves along more than one line.
    """
    by_stride = {}
    for lines in groups:
        for line in lines:
            by_stride.setdefault(line.stride, set()).add(line)
    merged = []
    for stride, lines in by_stride.items():
        if any(line.padding is None for line in lines):
            merged.append(Line(stride, max(line.size for line in lines), None))
        else:
            padding = max(line.padding for line in lines)
            merged.append(Line(stride, padding + max(line.size - line.padding for line in lines), padding))
    return tuple(sorted(merged, key=lambda line: (line.size, line.stride), reverse=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """Two branches that meet in `layer` and do not move together along `axis`.

    `what` is "stride" or "center"; `values` are those of the branches, in pixels of the input.
    """

    layer: str
    axis: int
    what: str
    values: tuple

    def __str__(self):
        values = " against ".join(format(float(value), "g") for value in self.values)
        return f"the branches of layer {self.layer!r} disagree along axis {self.axis}: {self.what} {values} pixels"


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a tensor, as far as the input's grid is concerned.

    Attributes:
        lines: the input pixels that a feature reads (tuple of Line).
        position: the tensor axis that indexes the features, or None where nothing does any more.
        flat: lengths of the tensor axes that were flattened into `position` (None: it is a grid axis of its own).
        length: number of features along the axis, or None.
        whole: something has mixed all positions of this axis.
    """

    lines: tuple = (Line(),)
    position: int | None = None
    flat: tuple | None = None
    length: int | None = None
    whole: bool = False

    def stepped(self, step, length):
        return Axis(tuple([step.behind(line) for line in self.lines]), self.position, self.flat, length, self.whole)

    def mixed(self, keep=False):
        """All positions mixed; `keep`: the axis stays (attention), otherwise it is gone (pooling, Dense on it)."""
        whole = self.whole or self.length != 1
        return dataclasses.replace(self, whole=whole) if keep else Axis(self.lines, None, None, 1, whole)


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """What one tensor sees of the input: an Axis for y, x (or t; or z, y, x), and the conflicts on the way to it."""

    axes: tuple
    conflicts: tuple = ()

    @property
    def whole_image(self):
        return any(axis.whole for axis in self.axes)

    def with_axes(self, change):
        """The field with `change(axis) -> Axis` applied to each axis."""
        return Field(tuple([change(axis) for axis in self.axes]), self.conflicts)

    def step(self, steps, lengths):
        """Apply `steps` {tensor axis: Step}; `lengths` {tensor axis: output length}."""

        def change(axis):
            if axis.position not in steps:
                return axis
            if axis.flat is not None:
                return axis.mixed()
            return axis.stepped(steps[axis.position], lengths.get(axis.position))

        return self.with_axes(change)

    def mix(self, positions, keep=False):
        """Mix everything along these tensor axes."""
        if not any(axis.position in positions for axis in self.axes):
            return self
        return self.with_axes(lambda axis: axis.mixed(keep) if axis.position in positions else axis)

    def move(self, new_position):
        """Rename tensor axes by `new_position(old) -> new` (None: the axis is gone, unmixed)."""
        return self.with_axes(
            lambda axis: (
                axis if axis.position is None else dataclasses.replace(axis, position=new_position(axis.position))
            )
        )


def join(fields, layer, lengths):
    """The union of several branches that meet element by element in `layer`.

    Args:
        fields: list of Field, one or more, whose tensor axes already line up.
        layer: name for the conflicts.
        lengths: {tensor axis: output length}.

    Returns:
        Field. Where branches differ in stride or centre, a Conflict is added and all their lines are kept.
    """
    if len(fields) == 1:
        return fields[0]
    conflicts = list(dict.fromkeys(conflict for field in fields for conflict in field.conflicts))
    axes = []
    for number, branches in enumerate(zip(*(field.axes for field in fields), strict=True)):
        if all(axis == branches[0] for axis in branches):
            axes.append(branches[0])
            continue
        whole = any(axis.whole for axis in branches)
        live = [axis for axis in branches if axis.position is not None]
        if not live:
            axes.append(Axis(union(axis.lines for axis in branches), None, None, 1, whole))
            continue
        first = live[0]
        if any((axis.position, axis.flat) != (first.position, first.flat) for axis in live):
            # The same grid lies along different tensor axes: every feature of one meets every feature of the other.
            axes.append(Axis(union(axis.lines for axis in branches), None, None, None, True))
            continue
        length = lengths.get(first.position) if first.flat is None else first.length
        groups = []
        for axis in branches:
            if axis.position is None and axis.whole:
                continue  # it sees the whole axis anyway, and the flag says so
            broadcast = axis.position is None or (axis.length == 1 and length is not None and length > 1)
            lines = tuple(Line(0, line.size, line.padding) for line in axis.lines) if broadcast else axis.lines
            groups.append(lines)
        conflict = _disagreement(groups, number, layer)
        if conflict is not None:
            conflicts.append(conflict)
        axes.append(Axis(union(groups), first.position, first.flat, length, whole))
    return Field(tuple(axes), tuple(conflicts))


def _disagreement(groups, axis, layer):
    strides = list(dict.fromkeys(lines[0].stride for lines in groups))
    if len(strides) > 1:
        return Conflict(layer, axis, "stride", tuple(strides))
    centers = list(dict.fromkeys(lines[0].center for lines in groups if lines[0].center is not None))
    return Conflict(layer, axis, "center", tuple(centers)) if len(centers) > 1 else None
