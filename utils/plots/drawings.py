"""Drawings that explain: one convolution by hand, two kinds of convolution, how a receptive field grows."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREY, TEXT = "#0072B2", "#E69F00", "#6b6b6b", 11


def _blank(width, height, columns=1, ratios=None):
    figure, axes = plt.subplots(
        1, columns, figsize=(width, height), layout="constrained", squeeze=False, width_ratios=ratios
    )
    figure.get_layout_engine().set(h_pad=0.08)
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


def macs_by_resolution(stages):
    """MACs at each size of the grid, one panel per network, all on one axis.

    Args:
        stages: {network: DataFrame of `flops.count(network).by_resolution()`}.

    Returns:
        Figure.

    Example:
        >>> import pandas as pd
        >>> figure = macs_by_resolution({"Small": pd.DataFrame({"side": [8, 4], "macs": [0, 768]})})
    """
    heights = [len(frame) for frame in stages.values()]
    figure, axes = plt.subplots(
        len(stages), 1, figsize=(8.6, 0.7 + 0.36 * sum(heights)), sharex=True, squeeze=False, layout="constrained",
        height_ratios=[height + 0.6 for height in heights],
    )  # fmt: skip
    for axis, (title, frame) in zip(axes.flat, stages.items(), strict=True):
        macs = frame["macs"].to_numpy(float) / 1e6
        axis.barh(range(len(frame)), macs, color=BLUE, height=0.7)
        for row, value in enumerate(macs):
            axis.text(value, row, f" {value:,.0f}", va="center", fontsize=TEXT, color=GREY)
        axis.set_yticks(range(len(frame)), [f"{side}×{side}" for side in frame["side"]], fontsize=TEXT)
        axis.invert_yaxis()
        axis.set_title(f"{title}: {macs.sum():,.0f} M", fontsize=TEXT + 1, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=TEXT)
    axes[-1, 0].set_xlabel("MACs (millions) at this size of the grid", fontsize=TEXT)
    axes[-1, 0].margins(x=0.1)
    return figure


def splits_drawing(photos=(7, 5, 4, 3, 3, 2), seed=0):
    """The same photos dealt out at random and by photographer: which squares are training, which are test.

    Args:
        photos: number of photos of each photographer.
        seed: of the random split.

    Returns:
        Figure.

    Example:
        >>> figure = splits_drawing((3, 2, 2))
    """
    rng, total = np.random.default_rng(seed), sum(photos)
    at_random = rng.permutation(np.arange(total) < round(total / 3))
    figure, axes = _blank(8.6, 0.9 + 0.42 * len(photos), columns=2)
    by_person = np.repeat([row in (1, 4, 5) for row in range(len(photos))], photos)
    for axis, title, test in zip(axes, ("random split", "grouped split"), (at_random, by_person), strict=True):
        number = 0
        for row, count in enumerate(photos):
            axis.text(-0.3, -row, f"photographer {row + 1}", ha="right", va="center", fontsize=TEXT)
            for column in range(count):
                colour = ORANGE if test[number] else BLUE
                axis.add_patch(Rectangle((column, -row - 0.38), 0.8, 0.76, facecolor=colour, alpha=0.75))
                number += 1
        axis.set_title(title, fontsize=TEXT + 2, loc="left")
        axis.set(xlim=(-3.6, max(photos) + 0.2), ylim=(-len(photos) - 0.9, 0.7))
        for place, (colour, name) in enumerate(((BLUE, "training"), (ORANGE, "test"))):
            axis.add_patch(Rectangle((2.8 * place, -len(photos) - 0.5), 0.6, 0.57, facecolor=colour, alpha=0.75))
            axis.text(2.8 * place + 0.8, -len(photos) - 0.2, name, va="center", fontsize=TEXT)
    return figure


def transfer_drawing():
    """What is trained: nothing but the new head (frozen backbone), or everything (fine-tuning).

    Returns:
        Figure.

    Example:
        >>> figure = transfer_drawing()
    """
    figure, axes = _blank(8.6, 2.9, columns=2)
    widths = (0.35, 0.5, 0.7, 0.95, 1.2)
    for axis, title, trained in zip(axes, ("frozen backbone", "fine-tuned"), (False, True), strict=True):
        left = 0.0
        for number, width in enumerate(widths):
            height = 2.6 - 0.45 * number
            colour = BLUE if trained else "#c9c9c9"
            axis.add_patch(
                Rectangle((left, -height / 2), width, height, facecolor=colour, alpha=0.75, edgecolor="white")
            )
            left += width + 0.12
        axis.text(left / 2, 1.5, "backbone: ImageNet weights", ha="center", fontsize=TEXT)
        left += 0.4
        axis.add_patch(Rectangle((left, -0.6), 0.35, 1.2, facecolor=BLUE, alpha=0.95))
        axis.text(left + 0.18, 0.85, "new head", ha="center", fontsize=TEXT)
        axis.annotate("", (left - 0.08, 0), (left - 0.42, 0), arrowprops={"arrowstyle": "->", "color": GREY})
        said = "all layers change, slowly" if trained else "only the head changes"
        axis.text(0, -1.75, said, fontsize=TEXT, color=GREY)
        axis.set_title(title, fontsize=TEXT + 2, loc="left")
        axis.set(xlim=(-0.2, left + 1.1), ylim=(-2.1, 1.9))
    return figure


def int8_levels(weights, numbers=5):
    """A histogram of weights above the 256 levels that int8 can hold, and some of them rounded.

    Args:
        weights: array of one output channel's weights (symmetric range, zero point 0).
        numbers: how many weights are written out, spread over their range.

    Returns:
        Figure.

    Example:
        >>> figure = int8_levels(np.random.default_rng(0).normal(0, 0.1, 500))
    """
    weights = np.sort(np.asarray(weights, float).ravel())
    scale = np.abs(weights).max() / 127
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8.6, 4.6), sharex=True, layout="constrained", height_ratios=(2, 1.5)
    )
    top.hist(weights, bins=64, color=BLUE, alpha=0.75)
    top.set_ylabel("weights", fontsize=TEXT)
    bottom.vlines(np.arange(-127, 128) * scale, 0, 1, color=ORANGE, linewidth=0.6)
    chosen = weights[np.linspace(0, len(weights) - 1, numbers).round().astype(int)]
    for number, value in enumerate(chosen):
        level = round(value / scale)
        lift = 1.15 + 0.55 * (number % 2)
        bottom.plot([value, value], [1, lift], color=GREY, linewidth=0.8)
        place = "left" if number == 0 else "right" if number == numbers - 1 else "center"
        text = f"{value:.3f} → {level}".replace("-", "−")
        bottom.text(value, lift + 0.05, text, ha=place, fontsize=TEXT)
    bottom.set(ylim=(0, 2.3), yticks=[])
    bottom.set_xlabel(f"weight; the orange lines are the levels −127 to 127, {scale:.5f} apart", fontsize=TEXT)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=TEXT)
    bottom.spines["left"].set_visible(False)
    return figure


def pruning_drawing(seed=0):
    """Two ways to prune a layer: zeros in the same kernel, or fewer channels.

    Returns:
        Figure.

    Example:
        >>> figure = pruning_drawing()
    """
    rng = np.random.default_rng(seed)
    kernel = np.abs(rng.normal(size=(6, 8)))
    small = kernel < np.quantile(kernel, 0.5)
    weak = np.argsort(kernel.sum(0))[:3]
    figure, axes = _blank(8.6, 2.7, columns=3)
    titles = (
        ("before", "6 × 8 weights"), ("weights pruned", "half are zero, all are stored"),
        ("channels pruned", "6 × 5 weights"),
    )  # fmt: skip
    for axis, (title, said) in zip(axes, titles, strict=True):
        columns = [c for c in range(8) if title != "channels pruned" or c not in weak]
        for x, column in enumerate(columns):
            for y in range(6):
                zero = title == "weights pruned" and small[y, column]
                strength = 0.15 + 0.8 * kernel[y, column] / kernel.max()
                axis.add_patch(
                    Rectangle(
                        (x, -y), 0.9, -0.9, facecolor="white" if zero else BLUE, alpha=1 if zero else strength,
                        edgecolor=GREY, linewidth=0.6,
                    )
                )  # fmt: skip
        axis.set_title(title, fontsize=TEXT + 2, loc="left")
        axis.text(0, -6.3, said, fontsize=TEXT, va="top", color=GREY)
        axis.set(xlim=(-0.2, 8.4), ylim=(-7.3, 0.3), aspect="equal")
    return figure
