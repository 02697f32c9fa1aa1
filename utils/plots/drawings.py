"""Drawings that explain: one convolution by hand, two kinds of convolution, how a receptive field grows."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREY, TEXT = "#0072B2", "#E69F00", "#6b6b6b", 11


def _blank(width, height, columns=1, ratios=None):
    figure, axes = plt.subplots(
        1, columns, figsize=(width, height), layout="constrained", squeeze=False, width_ratios=ratios
    )
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes[0]


def _grid(axis, values, corner=(0, 0), shaded=(), edge=None, size=1.0):
    """Numbers in boxes, row by row from the top; `shaded` boxes in colour."""
    for (y, x), value in np.ndenumerate(np.asarray(values, object)):
        place = (corner[0] + x * size, corner[1] - y * size)
        colour = BLUE if (y, x) in shaded else "white"
        axis.add_patch(Rectangle(place, size, -size, facecolor=colour, alpha=0.25 if (y, x) in shaded else 1, zorder=1))
        axis.add_patch(Rectangle(place, size, -size, fill=False, edgecolor=GREY, linewidth=0.8, zorder=2))
        axis.text(
            place[0] + size / 2,
            place[1] - size / 2,
            str(value).replace("-", "−"),
            ha="center",
            va="center",
            fontsize=TEXT + 1,
        )
    if edge is not None:
        (y, x), height, width = edge
        axis.add_patch(
            Rectangle(
                (corner[0] + x * size, corner[1] - y * size), width * size, -height * size,
                fill=False, edgecolor=ORANGE, linewidth=3, zorder=3,
            )
        )  # fmt: skip


def convolution_by_hand(image, kernel, at=(0, 0)):
    """One output value of a convolution without padding, with its products written out.

    Args:
        image: (h, w) array of small whole numbers.
        kernel: (kh, kw) array of small whole numbers.
        at: (y, x) of the output value.

    Returns:
        Figure.

    Example:
        >>> figure = convolution_by_hand(np.eye(5, dtype=int), np.ones((3, 3), int), at=(0, 1))
    """
    image, kernel, (y, x) = np.asarray(image), np.asarray(kernel), at
    rows, columns = kernel.shape
    window = image[y : y + rows, x : x + columns]
    out_shape = image.shape[0] - rows + 1, image.shape[1] - columns + 1
    output = np.full(out_shape, "", object)
    output[y, x] = int((window * kernel).sum())
    figure, (axis,) = _blank(8.6, 3.4)
    middle = image.shape[0] / 2

    def place(values, left, title, below, **style):
        top = middle + len(values) / 2
        _grid(axis, values, (left, top), **style)
        axis.text(left, top + 0.25, title, fontsize=TEXT + 1, va="bottom")
        axis.text(left, top - len(values) - 0.25, below, fontsize=TEXT, va="top", color=GREY)
        return left + np.shape(values)[1]

    right = place(
        image, 0, "input", f"{image.shape[0]} × {image.shape[1]}", edge=((y, x), rows, columns),
        shaded={(y + i, x + j) for i in range(rows) for j in range(columns)},
    )  # fmt: skip
    axis.text(right + 0.6, middle, "×", fontsize=20, ha="center", va="center")
    right = place(kernel, right + 1.2, "weights", f"{rows} × {columns}")
    axis.text(right + 0.6, middle, "=", fontsize=20, ha="center", va="center")
    right = place(output, right + 1.2, "output", f"{out_shape[0]} × {out_shape[1]}", shaded={(y, x)})
    products = " + ".join(
        f"{a}·{b}" if b >= 0 else f"{a}·(−{-b})" for a, b in zip(window.flat, kernel.flat, strict=True)
    )
    axis.text(right / 2, -1.1, f"{products} = {output[y, x]}", ha="center", va="top", fontsize=TEXT + 1)
    axis.set(xlim=(-0.2, right + 0.2), ylim=(-1.9, image.shape[0] + 0.9), aspect="equal")
    return figure


def kinds_of_convolution(side=14, channels=(64, 64), kernel=3):
    """A full, a depthwise and a 1×1 convolution side by side, with their MACs.

    Args:
        side: height and width of input and output.
        channels: (input, output) channels; a depthwise convolution keeps the input's.
        kernel: side of the full and the depthwise window.

    Returns:
        Figure.

    Example:
        >>> figure = kinds_of_convolution(14, (64, 64))
    """
    before, after = channels
    kinds = (
        ("full convolution", kernel, range(4), f"{kernel}×{kernel} window, all {before} channels",
         side**2 * kernel**2 * before * after),
        ("depthwise", kernel, (0,), f"{kernel}×{kernel} window, one channel", side**2 * kernel**2 * before),
        ("1×1 convolution", 1, range(4), f"one pixel, all {before} channels", side**2 * before * after),
    )  # fmt: skip
    figure, axes = _blank(8.6, 3.1, columns=3)
    for axis, (title, window, read, said, macs) in zip(axes, kinds, strict=True):
        for plane in reversed(range(4)):
            left, top = 0.42 * plane, 5 + 0.42 * plane
            axis.add_patch(Rectangle((left, top), 5, -5, facecolor=(1, 1, 1, 0.6), edgecolor=GREY, linewidth=0.9))
            if plane in read:
                start = (5 - window) / 2
                axis.add_patch(
                    Rectangle((left + start, top - start), window, -window, facecolor=BLUE, alpha=0.45, edgecolor=BLUE)
                )
        axis.add_patch(Rectangle((8.2, 3.7), 1, -1, facecolor=ORANGE, edgecolor=GREY))
        axis.annotate("", (8.1, 3.2), (6.5, 3.2), arrowprops={"arrowstyle": "->", "color": GREY})
        axis.text(0, 7.0, title, fontsize=TEXT + 2, va="bottom")
        axis.text(0, -0.4, said, fontsize=TEXT, va="top", color=GREY)
        axis.text(0, -1.3, f"{macs:,} MACs", fontsize=TEXT + 2, va="top")
        axis.set(xlim=(-0.3, 9.4), ylim=(-2.6, 8.2), aspect="equal")
    return figure


def receptive_field_steps(layers):
    """How windows overlap from layer to layer, in one dimension: what one feature of the last layer sees.

    Args:
        layers: list of (name, kernel, stride), input first.

    Returns:
        Figure.

    Example:
        >>> figure = receptive_field_steps([("conv 3, stride 2", 3, 2), ("conv 3", 3, 1)])
    """
    field, jump, sizes = 1, 1, [(1, 1)]
    for _, kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
        sizes.append((field, jump))
    figure, (axis,) = _blank(8.6, 0.9 + 0.75 * len(layers))
    pixels, centre = np.arange(-(field // 2) - 2, field // 2 + 3), 0.0
    seen = [None] * len(sizes)
    seen[-1] = np.array([centre])
    for number in range(len(layers), 0, -1):  # which features of the level below one feature reads
        _, kernel, _ = layers[number - 1]
        below = sizes[number - 1][1]
        reach = (np.arange(kernel) - (kernel - 1) / 2) * below
        seen[number - 1] = np.unique(np.round((seen[number][:, None] + reach).ravel(), 3))
    for level, (size, step) in enumerate(sizes):
        offset = seen[level][0] % step
        shown = pixels if level == 0 else np.arange(pixels[0] // step, pixels[-1] // step + 1) * step + offset
        shown = shown[(shown >= pixels[0]) & (shown <= pixels[-1])]
        axis.scatter(shown, np.full(len(shown), level), s=70, facecolor="white", edgecolor=GREY, zorder=2)
        axis.scatter(seen[level], np.full(len(seen[level]), level), s=70, color=BLUE, zorder=3)
        name = "input pixels" if level == 0 else layers[level - 1][0]
        axis.text(pixels[0] - 1, level, name, ha="right", va="center", fontsize=TEXT)
        axis.text(
            pixels[-1] + 1, level, f"r = {size}, j = {step}" if level else "r = 1, j = 1", va="center", fontsize=TEXT
        )
        if level:
            kernel, below = layers[level - 1][1], sizes[level - 1][1]
            for feature in seen[level]:
                for end in (-(kernel - 1) / 2, (kernel - 1) / 2):
                    axis.plot([feature, feature + end * below], [level, level - 1], color=ORANGE, linewidth=1, zorder=1)
    axis.set(xlim=(pixels[0] - 9, pixels[-1] + 7), ylim=(-0.6, len(layers) + 0.6))
    return figure
