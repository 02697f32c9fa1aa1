"""Figures about cost and sight: where the MACs are, what time they take, which pixels a feature sees."""

import math

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Ellipse, Rectangle

from utils.plots import style
from utils.plots.style import GREY, KINDS, LABEL, TEXT, WRONG


def macs_by_resolution(stages):
    """MACs at each size of the grid, one panel per network, all on one axis.

    Args:
        stages: network -> DataFrame of `flops.count(network).by_resolution()`.

    Example:
        >>> import pandas as pd
        >>> page = macs_by_resolution({"Small": pd.DataFrame({"side": [8, 4], "macs": [0, 768]})})
    """
    stages = {title: frame[frame["macs"] > 0] for title, frame in stages.items()}  # without the input and paddings
    heights = [len(frame) for frame in stages.values()]
    page, axes = style.figure(
        8.6, 0.7 + 0.36 * sum(heights), len(stages), 1, sharex=True, height_ratios=[height + 0.6 for height in heights]
    )
    for axis, (title, frame) in zip(axes.flat, stages.items(), strict=True):
        macs = frame["macs"].to_numpy(float) / 1e6
        axis.barh(range(len(frame)), macs, color="black", height=0.7)
        for row, value in enumerate(macs):
            axis.text(value, row, f" {value:,.0f}", va="center", fontsize=TEXT)
        axis.set_yticks(range(len(frame)), [f"{side} × {side}" for side in frame["side"]])
        axis.invert_yaxis()
        axis.set_title(f"{title}: {macs.sum():,.0f} M", fontsize=LABEL, loc="left")
    axes[-1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[-1, 0].margins(x=0.1)
    style.labels(axes[-1, 0], "MACs (millions) at this size of the grid")
    return page


def macs_against_time(layers):
    """Layers as points: MACs against measured milliseconds, both logarithmic, with lines of equal speed.

    Args:
        layers: DataFrame with columns kind, macs, median_ms, and path, which names the slowest layer of each kind.
    """
    style.need(layers, "kind", "macs", "median_ms", "path")
    page, ((axis,),) = style.figure(8.5, 5.4)
    span = np.array([layers["macs"].min() * 0.6, layers["macs"].max() * 1.7], float) / 1e6
    low, high = layers["median_ms"].min() * 0.6, layers["median_ms"].max() * 2
    for rate in (1, 10, 100):  # billions of MACs per second
        axis.plot(span, span / rate, color=GREY, linewidth=1, linestyle="--", zorder=1)
        x = min(span[1], high * rate)
        if low < x / rate:
            axis.text(x / 1.25, x / rate / 1.25, f"{rate} G/s", fontsize=TEXT, color=GREY, ha="center", va="center",
                      bbox={"color": "white", "pad": 1.5})  # fmt: skip
    for marker, (kind, group) in zip(style.MARKERS, layers.groupby("kind", sort=False), strict=False):
        colour = KINDS.get(kind, GREY)
        axis.scatter(group["macs"] / 1e6, group["median_ms"], s=48, color=colour, marker=marker, label=kind, zorder=2)
        slowest = group.loc[group["median_ms"].idxmax()]
        place = (slowest["macs"] / 1e6, slowest["median_ms"])
        style.note(axis, str(slowest["path"]).replace("_", " "), place, (0, 10), ha="center", zorder=4)
    axis.set(xscale="log", yscale="log", xlim=span, ylim=(low, high))
    for which in (axis.xaxis, axis.yaxis):
        which.set_major_formatter(lambda value, _: f"{value:g}")
    style.labels(axis, "MACs of the layer (millions, logarithmic)", "measured time (ms, logarithmic)")
    axis.legend(fontsize=TEXT, frameon=False, loc="lower right")  # below the line of 100 G/s
    return page


def field_by_depth(curves, input_size=224):
    """Receptive field (side, pixels) against depth, one labelled line per model, beside the input's side.

    Args:
        curves: model title -> sequence of sizes in pixels, in execution order; drawn over relative depth 0..1. Models
            with equal curves share a line if they share a title.
        input_size: side of the input in pixels.

    Example:
        >>> page = field_by_depth({"Small": [1, 3, 11, 43]})
    """
    page, ((axis,),) = style.figure(8.5, 4.6)
    axis.axhline(input_size, color=GREY, linewidth=1)
    style.note(axis, f"side of the photo, {input_size}", (0, input_size), (4, 3), va="bottom", color=GREY)
    dashes, ends = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))), []
    for number, (title, sizes) in enumerate(curves.items()):
        sizes = np.asarray(sizes, float)
        axis.step(
            np.linspace(0, 1, len(sizes)), sizes, where="post", color="black", linewidth=2, linestyle=dashes[number % 4]
        )
        ends.append((1, sizes[-1], f"{title}, {sizes[-1]:,.0f}", "black"))
    axis.set(yscale="log", xlim=(0, 1))
    ticks = [1, 10, 100, 1000]
    axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    style.grid(axis)
    style.percent_axis(axis, "x")
    style.labels(axis, "depth (share of the network's layers)", "receptive field (pixels, logarithmic)")
    style.names_at_ends(axis, ends)
    return page


def regions_on_photo(photo, regions):
    """What one feature sees, drawn on a large photo, two panels per row; small regions are enlarged beside their box.

    Args:
        photo: (height, width, 3), 0..255.
        regions: panel title -> (start, stop, center), each (y, x) in pixels, unclipped.

    Returns:
        Figure; grey is padding, shown only where a region reaches over the edge.
    """
    rows = math.ceil(len(regions) / 2)
    page, axes = style.drawing(8.8, 4.9 * rows, 2, rows, photos=True)
    height, width = photo.shape[:2]
    for axis, (title, (start, stop, center)) in zip(axes, regions.items(), strict=False):
        pixels = np.clip(photo, 0, 255).astype("uint8")
        (top, left), (bottom, right) = start, stop
        low, high = (min(0, top), min(0, left)), (max(height, bottom), max(width, right))
        style.box(axis, low[::-1], high[1] - low[1], high[0] - low[0], color="#d9d9d9", zorder=0)
        axis.imshow(pixels, extent=(0, width, height, 0), zorder=1)
        for colour, line in (("white", 5), (WRONG, 3)):
            look = {"fill": False, "edgecolor": colour, "linewidth": line}
            style.box(axis, (left, top), right - left, bottom - top, zorder=3, **look)
        axis.set(xlim=(low[1] - 2, high[1] + 2), ylim=(high[0] + 2, low[0] - 2), aspect="equal")
        if max(bottom - top, right - left) < 0.2 * min(height, width):
            _enlarged(axis, pixels, (top, left, bottom, right))
        elif bottom - top < 2 * height:
            axis.plot(center[1] + 0.5, center[0] + 0.5, "+", color=WRONG, markersize=12, markeredgewidth=2.5, zorder=4)
        style.labels(axis, title=title)
    return page


def _enlarged(axis, pixels, box):
    """The boxed piece of the photo, enlarged in the corner that is farthest from it."""
    (top, left, bottom, right), (height, width) = box, pixels.shape[:2]
    at_left, at_top = left + right > width, top + bottom > height
    inset = axis.inset_axes((0.02 if at_left else 0.58, 0.58 if at_top else 0.02, 0.4, 0.4), zorder=5)
    inset.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    inset.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set(visible=True, edgecolor=WRONG, linewidth=3)
    ends = ((left, top), (right, bottom)) if at_left != at_top else ((right, top), (left, bottom))
    for x, y in ends:
        axis.add_artist(ConnectionPatch((x, y), (x, y), "data", axesA=inset, axesB=axis, color=WRONG, zorder=4))


def effective_maps(maps, photo):
    """Where a feature really looks: measured maps as light over a photo, with the theoretical box and fitted Gaussian.

    Args:
        maps: panel title -> (map, start, stop, center, gaussian_size): map is (height, width) in 0..1, the rest (y, x)
            in pixels.
        photo: (height, width, 3) in 0..255, shown brightest where the map is strongest.
    """
    columns = min(3, len(maps))
    rows = math.ceil(len(maps) / columns)
    lines, outline = 1 + max(title.count("\n") for title in maps), {"fill": False, "edgecolor": WRONG, "linewidth": 2.5}
    page, axes = style.drawing(3.3 * columns, (3.3 + 0.25 * lines) * rows + 0.4, columns, rows, photos=True)
    for axis, (title, (values, start, stop, center, size)) in zip(axes, maps.items(), strict=False):
        height, width = values.shape
        canvas = np.asarray(photo, float)
        strength = np.sqrt(np.clip(values, 0, 1))[..., None]  # as a root: the flanks of the Gaussian stay visible
        shown = strength * canvas + (1 - strength) * 0.22 * canvas.mean(axis=-1, keepdims=True)
        axis.imshow(shown.astype("uint8"), extent=(0, width, height, 0))
        style.box(axis, start[::-1], stop[1] - start[1], stop[0] - start[0], **outline)
        middle = (center[1] + 0.5, center[0] + 0.5)
        axis.add_patch(Ellipse(middle, size[1], size[0], fill=False, edgecolor="white", linewidth=2.2, linestyle="--"))
        axis.set(xlim=(-2, width + 2), ylim=(height + 2, -2), aspect="equal")
        style.labels(axis, title=title)
    keys = [Rectangle((0, 0), 1, 1, **outline), Line2D([], [], color="black", linestyle="--", linewidth=2)]
    said = ["theoretical receptive field", "measured: a Gaussian that holds 95% of the gradient"]
    style.key(page, keys, said)
    return page
