"""Receptive fields of any Keras 3 model: which pixels of the input a feature can see.

    >>> import keras
    >>> model = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(224, 224, 3))
    >>> receptive_field(model, "Conv_1")
    ReceptiveField(layer='Conv_1', size=(491, 491), stride=(32, 32), padding=(214, 214), aligned=True, \
whole_image=False)

Along each axis, feature u of a layer sees the pixels

    stride * u - padding   ...   stride * u - padding + size - 1

- `size`, `stride` and `padding` are tuples with one entry a spatial axis: (y, x) for images, (t,) for sequences,
  (z, y, x) for volumes. They are computed by composing the layers (utils.receptive_field.algebra), so they hold for any
  directed acyclic network; dilation, non-square kernels and strides, cropping and padding included.
- SAME padding of a strided layer depends on the input's size. Where that is unknown, `padding` and `aligned` are None.
- Branches that meet are joined as the union of what they see. They are aligned when they move with the same stride
  around the same centre; `conflicts` names the layers where they do not. `region` stays exact for the union.
- `whole_image`: something on the way mixes all positions (global pooling, squeeze-excite, attention, Flatten and
  Dense). Then every pixel can matter; size, stride and padding go on to describe the local path.
- Behind transposed convolutions and up-sampling, what a feature sees depends on its phase, and its stride is a
  fraction. Size, region and centre are then bounds that hold for every phase, exact where no strided layer comes
  before.
- Near the edges a region may hold pixels that zero padding inside the network keeps from being seen.

Everything refers to inference. Nothing is computed but shapes, and no weight is read.
Definitions: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill 2019.
"""

import dataclasses
import html
import math

import pandas as pd

from .algebra import Line
from .walk import Walk


@dataclasses.dataclass(frozen=True)
class Region:
    """A box of pixels (or of features): `start` belongs to it, `stop` does not.

    Attributes:
        start, stop: tuples (y, x).
        fraction_inside: the part of the unclipped box that lies inside the image, or None where its size is unknown.
    """

    start: tuple
    stop: tuple
    fraction_inside: float | None = None

    @property
    def slices(self):
        """For indexing an image: `photo[region.slices]`. Clip the region first: negative starts would wrap around."""
        return tuple(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def size(self):
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclasses.dataclass(frozen=True, repr=False)
class ReceptiveField:
    """What the features of one layer can see of the input; all tuples are (y, x).

    Attributes:
        size: pixels, of the widest feature.
        stride: pixels from one feature to the next.
        padding: pixels by which the first feature reaches over the input's edge (negative: it starts inside); None
            where the input size would decide it.
        aligned: whether all branches move together; None where a padding is unknown.
        whole_image: whether something on the way mixes all positions.
        layer: path of the layer.
        input_size: the input's size, None entries where unknown.
        grid: features along each axis, None where unknown or where no grid is left.
        conflicts: the joins at which branches disagree (tuple of Conflict).
        unsupported: paths of layers on the way that had no rule.
    """

    size: tuple
    stride: tuple
    padding: tuple
    aligned: bool | None
    whole_image: bool
    layer: str = ""
    input_size: tuple = ()
    grid: tuple = ()
    conflicts: tuple = ()
    unsupported: tuple = ()
    lines: tuple = dataclasses.field(default=(), compare=False)

    def center(self, *feature):
        """Centre of one feature's region, in pixels (the first pixel's centre is 0.0).

        Example:
            >>> field = ReceptiveField((3, 3), (2, 2), (1, 1), True, False)
            >>> field.center(0, 5)
            (0.0, 10.0)
        """
        return tuple((low + high) / 2 for low, high in self._bounds(feature))

    def region(self, *feature, clip=False):
        """The box of pixels that one feature can see.

        Args:
            *feature: index of the feature, (y, x).
            clip: cut the box at the image's edges (needs a known input size).

        Returns:
            Region; without `clip` it may reach outside the image, where there is only padding.

        Raises:
            ValueError: the padding or (with `clip`) the input size is unknown, or there is no such feature.

        Example:
            >>> ReceptiveField((3, 3), (2, 2), (1, 1), True, False).region(0, 5)
            Region(start=(-1, 9), stop=(2, 12), fraction_inside=None)
        """
        bounds = self._bounds(feature)
        boxes = [(low, high + 1) for low, high in bounds]
        known = len(self.input_size) == len(boxes) and None not in self.input_size
        inside = None
        if known:
            cut = [(min(max(a, 0), n), max(min(b, n), 0)) for (a, b), n in zip(boxes, self.input_size, strict=True)]
            area = math.prod(max(b - a, 0) for a, b in boxes)
            inside = math.prod(max(b - a, 0) for a, b in cut) / area if area else 0.0
        if clip:
            if not known:
                raise ValueError(
                    f"the region in {self.layer!r} cannot be clipped, as the input size is unknown; give input_size"
                )
            boxes = cut
        return Region(tuple(a for a, _ in boxes), tuple(b for _, b in boxes), inside)

    def features_at(self, *pixel):
        """The box of features that can see one pixel: the inverse of `region`.

        Args:
            *pixel: (y, x), integers.

        Returns:
            Region of features; empty (start == stop) where no feature sees the pixel.

        Raises:
            ValueError: the padding is unknown.

        Example:
            >>> ReceptiveField((3, 3), (2, 2), (1, 1), True, False).features_at(0, 9)
            Region(start=(0, 4), stop=(1, 6), fraction_inside=None)
        """
        self._check(pixel, "pixel")
        boxes = []
        for axis, position in enumerate(pixel):
            count = self.grid[axis] if axis < len(self.grid) else None
            found = [_features_of(line, position, count) for line in self._lines[axis]]
            found = [(first, last) for first, last in found if first <= last]
            if found:
                boxes.append((min(first for first, _ in found), max(last for _, last in found) + 1))
            else:
                boxes.append((0, 0))
        return Region(tuple(a for a, _ in boxes), tuple(b for _, b in boxes))

    @property
    def _lines(self):
        if self.lines:
            return self.lines
        return tuple((Line(*axis),) for axis in zip(self.stride, self.size, self.padding, strict=True))

    def _check(self, index, what):
        if len(index) != len(self.size):
            raise ValueError(
                f"{self.layer or 'the layer'!r} has {len(self.size)} spatial axes and {len(index)} numbers are no "
                f"{what} of it; give one number an axis, (y, x) for images"
            )
        if any(line.padding is None for lines in self._lines for line in lines):
            raise ValueError(
                f"the padding of {self.layer!r} is unknown, because SAME padding depends on the input's size; "
                "give input_size"
            )

    def _bounds(self, feature):
        self._check(feature, "feature")
        for u, count in zip(feature, self.grid or (None,) * len(feature), strict=True):
            if count is not None and not 0 <= u < count:
                raise ValueError(f"{self.layer!r} has {self.grid} features and none at {feature}; count from 0")
        answer = []
        for u, lines in zip(feature, self._lines, strict=True):
            bounds = [line.bounds(u) for line in lines]
            answer.append((min(low for low, _ in bounds), max(high for _, high in bounds)))
        return answer

    def to_frame(self):
        """One row a spatial axis: size, stride, padding in pixels."""
        names = _axis_names(len(self.size))
        return pd.DataFrame({"size_px": self.size, "stride_px": self.stride, "padding_px": self.padding}, index=names)

    def __repr__(self):
        text = (
            f"ReceptiveField(layer={self.layer!r}, size={self.size}, stride={self.stride}, padding={self.padding}, "
            f"aligned={self.aligned}, whole_image={self.whole_image}"
        )
        for name in ("conflicts", "unsupported"):
            if getattr(self, name):
                text += f", {name}={[str(entry) for entry in getattr(self, name)]}"
        return text + ")"

    def _repr_html_(self):
        aligned = {True: "aligned", False: "<b>not aligned</b>", None: "alignment unknown"}[self.aligned]
        whole = "; <b>something before it sees the whole image</b>, this is the local path" if self.whole_image else ""
        notes = "".join(f"<li>{html.escape(str(conflict))}</li>" for conflict in self.conflicts)
        notes += "".join(f"<li>no rule for {html.escape(path)}</li>" for path in self.unsupported)
        title = f"Receptive field of <code>{html.escape(self.layer)}</code>, {aligned}{whole}"
        return f"<p>{title}</p>{self.to_frame().to_html()}" + (f"<ul>{notes}</ul>" if notes else "")


def receptive_field(
    model, layer=None, input_size=None, *, input=None, require_aligned=False, rules=None, unsupported="warn"
):
    """The receptive field of one layer's output.

    Args:
        model: a Keras 3 model, built or not.
        layer: name or path ("backbone/block1/conv"; the second call of a shared layer is "conv:1"), or the layer
            itself. None: the model's output.
        input_size: side in pixels, or (y, x). None: the size that the model was built with.
        input: name of the input to look at, where a model has several; None takes them all as one grid.
        require_aligned: raise where branches disagree instead of reporting it.
        rules: {layer class or class name: rule} for layers of your own; see utils.receptive_field.rules.
        unsupported: what to do about a layer without a rule: "warn" (and treat it as element-wise where it keeps the
            grid, as seeing the whole image where it does not), "ignore", or "raise".

    Returns:
        ReceptiveField.

    Raises:
        ValueError: no such layer (names the nearest), no image input, sizes that do not fit, or, when asked for,
            branches that disagree (names the layer and both values) and layers without a rule.

    Example:
        >>> import keras
        >>> image = keras.Input((64, 48, 3))
        >>> model = keras.Model(image, keras.layers.Conv2D(8, (3, 5), strides=2, dilation_rate=1, name="conv")(image))
        >>> receptive_field(model)
        ReceptiveField(layer='conv', size=(3, 5), stride=(2, 2), padding=(0, 0), aligned=True, whole_image=False)
        >>> receptive_field(model).region(1, 1)
        Region(start=(2, 2), stop=(5, 7), fraction_inside=1.0)
    """
    walk = Walk(model, input_size, input, rules, unsupported)
    call = walk.find(layer)
    found = _result(walk, call)
    if found is None:
        raise ValueError(
            f"layer {call.path!r} sees nothing of the image, so it has no receptive field; name another layer"
        )
    if require_aligned and found.conflicts:
        raise ValueError(f"{found.conflicts[0]}; the network is not aligned")
    return found


def fields(model, input_size=None, *, input=None, rules=None, unsupported="ignore"):
    """The ReceptiveField of every layer call that sees the image, in execution order.

    Arguments and errors as in `receptive_field`, except that layers without a rule are not warned about.
    """
    walk = Walk(model, input_size, input, rules, unsupported)
    return [found for found in (_result(walk, call) for call in walk.calls) if found is not None]


def table(model, input_size=None, *, macs=True, input=None, rules=None, unsupported="warn"):
    """Receptive field of every layer, with its MACs beside it.

    Args:
        model, input_size, input, rules, unsupported: as in `receptive_field`.
        macs: whether to count multiply-accumulates (utils.flops); the column is missing otherwise.

    Returns:
        DataFrame, one row a layer call in execution order: layer, type, output_shape; size_y_px, size_x_px, stride_…,
        padding_… in pixels; aligned; whole_image; macs (<NA> where unknown, as without an input size).

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> table(model)[["layer", "size_y_px", "macs"]].to_dict("records")[-1]
        {'layer': 'conv', 'size_y_px': 3, 'macs': 3888}
    """
    walk = Walk(model, input_size, input, rules, unsupported)
    rows = []
    names = _axis_names(walk.rank)
    for call in walk.calls:
        found = _result(walk, call)
        row = {"layer": call.path, "type": call.type, "output_shape": call.output_shapes[0]}
        for what in ("size", "stride", "padding"):
            values = getattr(found, what) if found is not None else (None,) * walk.rank
            row.update({f"{what}_{name}_px": value for name, value in zip(names, values, strict=True)})
        row["aligned"] = found.aligned if found is not None else None
        row["whole_image"] = found.whole_image if found is not None else None
        rows.append(row)
    frame = pd.DataFrame(rows)
    if macs:
        frame["macs"] = _macs(model, walk)
    return frame


def _macs(model, walk):
    """MACs of each call of the walk, <NA> where they are unknown."""
    from .. import flops  # not at module level: a receptive field alone needs no cost rules

    if None in walk.input_size:
        return pd.array([None] * len(walk.calls), dtype="Int64")
    report = flops.count(model, input_shape=walk.shapes if walk.resized else None, unsupported="ignore")
    rows = {call.path: [] for call in walk.calls}
    for row in report.rows:
        # A wrapper is one call here; there its inner calls come first, each with a path behind the wrapper's.
        holder = next((path for path in _holders(row.path) if path in rows), None)
        if holder is None:
            raise ValueError(f"expected a layer {row.path!r} in {model.name!r} as in its cost report; pass macs=False")
        rows[holder].append(row.macs)
    known = [None if None in macs else sum(macs) for macs in rows.values()]
    return pd.array(known, dtype="Int64")


def _holders(path):
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(len(parts), 0, -1))


def _axis_names(rank):
    return {1: ("t",), 2: ("y", "x"), 3: ("z", "y", "x")}[rank]


def _features_of(line, position, count):
    """First and last index whose pixels hold `position`; last < first where there is none."""
    if line.stride == 0:
        low, high = line.bounds(0)
        return (0, count - 1) if low <= position <= high and count else (0, -1)
    first = math.ceil((position + line.padding - line.size + 1) / line.stride)
    last = math.floor((position + line.padding) / line.stride)
    return max(first, 0), last if count is None else min(last, count - 1)


def _plain(number):
    """An exact number as int where it is whole, else as float."""
    if number is None or isinstance(number, int):
        return number
    return int(number) if number.denominator == 1 else float(number)


def _result(walk, call):
    field = walk.fields.get(call.outputs[0])
    if field is None:
        return None
    lines = tuple(axis.lines for axis in field.axes)
    padding = tuple(_plain(axis[0].padding) for axis in lines)
    unknown = any(line.padding is None for axis in lines for line in axis)
    return ReceptiveField(
        size=tuple(max(line.pixels() for line in axis) for axis in lines),
        stride=tuple(_plain(axis[0].stride) for axis in lines),
        padding=padding,
        aligned=False if field.conflicts else None if unknown else True,
        whole_image=field.whole_image,
        layer=call.path,
        input_size=walk.input_size,
        grid=tuple(axis.length if axis.position is not None and axis.flat is None else None for axis in field.axes),
        conflicts=field.conflicts,
        unsupported=walk.unknown.get(call.outputs[0], ()),
        lines=lines,
    )
