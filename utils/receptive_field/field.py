"""Receptive fields of any Keras 3 model: which pixels of the input a feature can see.

    >>> import keras
    >>> model = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(224, 224, 3))
    >>> receptive_field(model, "Conv_1")
    ReceptiveField(layer='Conv_1', size=(491, 491), stride=(32, 32), padding=(214, 214), aligned=True, \
whole_image=False)

Along each axis, feature u of a layer sees the pixels

    stride * u - padding   ...   stride * u - padding + size - 1

- `size`, `stride` and `padding` have one entry a spatial axis: (y, x) for images, (t,) for sequences, (z, y, x) for
  volumes. They come from composing the layers (utils.receptive_field.lines), in any directed acyclic network.
- Slices, reshapes and transposes are followed as index maps. Tensors whose axes hold several axes of the image, like
  tokens and patches, are asked with one number for each.
- SAME padding of a strided layer depends on the input's size. Where that is unknown, `padding` and `aligned` are None.
- Branches that meet are joined as the union of what they see. They are aligned when they move with the same stride
  around the same centre; `conflicts` names the layers where they do not. `region` stays exact for the union.
- `whole_image`: something on the way mixes all positions (global pooling, squeeze-excite, attention, Flatten and
  Dense). Then size, stride and padding describe the local path. Where none is left, and behind a layer without a rule,
  they refuse with that layer's name.
- Behind transposed convolutions and up-sampling, `region` is exact for each phase, `size` is that of the widest, and
  `padding` is the least that covers all.
- Near the edges a region may hold pixels that zero padding inside the network keeps from being seen.

Everything refers to inference. Nothing is computed but shapes, and no weight is read.
Definitions: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill 2019.
"""

import dataclasses
import html
import math

import pandas as pd

from .algebra import Axis
from .lines import Line, plain
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
        grid: features along each axis, None where unknown or where no grid of its own is left.
        conflicts: the joins at which branches disagree (tuple of Conflict).
        unsupported: paths of layers on the way that had no rule.
        exact: False where size and region are bounds that may be too wide.
        lost: why size, stride, padding, region and center cannot be answered (reading them raises), or None.
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
    exact: bool = True
    lost: str | None = None
    axes: tuple = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        if self.lost is not None:
            for name in ("size", "stride", "padding"):
                object.__delattr__(self, name)  # so that reading it comes to __getattr__

    def __getattr__(self, name):
        if name in ("size", "stride", "padding"):
            raise ValueError(f"the {name} of {self.layer!r} is unknown: {self.lost}")
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

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
            *feature: index of the feature, (y, x); one for each tensor axis that `axes` names, where a reshape has put
                the image's axes elsewhere (one for tokens).
            clip: cut the box at the image's edges (needs a known input size).

        Returns:
            Region; without `clip` it may reach outside the image, where there is only padding.

        Raises:
            ValueError: the padding or (with `clip`) the input size is unknown, there is no such feature, or no grid of
                features is left (names the layer).

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
                    f"the region in {self.layer!r} cannot be clipped, as the input size is unknown; pass input_size"
                )
            boxes = cut
        return Region(tuple(a for a, _ in boxes), tuple(b for _, b in boxes), inside)

    @property
    def _axes(self):
        if self.axes:
            return self.axes
        lines = zip(self.stride, self.size, self.padding, strict=True)
        return tuple(
            Axis((((number, Line(stride, (-(padding or 0),), (size - 1 - (padding or 0),), padding is not None)),),))
            for number, (stride, size, padding) in enumerate(lines)
        )

    @property
    def places(self):
        """The tensor axes that number a feature: one for each of the image's, or all that hold any of them."""
        everywhere, places = set().union(*(axis.positions for axis in self._axes)), _places(self._axes)
        told = all(place is not None or not axis.positions for place, axis in zip(places, self._axes, strict=True))
        return places if told and everywhere <= set(places) else sorted(everywhere)

    def _check(self):
        if self.lost is not None:
            raise ValueError(f"what {self.layer!r} sees is unknown: {self.lost}")
        for axis in self._axes:
            if axis.whole and not axis.positions:
                raise ValueError(f"{self.layer!r} has no grid of features left, as {axis.mixer!r} mixes all positions")
        if not all(line.known for axis in self._axes for line in axis.lines):
            raise ValueError(
                f"the padding of {self.layer!r} is unknown, because SAME padding depends on the input's size; "
                "pass input_size"
            )

    def _bounds(self, feature):
        self._check()
        places = self.places
        if len(feature) != len(places):
            raise ValueError(
                f"a feature of {self.layer or 'the layer'!r} has {len(places)} indices, one for each spatial axis, "
                f"(y, x) for images; got {len(feature)}"
            )
        if any(not hasattr(u, "__index__") for u in feature):
            raise ValueError(f"a feature's indices must be whole numbers, got {feature}")
        counts = self.grid if len(self.grid) == len(feature) else ()
        if any(count is not None and not 0 <= u < count for u, count in zip(feature, counts, strict=False)):
            raise ValueError(f"{self.layer!r} has {self.grid} features and none at {feature}; count from 0")
        at = dict(zip(places, feature, strict=True))
        answer = []
        for axis in self._axes:
            sums = [[line.at(at.get(place, 0)) for place, line in branch] for branch in axis.branches]
            sums = [(sum(low for low, _ in one), sum(high for _, high in one)) for one in sums]
            seen = [(low, high) for low, high in sums if low <= high] or [(0, -1)]
            answer.append((min(low for low, _ in seen), max(high for _, high in seen)))
        return answer

    def to_frame(self):
        """One row a spatial axis: size, stride, padding in pixels."""
        names = _axis_names(len(self.size))
        return pd.DataFrame({"size_px": self.size, "stride_px": self.stride, "padding_px": self.padding}, index=names)

    @property
    def _notes(self):
        """Sentences on what the numbers do not say."""
        notes = [str(conflict) for conflict in self.conflicts[:3]]
        if len(self.conflicts) > 3:
            notes.append(f"and {len(self.conflicts) - 3} more conflicts, the last in {self.conflicts[-1].layer!r}")
        return notes + [f"no rule for {path}" for path in self.unsupported]

    def __repr__(self):
        if self.lost is not None:
            return f"ReceptiveField(layer={self.layer!r}, unknown: {self.lost})"
        most = "" if self.exact else "at most "
        text = (
            f"ReceptiveField(layer={self.layer!r}, size={most}{self.size}, stride={self.stride}, "
            f"padding={self.padding}, aligned={self.aligned}, whole_image={self.whole_image}"
        )
        return text + (f", notes={self._notes}" if self._notes else "") + ")"

    def _repr_html_(self):
        title = f"Receptive field of <code>{html.escape(self.layer)}</code>, "
        if self.lost is not None:
            return f"<p>{title}<b>unknown</b>: {html.escape(self.lost)}</p>"
        aligned = {True: "aligned", False: "<b>not aligned</b>", None: "alignment unknown"}[self.aligned]
        aligned += "" if self.exact else "; sizes are <b>at most</b> these"
        whole = "; <b>something before it sees the whole image</b>, this is the local path" if self.whole_image else ""
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._notes)
        return f"<p>{title}{aligned}{whole}</p>{self.to_frame().to_html()}" + (f"<ul>{notes}</ul>" if notes else "")


def receptive_field(
    model,
    layer=None,
    input_size=None,
    *,
    input=None,
    output=None,
    require_aligned=False,
    rules=None,
    unsupported="warn",
):
    """The receptive field of one layer's output.

    Args:
        model: a Keras 3 model, built or not. One that is not is built for RGB images of `input_size`; where all its
            layers are Keras' own or have a `get_config`, that is a copy.
        layer: name or path ("backbone/block1/conv"; the second call of a shared layer is "conv:1"), or the layer
            itself. None: the model's output.
        input_size: side in pixels, or one for each axis: (t,), (y, x), (z, y, x). None: the size that the model was
            built with.
        input: name of the input to look at, where a model has several; None takes them all as one grid.
        output: number of the output, where the layer (or, without `layer`, the model) has several.
        require_aligned: raise where branches disagree instead of reporting it.
        rules: {layer class or class name: rule} for layers of your own; see utils.receptive_field.rules. `rules.merge`
            is the rule for a layer that treats every position for itself.
        unsupported: what to do about a layer without a rule: "warn" (what comes after it is unknown), "ignore" (the
            same, without a word), or "raise".

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
    call, number = walk.find(layer, output)
    found = result_of(walk, call, number)
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
    return [found for found in (result_of(walk, call, walk.shown(call)) for call in walk.calls) if found is not None]


def table(model, input_size=None, *, macs=True, input=None, rules=None, unsupported="warn"):
    """Receptive field of every layer, with its MACs beside it.

    Args:
        model, input_size, input, rules, unsupported: as in `receptive_field`.
        macs: whether to count multiply-accumulates (utils.flops); the column is missing otherwise.

    Returns:
        DataFrame, one row a layer call in execution order: layer, type, output_shape; size_y_px, size_x_px, stride_…,
        padding_… in pixels; aligned; whole_image; note, where some row needs one (why its field is unknown, or
        that it is a bound); macs (<NA> where unknown, as without an input size).

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> table(model)[["layer", "size_y_px", "macs"]].to_dict("records")[-1]
        {'layer': 'conv', 'size_y_px': 3, 'macs': 3888}
    """
    walk = Walk(model, input_size, input, rules, unsupported)
    names = [f"{what}_{axis}_px" for what in ("size", "stride", "padding") for axis in _axis_names(walk.rank)]
    rows, notes = [], []
    for call in walk.calls:  # no ReceptiveField for each, which would take half of the time
        number = walk.shown(call)
        key, shape = call.outputs[number], call.output_shapes[number]
        field, numbers, aligned, whole, note = walk.fields.get(key), (None,) * len(names), None, None, ""
        if field is not None:
            size, stride, padding, _, known, exact, whole, _ = _summary(walk, key, shape)
            numbers = numbers if field.lost else (*size, *stride, *padding)
            aligned = _aligned(field, known)
            note = field.lost or ("" if exact else "sizes are at most these")
        rows.append((call.path, call.type, (walk.batch, *shape[1:]), *numbers, aligned, whole))
        notes.append(note)
    frame = pd.DataFrame(rows, columns=["layer", "type", "output_shape", *names, "aligned", "whole_image"])
    if any(notes):
        frame["note"] = notes
    if macs:
        frame["macs"] = _macs(walk)
    return frame


def _macs(walk):
    """MACs of each call of the walk, <NA> where they are unknown."""
    from .. import flops  # not at module level: a receptive field alone needs no cost rules

    if None in walk.input_size:
        return pd.array([None] * len(walk.calls), dtype="Int64")
    report = flops.count(walk.model, input_shape=walk.shapes, unsupported="ignore")
    name, rows = walk.model.name, {call.path: [] for call in walk.calls}
    for row in report.rows:
        # A wrapper is one call here; there its inner calls come first, each with a path behind the wrapper's.
        holder = next((path for path in _holders(row.path) if path in rows), None)
        if holder is None:
            raise ValueError(f"expected a layer {row.path!r} in {name!r} as in its cost report; pass macs=False")
        rows[holder].append(row.macs)
    known = [None if None in macs else sum(macs) for macs in rows.values()]
    return pd.array(known, dtype="Int64")


def _holders(path):
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(len(parts), 0, -1))


def _axis_names(rank):
    return {1: ("t",), 2: ("y", "x"), 3: ("z", "y", "x")}[rank]


def result_of(walk, call, number):
    """The ReceptiveField of one output of a call, None where it sees nothing of the image."""
    key, shape = call.outputs[number], call.output_shapes[number]
    field = walk.fields.get(key)
    if field is None:
        return None
    size, stride, padding, places, known, exact, whole, axes = _summary(walk, key, shape)
    return ReceptiveField(
        size=size,
        stride=stride,
        padding=padding,
        aligned=_aligned(field, known),
        whole_image=whole,
        layer=call.path,
        input_size=walk.input_size,
        grid=tuple([None if place is None else shape[place] for place in places]),
        conflicts=field.conflicts,
        unsupported=walk.unknown.get(key, ()),
        exact=exact,
        lost=field.lost,
        axes=axes,
    )


def _aligned(field, known):
    return False if field.conflicts else True if known and field.lost is None else None


def _summary(walk, key, shape):
    """Size, stride, padding, tensor axis of each axis, known, exact, whole and axes of one tensor's field."""
    field, channels = walk.fields[key], 1 if walk.channels == 1 else len(shape) - 1
    summary = walk.summaries.get(id(field))  # most layers hand on the field that they are given
    if summary is None or channels in field.positions:
        summary = walk.summaries[id(field)] = _summed_up(field, channels, shape)
    return summary


def _summed_up(field, channels, shape):
    if any(channels in axis.positions and len(axis.positions) > 1 for axis in field.axes):
        field = field.mix({channels}, shape)  # a feature is all its channels
    sizes, strides, paddings, places, known, exact = [], [], [], _places(field.axes), True, True
    for place, axis in zip(places, field.axes, strict=True):
        (_, line), *rest = sorted(axis.branches[0], key=lambda part: part[0] != place)
        sizes.append(axis.size)
        alone = place is not None or len(line.lows) == 1
        strides.append(plain(line.stride if alone else line.next_step))
        if all(one.known for _, one in axis.branches[0]):
            first = line.padding if alone else -min(line.lows)
            paddings.append(plain(first - sum(one.at(0)[0] if place is None else min(one.lows) for _, one in rest)))
        else:
            paddings.append(None)
        known, exact = known and all(one.known for one in axis.lines), exact and axis.exact
    return tuple(sizes), tuple(strides), tuple(paddings), places, known, exact, field.whole_image, field.axes


def _places(axes):
    """The tensor axis along which each axis of the image goes on; None where there is none of its own."""
    places = [axis.branches[0][0][0] if len(axis.branches) == len(axis.branches[0]) == 1 else None for axis in axes]
    if None not in places and len(set(places)) == len(places):  # nearly always
        return places
    left, places = [axis.positions for axis in axes], [None] * len(axes)
    for _ in axes:
        own = [next(iter(one)) if len(one) == 1 and left.count(one) == 1 else None for one in left]
        places = [new if old is None else old for old, new in zip(places, own, strict=True)]
        left = [one - set(own) for one in left]
    return places
