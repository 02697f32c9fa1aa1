"""Along one axis: the pixels that features read (Line), and what a layer reads of its input (Step).

Along one axis of the input, feature u of a tensor reads the pixels low(u) ... high(u), and both repeat (a Line):

    low(u + q) = low(u) + pixels,   high(u + q) = high(u) + pixels          with the period q, 1 for convolutions

A local layer reads, for its output o, the inputs taps(o), which repeat too (a Step): taps(o + a) = taps(o) + inputs.
Putting a step behind a line gives a line again, exactly. For q = a = 1 this is the recurrence of Araujo, Norris, Sim,
"Computing receptive fields of convolutional neural networks", Distill 2019, equations 3 to 5.
"""

import itertools
import math
import statistics
from fractions import Fraction
from typing import NamedTuple

FAR = 2**40  # the bounds of a feature that reads no pixel are (FAR, -FAR)


def plain(number):
    """An exact number as int where it is whole, else as float."""
    if number is None or isinstance(number, int):
        return number
    return int(number) if number.denominator == 1 else float(number)


class Line(NamedTuple):
    """Pixels that the features along one tensor axis read: lows[r] + pixels * k ... highs[r] + pixels * k, u = q k + r.

    `known`: whether the offset is known (SAME padding may hide it). `exact`: False for a bound that may be too wide.
    `finite`: only the listed features exist, any other reads nothing.
    """

    pixels: int = 1
    lows: tuple = (0,)
    highs: tuple = (0,)
    known: bool = True
    exact: bool = True
    finite: bool = False

    def at(self, u):
        """First and last pixel of feature u; first > last where it reads none."""
        period = len(self.lows)
        if self.finite and not 0 <= u < period:
            return FAR, -FAR
        turn, rest = divmod(u, period)
        return self.lows[rest] + self.pixels * turn, self.highs[rest] + self.pixels * turn

    @property
    def stride(self):
        if self.finite:  # of the distance over which most features rise alike, as windows of tokens do
            best, stride = 0, 0
            for lag in range(1, min(len(self.lows) // 2, 64) + 1):
                rises = [b - a for a, b in zip(self.lows, self.lows[lag:], strict=False) if abs(b - a) < FAR // 2]
                common = statistics.mode(rises or [0])
                if common and rises.count(common) > best * len(rises):
                    best, stride = Fraction(rises.count(common), len(rises)), Fraction(common, lag)
            return stride
        return self.pixels if len(self.lows) == 1 else Fraction(self.pixels, len(self.lows))

    @property
    def next_step(self):
        """Pixels from one feature to the next that sees something else, where several axes share a tensor axis."""
        lows = (*self.lows, self.at(len(self.lows))[0])
        steps = [b - a for a, b in itertools.pairwise(lows) if b != a and abs(b - a) < FAR // 2]
        return statistics.mode(steps) if steps else 0

    @property
    def size(self):
        """Pixels of the widest feature."""
        return max(max(high - low + 1 for low, high in zip(self.lows, self.highs, strict=True)), 0)

    def _hulls(self):
        """The nearest straight lines: stride * u - before below, stride * u + after above."""
        stride = self.stride
        if self.finite:
            middle = len(self.lows) // 2
            return stride * middle - self.lows[middle], self.highs[middle] - stride * middle
        before = max(stride * u - low for u, low in enumerate(self.lows))
        return before, max(high - stride * u for u, high in enumerate(self.highs))

    @property
    def padding(self):
        return self._hulls()[0] if self.known else None

    @property
    def center(self):
        """Centre of feature 0 in pixels, or None where the padding is unknown."""
        if not self.known:
            return None
        before, after = self._hulls()
        return (after - before) // 2 if (after - before) % 2 == 0 else float(after - before) / 2

    @property
    def moves(self):
        """Whether the place in the image goes on along this tensor axis, and not just what is seen from it."""
        return not self.finite and self.pixels != 0

    @property
    def rhythm(self):
        """What two lines have in common of which one is the other, shifted and widened by constants."""
        low, high = self.lows[0], self.highs[0]
        lows, highs = tuple([one - low for one in self.lows]), tuple([one - high for one in self.highs])
        return self.pixels, lows, highs, self.known, self.exact, self.finite

    def hull(self, count):
        """First and last pixel of features 0 ... count - 1 together."""
        period = len(self.lows)
        if self.finite and count == period:  # of thousands of channels, say
            return min(self.lows), max(self.highs)
        last = [r + (count - 1 - r) // period * period for r in range(min(period, count))]
        bounds = [self.at(u) for u in (*range(len(last)), *last)]
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    def plus(self, low, high):
        return self._replace(
            lows=tuple([one + low for one in self.lows]), highs=tuple([one + high for one in self.highs])
        )

    def through(self, step, count=None):
        """The line of a layer's output (with `count` features), when this is that of its input."""
        pixels, lows, highs, known, exact, finite = self
        period, phases = len(lows), len(step.taps)
        if period == phases == 1 and not finite and step.taps[0]:
            first, last = step.taps[0][0], step.taps[0][-1]
            if pixels < 0:
                first, last = last, first
            low, high = (lows[0] + pixels * first,), (highs[0] + pixels * last,)
            return Line(pixels * step.inputs, low, high, known and step.known, exact and step.exact)
        exact = exact and step.exact
        if finite:
            if count is None:
                count = period * phases // max(abs(step.inputs), 1)
            bounds = [self._over(step, o) for o in range(count)]
            return tidied(bounds, exact and step.known)
        turns = period // math.gcd(period, step.inputs)
        bounds = [self._over(step, o) for o in range(phases * turns)]
        pixels = pixels * (step.inputs * turns // period)
        if not step.known and period > 1:  # any phase may come first
            shifted = [self._over(step, o, shift) for shift in range(period) for o in range(phases * turns)]
            span = max(high - low for low, high in shifted)
            bounds, exact = [(low, low + span) for low, _ in bounds], False
        lows, highs = zip(*bounds, strict=True)
        return Line(pixels, lows, highs, known and step.known, exact).reduced()

    def _over(self, step, o, shift=0):
        turn, phase = divmod(o, len(step.taps))
        bounds = [self.at(step.inputs * turn + tap + shift) for tap in step.taps[phase]]
        if not bounds:
            return FAR, -FAR
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    def reduced(self):
        """The same line with its shortest period."""
        pixels, lows, highs = self[:3]
        period = len(lows)
        for short in range(1, period // 2 + 1):
            if period % short or pixels * short % period:
                continue
            rise = pixels * short // period
            if all(
                lows[at + short] - lows[at] == rise and highs[at + short] - highs[at] == rise
                for at in range(period - short)
            ):
                return self._replace(pixels=rise, lows=lows[:short], highs=highs[:short])
        return self

    def taken(self, indices):
        """The line of features picked one by one; None picks nothing."""
        return tidied([(FAR, -FAR) if at is None else self.at(at) for at in indices], self.exact, self.known)

    def split(self, count):
        """Lines for u // count and u % count whose sum this line is; None for one that nothing depends on."""
        if len(self.lows) == 1 and not self.finite:
            return self._replace(pixels=self.pixels * count), Line(self.pixels)
        period = len(self.lows)
        whole = period if self.finite else math.lcm(period, count)
        pixels = 0 if self.finite else self.pixels * (whole // period)
        bounds = [self.at(u) for u in range(whole)]
        blocks = [bounds[at : at + count] for at in range(0, whole, count)]
        low, high = blocks[0][0]
        inner = [(one - low, other - high) for one, other in blocks[0]]
        if (
            all([(one - block[0][0], other - block[0][1]) for one, other in block] == inner for block in blocks)
            and low < FAR // 2
        ):
            lows, highs = zip(*(block[0] for block in blocks), strict=True)
            outer = self._replace(pixels=pixels, lows=lows, highs=highs)
            outer = outer if self.finite else outer.reduced()
            if all(bounds == (0, 0) for bounds in inner):
                return outer, None
            within = tidied(inner, self.exact, self.known)
            return (None, within.plus(low, high)) if outer.pixels == 0 and len(outer.lows) == 1 else (outer, within)
        lows = tuple(min(low for low, _ in block) for block in blocks)
        highs = tuple(max(high for _, high in block) for block in blocks)
        return Line(pixels, lows, highs, self.known, False, self.finite), None


def tidied(bounds, exact=True, known=True):
    """The line of these features: one that repeats as far as they do, else a finite one (of channels, mostly)."""
    lows, highs = zip(*bounds, strict=True)
    count = len(lows)
    for period in range(1, min(max(count // 3, count > 1), 64) + 1):
        rise = lows[period] - lows[0]
        if all(lows[at + period] - lows[at] == rise == highs[at + period] - highs[at] for at in range(count - period)):
            return Line(rise, lows[:period], highs[:period], known, exact)
    return Line(0, lows, highs, known, exact, count > 1)


def merged(outer, inner, count):
    """The line over u = count * i + j of outer(i) + inner(j); either may be None."""
    if inner is None:
        if outer is None:
            return None
        repeat = [u // count for u in range(len(outer.lows) * count)]
        return outer._replace(
            lows=tuple([outer.lows[u] for u in repeat]), highs=tuple([outer.highs[u] for u in repeat])
        )
    if outer is None:
        outer = Line(0)
    inside = [inner.at(u) for u in range(count)]
    line = outer._replace(
        lows=tuple([low + one for low in outer.lows for one, _ in inside]),
        highs=tuple([high + one for high in outer.highs for _, one in inside]),
        known=outer.known and inner.known,
        exact=outer.exact and inner.exact,
    )
    return line if line.finite else line.reduced()


def united(one, other):
    """The union of two lines of one stride."""
    if one == other:
        return one
    known, exact = one.known and other.known, one.exact and other.exact
    if one.finite or other.finite:
        count = len(one.lows) if one.finite else len(other.lows)
        both = [(*one.at(u), *other.at(u)) for u in range(count)]
        return tidied([(min(a, c), max(b, d)) for a, b, c, d in both], exact, known)
    if not known:
        size = max(one.size, other.size)
        wide = one if one.size >= other.size else other
        return wide._replace(highs=tuple([low + size - 1 for low in wide.lows]), known=False, exact=exact)
    period = math.lcm(len(one.lows), len(other.lows))
    both = [(*one.at(u), *other.at(u)) for u in range(period)]
    return Line(
        one.pixels * (period // len(one.lows)),
        tuple([min(low, least) for low, _, least, _ in both]),
        tuple([max(high, most) for _, high, _, most in both]),
        known,
        exact,
    ).reduced()


class Step(NamedTuple):
    """What one layer reads along one axis: output a * k + r reads the inputs t + inputs * k for t in taps[r].

    `known`: whether the offset is known. `exact`: False where rounding decides between the taps.
    """

    inputs: int = 1
    taps: tuple = ((0,),)
    known: bool = True
    exact: bool = True

    @property
    def idle(self):
        return self.inputs == 1 and len(self.taps) == 1 and tuple(self.taps[0]) == (0,)


def shift(start):
    """Output o is input o + start; None: not known."""
    return Step(1, ((start or 0,),), start is not None)


def same_padding(kernel, stride, length):
    """Zeros that SAME padding puts before the first of n = `length` elements, or None where n would decide it.

    total = max((ceil(n / s) - 1) * s + k - n, 0), of which floor(total / 2) stand in front (tf.nn, "Notes on padding");
    `kernel` is the effective one, dilation included.

        >>> same_padding(3, 2, 224), same_padding(3, 2, 225), same_padding(3, 1, None), same_padding(3, 2, None)
        (0, 1, 1, None)
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
    before = padding or 0
    return Step(stride, (range(-before, effective - before, dilation),), padding is not None)


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
        crop = max(2 * (effective // 2) - output_padding, 0) // 2
    reaches = range(effective - 1, -1, -dilation)  # so that the taps rise
    taps = [[(o + crop - j) // stride for j in reaches if (o + crop - j) % stride == 0] for o in range(stride)]
    return Step(1, tuple(map(tuple, taps)))


RESIZE_RADIUS = {"nearest": 0, "area": 0, "bilinear": 1, "bicubic": 2, "lanczos3": 3, "lanczos5": 5}


def resize_window(length, out_length, interpolation="bilinear", antialias=False):
    """Step of a resize from `length` to `out_length` pixels with half-pixel centres."""
    ratio = Fraction(length, out_length)
    radius = RESIZE_RADIUS[interpolation] * (max(ratio, 1) if antialias else 1)
    rounded = ratio.denominator & (ratio.denominator - 1) != 0  # no binary fraction
    taps, exact = [], True
    for o in range(ratio.denominator):
        center = (o + Fraction(1, 2)) * ratio - Fraction(1, 2)
        if interpolation == "nearest":
            nearest = math.floor(center + Fraction(1, 2))
            tie = rounded and center + Fraction(1, 2) == nearest  # the backend's rounding picks either
            exact = exact and not tie
            taps.append((nearest - 1, nearest) if tie else (nearest,))
            continue
        if interpolation == "area":
            low, high = o * ratio, (o + 1) * ratio
            ties = [rounded and side.denominator == 1 for side in (low, high)]
            exact = exact and not any(ties)
            taps.append(range(math.floor(low) - ties[0], math.ceil(high) + ties[1]))
            continue
        # Pixels at the edge of a kernel have weight zero, and if it stands on a pixel all others: but for rounding.
        low, high = center - radius, center + radius
        alone = center.denominator == 1 and (ratio <= 1 or not antialias)
        ties = [antialias and rounded and side.denominator == 1 for side in (low, high)]
        if alone and interpolation in ("bilinear", "bicubic") and not any(ties):
            taps.append((int(center),))
        else:
            exact = exact and not (alone or any(ties))
            taps.append(range(math.floor(low) + 1 - ties[0], math.ceil(high) + ties[1]))
    return Step(ratio.numerator, tuple(taps), exact=exact)


def adaptive_window(length, out_length):
    """Step of adaptive pooling: floor(o * n / m) ... ceil((o + 1) * n / m) - 1."""
    ratio = Fraction(length, out_length)
    taps = [range(math.floor(o * ratio), math.ceil((o + 1) * ratio)) for o in range(ratio.denominator)]
    return Step(ratio.numerator, tuple(taps))
