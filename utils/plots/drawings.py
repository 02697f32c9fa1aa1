"""Drawings that explain: convolutions, receptive fields, splits, transfer learning, int8, pruning."""

import numpy as np
from matplotlib.patches import Rectangle

from utils.plots import style
from utils.plots.style import CONV, DEPTHWISE, FLOAT, GREY, INT8, LABEL, LIGHT, POINTWISE, TEXT, WRONG


def _grid(axis, values, corner=(0, 0), shaded=(), edge=None, colour=CONV):
    """Numbers in boxes, row by row from the top; `shaded` boxes in colour, `edge` (y, x, height, width) framed."""
    for (y, x), value in np.ndenumerate(np.asarray(values, object)):
        place = (corner[0] + x, corner[1] - y - 1)
        face = (colour, 0.25) if (y, x) in shaded else "white"
        style.box(axis, place, 1, 1, facecolor=face, edgecolor=GREY, linewidth=0.8)
        words = str(value).replace("-", "−")
        axis.text(place[0] + 0.5, place[1] + 0.5, words, ha="center", va="center", fontsize=LABEL)
    if edge is not None:
        y, x, height, width = edge
        place = (corner[0] + x, corner[1] - y - height)
        style.box(axis, place, width, height, fill=False, edgecolor=colour, linewidth=3, zorder=3)


def _arrow(axis, end, start):
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1.3})


def convolution_by_hand(image, kernel, at=(0, 0)):
    """One output value of a convolution without padding, with its products written out.

    Args:
        image: (h, w) array of small whole numbers.
        kernel: (kh, kw) array of small whole numbers.
        at: (y, x) of the output value.

    Example:
        >>> figure = convolution_by_hand(np.eye(5, dtype=int), np.ones((3, 3), int), at=(0, 1))
    """
    image, kernel, (y, x) = np.asarray(image), np.asarray(kernel), at
    rows, columns = kernel.shape
    window = image[y : y + rows, x : x + columns]
    out_shape = image.shape[0] - rows + 1, image.shape[1] - columns + 1
    output = np.full(out_shape, "", object)
    output[y, x] = int((window * kernel).sum())
    page, (axis,) = style.drawing(8.6, 4)
    middle = image.shape[0] / 2

    def place(values, left, title, **marks):
        top = middle + len(values) / 2
        _grid(axis, values, (left, top), **marks)
        axis.text(left, top + 0.2, f"{title}, {len(values)} × {np.shape(values)[1]}", fontsize=LABEL, va="bottom")
        return left + np.shape(values)[1]

    seen = {(y + i, x + j) for i in range(rows) for j in range(columns)}
    right = place(image, 0, "input", edge=(y, x, rows, columns), shaded=seen)
    axis.text(right + 0.6, middle, "×", fontsize=20, ha="center", va="center")
    right = place(kernel, right + 1.2, "weights")
    axis.text(right + 0.6, middle, "=", fontsize=20, ha="center", va="center")
    right = place(output, right + 1.2, "output", shaded={(y, x)})
    pairs = zip(window.flat, kernel.flat, strict=True)
    products = " + ".join(f"{a}·{b}" if b >= 0 else f"{a}·(−{-b})" for a, b in pairs)
    axis.text(
        right / 2, -0.5, f"{products} = {output[y, x]}".replace("= -", "= −"), ha="center", va="top", fontsize=LABEL
    )
    axis.set(xlim=(-0.2, right + 0.2), ylim=(-1.2, image.shape[0] + 0.9), aspect="equal")
    return page


def kinds_of_convolution(side, channels):
    """A full and a depthwise 3×3 and a 1×1 convolution side by side, with their MACs.

    Args:
        side: height and width of input and output.
        channels: (input, output) channels; a depthwise convolution keeps the input's.

    Example:
        >>> figure = kinds_of_convolution(14, (64, 64))
    """
    before, after = channels
    kinds = (
        ("full convolution", CONV, 3, range(4), f"reads 3 × 3 pixels of\nall {before} channels",
         side**2 * 9 * before * after),
        ("depthwise convolution", DEPTHWISE, 3, (0,), "reads 3 × 3 pixels of\none channel", side**2 * 9 * before),
        ("1×1 convolution", POINTWISE, 1, range(4), f"reads one pixel of\nall {before} channels",
         side**2 * before * after),
    )  # fmt: skip
    page, axes = style.drawing(9, 3.6, columns=3)
    for axis, (title, colour, window, read, said, macs) in zip(axes, kinds, strict=True):
        for plane in reversed(range(4)):
            left, bottom = 0.42 * plane, 0.42 * plane
            style.box(axis, (left, bottom), 5, 5, facecolor="white", edgecolor=GREY, linewidth=0.9)
            if plane in read:
                start = (5 - window) / 2
                style.box(axis, (left + start, bottom + start), window, window, facecolor=colour, edgecolor="white")
        style.box(axis, (8.4, 2.7), 1, 1, facecolor=colour, edgecolor=GREY)
        _arrow(axis, (8.3, 3.2), (6.6, 3.2))
        axis.text(0, 6.7, title, fontsize=LABEL, va="bottom")
        axis.text(0, -0.4, said, fontsize=TEXT, va="top", color=GREY)
        axis.text(0, -2.5, f"{macs:,} MACs", fontsize=LABEL, va="top")
        axis.set(xlim=(-0.3, 9.6), ylim=(-3.5, 7.6), aspect="equal")
    return page


def receptive_field_steps(layers):
    """How windows overlap from layer to layer, in one dimension: what one feature of the last layer sees.

    Args:
        layers: list of (name, kernel, stride), input first.

    Returns:
        Figure; r is the receptive field and j the stride, both in input pixels.

    Example:
        >>> figure = receptive_field_steps([("conv 3, stride 2", 3, 2), ("conv 3", 3, 1)])
    """
    field, jump, sizes = 1, 1, [(1, 1)]
    for _, kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
        sizes.append((field, jump))
    page, (axis,) = style.drawing(9, 1.1 + 0.8 * len(layers))
    pixels = np.arange(-(field // 2) - 2, field // 2 + 3)
    seen = [None] * len(sizes)
    seen[-1] = np.array([0.0])
    for number in range(len(layers), 0, -1):  # which features of the level below one feature reads
        reach = (np.arange(layers[number - 1][1]) - (layers[number - 1][1] - 1) / 2) * sizes[number - 1][1]
        seen[number - 1] = np.unique(np.round((seen[number][:, None] + reach).ravel(), 3))
    for level, (size, step) in enumerate(sizes):
        start = seen[level][0] % step
        shown = (
            np.arange(pixels[0] // step, pixels[-1] // step + 1) * step + start if level else pixels - seen[0][0] % 1
        )
        shown = shown[(shown >= pixels[0]) & (shown <= pixels[-1])]
        for x in shown:
            mine = np.isclose(seen[level], x).any()
            box = (x - 0.42 * step, level - 0.17)
            face = CONV if mine else "white"
            style.box(axis, box, 0.84 * step, 0.34, facecolor=face, edgecolor=GREY, linewidth=0.8, zorder=2)
        name = layers[level - 1][0] if level else "input pixels"
        axis.text(pixels[0] - 1.2, level, name, ha="right", va="center", fontsize=TEXT)
        axis.text(pixels[-1] + 1.5, level, f"r = {size}, j = {step}", va="center", fontsize=TEXT)
        if level:
            kernel, below = layers[level - 1][1], sizes[level - 1][1]
            for feature in seen[level]:
                for sign in (-1, 1):
                    ends = [feature + sign * 0.42 * step, feature + sign * (kernel * below / 2 - 0.08 * below)]
                    axis.plot(ends, [level - 0.17, level - 0.83], color=CONV, linewidth=1, alpha=0.7, zorder=1)
    axis.set(xlim=(pixels[0] - 0.32 * len(pixels), pixels[-1] + 0.24 * len(pixels)), ylim=(-0.4, len(layers) + 0.4))
    return page


def splits_drawing():
    """A drawing of the two ways to split: photos dealt at random, and whole photographers dealt."""
    photos, rng = (6, 5, 4, 3, 3, 3), np.random.default_rng(1)
    page, axes = style.drawing(9, 3.9, 2)
    whole = {1, 4}  # who goes to test
    for axis, title in zip(axes, ("at random", "by photographer"), strict=True):
        by_person = title == "by photographer"
        colour = style.NEW_PHOTOGRAPHERS if by_person else style.SEEN_PHOTOGRAPHERS
        for row, count in enumerate(photos):
            test = np.full(count, row in whole) if by_person else rng.permutation(np.arange(count) < max(1, count // 4))
            axis.text(-0.3, -row, f"photographer {chr(65 + row)}", ha="right", va="center", fontsize=TEXT)
            for place in range(count):
                style.box(axis, (place + 0.06, -row - 0.4), 0.8, 0.8, facecolor=colour if test[place] else style.TRAIN)
        said = "test: nobody in it is in training" if by_person else "test: everybody in it is in training too"
        for place, (face, words) in enumerate(((style.TRAIN, "training"), (colour, said))):
            style.box(axis, (-3.2, -len(photos) - 0.8 * place - 0.3), 0.8, 0.4, facecolor=face)
            axis.text(-2.2, -len(photos) - 0.8 * place - 0.1, words, va="center", fontsize=TEXT)
        axis.text(-3.2, 0.75, f"split {title}", fontsize=LABEL)
        axis.set(xlim=(-3.3, max(photos)), ylim=(-len(photos) - 1.3, 1.3), aspect="equal")
    return page


def transfer_drawing():
    """A drawing of transfer learning: what keeps its weights and what trains, frozen above, fine-tuned below."""
    page, (axis,) = style.drawing(9, 3.9)
    blocks = 7
    for y, title, colour, said in (
        (2.6, "frozen", style.FROZEN, "weights stay as they are; only the head trains"),
        (0, "fine-tuned", style.FINE_TUNED, "all weights train, the backbone's in small steps"),
    ):
        axis.text(0, y + 1.42, f"{title}: {said}", fontsize=LABEL, va="bottom")
        axis.text(0.35, y + 0.6, "photo", fontsize=TEXT, ha="center", va="center")
        for block in range(blocks):
            height = 1.25 - 0.1 * block
            body = (1 + 0.95 * block, y + 0.6 - height / 2)
            style_of = {"facecolor": colour, "edgecolor": "white"} if title == "fine-tuned" else {
                "facecolor": "white", "edgecolor": colour, "hatch": "///",
            }  # fmt: skip
            style.box(axis, body, 0.72, height, linewidth=1.4, **style_of)
            _arrow(axis, (body[0], y + 0.6), (body[0] - 0.24, y + 0.6))
        right = 1 + 0.95 * blocks
        head_colour = style.FROZEN if title == "frozen" else colour
        _arrow(axis, (right, y + 0.6), (right - 0.24, y + 0.6))
        style.box(axis, (right, y + 0.2), 0.72, 0.8, facecolor=head_colour, edgecolor="white")
        axis.text(right + 0.9, y + 0.6, "class", fontsize=TEXT, va="center")
        for x, words in (((1 + right) / 2, "backbone, trained on ImageNet"), (right + 0.36, "new head")):
            axis.text(x, y - 0.18, words, fontsize=TEXT, ha="center", va="top", color=GREY)
    axis.set(xlim=(-0.1, right + 1.7), ylim=(-0.6, 4.5))
    looks = ({"facecolor": "white", "edgecolor": GREY, "hatch": "///"}, {"facecolor": GREY})
    style.key(page, [Rectangle((0, 0), 1, 1, **look) for look in looks], ["weights stay", "weights train"])
    return page


def int8_levels(weights):
    """A histogram of weights above the levels that int8 can hold, and some of them rounded: q = round(x / s).

    Args:
        weights: array of one output channel's weights (symmetric range, zero point 0).

    Example:
        >>> figure = int8_levels(np.random.default_rng(0).normal(0, 0.1, 500))
    """
    weights, numbers = np.sort(np.asarray(weights, float).ravel()), 5
    scale = np.abs(weights).max() / 127
    page, axes = style.figure(8.8, 4.6, 2, 1, sharex=True, height_ratios=(2, 1.5))
    above, below = axes[:, 0]
    above.hist(weights, bins=64, color=FLOAT)
    style.labels(above, y="weights")
    below.vlines(np.arange(-127, 128) * scale, 0, 1, color=INT8, linewidth=0.6)
    below.plot(weights, np.full(len(weights), 1.12), "|", color=FLOAT, markersize=9, alpha=0.5)
    chosen = weights[np.linspace(0, len(weights) - 1, numbers).round().astype(int)]
    places = np.linspace(-115 * scale, 115 * scale, numbers)
    for value, place in zip(chosen, places, strict=True):
        below.plot([value, value, place], [0.95, 1.3, 1.75], color=WRONG, linewidth=1.2)
        text = f"{value:.3f} → {round(value / scale)}".replace("-", "−")
        below.text(place, 1.85, text, ha="center", fontsize=LABEL)
    below.set(ylim=(0, 2.3), yticks=[])
    below.spines["left"].set_visible(False)
    style.labels(below, f"weight; the lines are the levels −127 to 127, {scale:.5f} apart")
    return page


def pruning_drawing():
    """What pruning takes out of a kernel: single weights become zeros, or whole channels go and the kernel shrinks."""
    rows, columns, share = 8, 12, 0.6
    weights = np.random.default_rng(0).normal(size=(rows, columns)) * np.linspace(0.5, 1.5, columns)
    weights = weights[:, np.random.default_rng(1).permutation(columns)]
    size = np.abs(weights) / np.abs(weights).max()
    small = size < np.quantile(size, share)
    gone = np.argsort(size.sum(axis=0))[: round(share * columns)]
    kept = np.setdiff1d(np.arange(columns), gone)
    panels = (
        ("as trained", size, small < 0, f"{rows} × {columns} weights"),
        ("weights pruned", size, small, f"{rows} × {columns}, {small.mean():.0%} zeros:\nsmaller when zipped, as slow"),
        ("channels pruned", size[:, kept], small[:, kept] < 0, f"{rows} × {len(kept)} weights:\nfewer MACs"),
    )  # fmt: skip
    page, axes = style.drawing(9, 3.1, columns=3)
    for axis, (title, values, zero, said) in zip(axes, panels, strict=True):
        for (y, x), value in np.ndenumerate(values):
            face = "white" if zero[y, x] else (POINTWISE, 0.25 + 0.75 * value)
            style.box(axis, (x, rows - y - 1), 0.92, 0.92, facecolor=face, edgecolor=LIGHT if zero[y, x] else "none")
        axis.text(0, rows + 0.3, title, fontsize=LABEL)
        axis.text(0, -0.4, said, fontsize=TEXT, va="top", color=GREY)
        axis.set(xlim=(-0.2, columns), ylim=(-2.8, rows + 1.3), aspect="equal")
    return page


def clipped_bias(bias, scale):
    """A bias that its 32-bit integer cannot hold: the number line of the integer's range, and where the bias lies.

    Args:
        bias: the real number.
        scale: what one unit of the integer stands for (input scale times weight scale).

    Returns:
        Figure; the range and the bias are marked in units of the real number.

    Example:
        >>> figure = clipped_bias(4.0, 1e-10)
    """
    reach = 2**31 * scale
    kept = bias if abs(bias) <= reach else -reach  # what ai-edge-quantizer's cast stores, for either sign
    page, (axis,) = style.drawing(9, 1.9)
    span = 1.15 * max(abs(bias), reach)
    axis.plot([-span, span], [0, 0], color=GREY, linewidth=1)
    shown = max(reach, 0.004 * span)  # else the range of a tiny scale could not be seen
    axis.plot([-shown, shown], [0, 0], color=INT8, linewidth=9, solid_capstyle="butt")
    axis.plot(bias, 0, "o", color=WRONG, markersize=11)
    axis.annotate("", (kept, 0.12), (bias, 0.12), arrowprops={"arrowstyle": "->", "color": WRONG, "linewidth": 2,
                  "connectionstyle": "arc3,rad=0.25"})  # fmt: skip
    axis.text(bias, -0.25, f"the bias, {bias:g}".replace("-", "−"), ha="center", va="top", fontsize=LABEL, color=WRONG)
    said = f"what 32 bits hold: −{reach:.2g} to {reach:.2g}"
    axis.text(0, -0.25, said, ha="center", va="top", fontsize=LABEL, color=INT8)
    axis.set(xlim=(-span, 1.15 * span), ylim=(-0.7, 0.9))
    return page
