"""Figures about cost and sight: where the MACs sit, what time they take, which pixels a feature sees.

Every function takes data and returns a matplotlib Figure; none computes or shows anything.
"""

import math

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Ellipse, Rectangle

from utils.plots import style as plots_style
from utils.plots.style import COLOURS, DPI, GREY, MARKERS, RED, SKY, TEXT, TITLE


def macs_by_block(blocks):
    """Bars of MACs by block in execution order, stacked by kind of layer, one panel a model.

    Args:
        blocks: {model title: DataFrame}, indexed by block, one column a kind, values in millions of MACs.

    Returns:
        Figure.
    """
    kinds = list(dict.fromkeys(kind for frame in blocks.values() for kind in frame.columns))
    columns = min(2, len(blocks))
    rows = math.ceil(len(blocks) / columns)
    figure, axes = plots_style.figure(4.2 * columns, 4.1 * rows, rows, columns)
    for axis in axes.flat[len(blocks) :]:
        axis.set_visible(False)
    for axis, (title, frame) in zip(axes.flat, blocks.items(), strict=False):
        bottom = np.zeros(len(frame))
        for colour, kind in zip(COLOURS, kinds, strict=False):
            values = frame[kind].to_numpy(float) if kind in frame else np.zeros(len(frame))
            axis.bar(range(len(frame)), values, bottom=bottom, color=colour, label=kind, width=0.85)
            bottom += values
        axis.set_ylim(0, 1.06 * bottom.max())
        axis.set_xticks(range(len(frame)), frame.index, rotation=90)
        plots_style.labels(axis, title=title)
    for axis in axes[:, 0]:
        plots_style.labels(axis, y="MACs (millions)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(kinds), fontsize=12, frameon=False)
    return figure


def macs_by_type(shares):
    """One bar a model, split into the shares of the kinds of layers.

    Args:
        shares: DataFrame, indexed by model title, one column a kind, values are shares of all MACs (rows sum to 1).

    Returns:
        Figure.
    """
    figure, ((axis,),) = plots_style.figure(9, 1.2 + 0.7 * len(shares))
    left = np.zeros(len(shares))
    for colour, kind in zip(COLOURS, shares.columns, strict=False):
        values = shares[kind].to_numpy(float)
        axis.barh(range(len(shares)), values, left=left, color=colour, label=kind, height=0.7)
        for row, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 0.04:
                white = colour in ("#0072B2", "#009E73", "#D55E00", "#000000")
                axis.text(
                    start + value / 2, row, f"{value:.0%}", ha="center", va="center", fontsize=11,
                    color="white" if white else "black",
                )  # fmt: skip
        left += values
    axis.set_yticks(range(len(shares)), shares.index)
    axis.set_xlim(0, 1)
    axis.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    axis.invert_yaxis()
    plots_style.labels(axis, x="share of all MACs")
    figure.legend(loc="outside upper center", ncols=len(shares.columns), fontsize=11, frameon=False)
    return figure


def macs_against_time(layers, rates=(1, 10, 100)):
    """Layers as points: MACs against measured milliseconds, both logarithmic, with lines of equal speed.

    The slowest layer of each kind is named.

    Args:
        layers: DataFrame with columns kind, macs, median_ms, and path for the labels; macs above 0.
        rates: speeds to draw lines at, in billions of MACs a second.

    Returns:
        Figure.
    """
    figure, ((axis,),) = plots_style.figure(8.5, 5.6)
    span = np.array([layers["macs"].min() * 0.7, layers["macs"].max() * 1.5], float)
    low, high = layers["median_ms"].min() * 0.6, layers["median_ms"].max() * 1.8
    for rate in rates:
        times = span / (rate * 1e6)
        axis.plot(span / 1e6, times, color=GREY, linewidth=1, linestyle="--", zorder=1)
        x = max(span[0] / 1e6, low * rate)
        if x < span[1] / 1e6:
            axis.annotate(
                f"{rate} GMAC/s", (x, x / rate), fontsize=10, color=GREY, ha="left", va="bottom",
                xytext=(9, 1), textcoords="offset points",
            )  # fmt: skip
    for colour, marker, (kind, group) in zip(COLOURS, MARKERS, layers.groupby("kind", sort=False), strict=False):
        axis.scatter(group["macs"] / 1e6, group["median_ms"], s=48, color=colour, marker=marker, label=kind, zorder=2)
    for row in layers.loc[layers.groupby("kind", sort=False)["median_ms"].idxmax()].itertuples():
        right = row.macs < span.mean() / 4
        axis.annotate(
            row.path, (row.macs / 1e6, row.median_ms), fontsize=10, ha="left" if right else "right",
            xytext=(8 if right else -8, 6), textcoords="offset points",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=span / 1e6, ylim=(low, high))
    plots_style.labels(axis, x="MACs of the layer (millions)", y="measured time (ms)")
    axis.legend(fontsize=11, frameon=False, loc="upper left")
    return figure


def model_drawings(stages):
    """Networks as rows of boxes, one a resolution: height is the side of the grid, width the channels, colour the MACs.

    Args:
        stages: {model title: DataFrame} in the order of execution, with the columns side (px of the grid), channels
            (of the last layer at that side), layers (calls that multiply) and macs.

    Returns:
        Figure.

    Example:
        >>> page = model_drawings({"Small": pd.DataFrame({"side": [8], "channels": [4], "layers": [2], "macs": [100]})})
    """
    figure, axes = plots_style.figure(7.6, 2.5 * len(stages), len(stages), 1)
    colours = plt.get_cmap("Blues")
    tallest = max(frame["side"].max() for frame in stages.values())
    for axis, (title, frame) in zip(axes.flat, stages.items(), strict=True):
        shares = frame["macs"].to_numpy(float) / frame["macs"].sum()
        left = 0.0
        for row, share in zip(frame.itertuples(), shares, strict=True):
            # Square roots, else a grid of 224 pixels beside one of 7, and 1,280 channels beside 3, could not be seen.
            height, width = math.sqrt(row.side / tallest), 0.03 * math.sqrt(row.channels)
            colour = colours(0.08 + 0.75 * share)
            axis.add_patch(Rectangle((left, -height / 2), width, height, facecolor=colour, edgecolor="#333333"))
            middle = left + width / 2
            axis.text(middle, 0.56, f"{share:.0%}" if row.macs else "–", ha="center", va="bottom", fontsize=TEXT)
            layers = f"{row.layers} layer{'s' if row.layers > 1 else ''}" if row.layers else "photo"
            says = f"{row.side} × {row.side}\n× {row.channels}\n{layers}"
            axis.text(middle, -0.56, says, ha="center", va="top", fontsize=TEXT)
            left += max(width, 0.5) + 0.22
        axis.set(xlim=(-0.45, left), ylim=(-1.25, 0.8))
        axis.set_axis_off()
        axis.set_title(title, fontsize=TITLE, loc="left")
    widest = max(axis.get_xlim()[1] for axis in axes.flat)
    for axis in axes.flat:
        axis.set_xlim(-0.3, widest)
    figure.supxlabel("below: grid × channels, layers that multiply; above: share of the MACs", fontsize=TEXT)
    return figure


def field_by_depth(curves, input_size=224):
    """Receptive field (side, pixels) against depth, one line a model, with the input's side for comparison.

    Args:
        curves: {model title: sequence of sizes in pixels, in execution order}; drawn over relative depth 0..1.
        input_size: side of the input in pixels.

    Returns:
        Figure.
    """
    figure, ((axis,),) = plots_style.figure(8.5, 5)
    axis.axhline(input_size, color=GREY, linestyle="--", linewidth=1.2)
    axis.annotate(
        f"input: {input_size} px", (0.0, input_size), xytext=(4, 4), textcoords="offset points", fontsize=11, color=GREY
    )
    for number, (title, sizes) in enumerate(curves.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        style = "-" if number % 4 < 3 else (0, (2, 1.5))  # dashes, so that equal curves both show
        sizes = np.asarray(sizes, float)
        depth = np.linspace(0, 1, len(sizes))
        axis.step(depth, sizes, where="post", color=colour, linewidth=2.4, linestyle=style, label=title)
        axis.plot(depth[-1:], sizes[-1:], color=colour, marker=marker, markersize=9, linestyle="none")
        axis.annotate(
            f"{sizes[-1]:.0f}", (1, sizes[-1]), xytext=(8, 0), textcoords="offset points", fontsize=12, color=colour,
            va="center", annotation_clip=False,
        )  # fmt: skip
    ticks = [3, 10, 30, 100, 300, 1000]
    axis.set_yscale("log")
    axis.set_yticks(ticks, ticks)
    axis.minorticks_off()
    axis.set_xlim(0, 1)
    plots_style.labels(axis, x="depth (share of the network's layers)", y="receptive field (pixels)")
    axis.legend(fontsize=12, frameon=False, loc="lower right")
    return figure


def regions_on_photo(photo, regions):
    """What one feature sees, drawn on a photo, one panel a region; what lies outside the photo is padding.

    Args:
        photo: (height, width, 3), 0..255.
        regions: {panel title: (start, stop, center)}, each (y, x) in pixels, unclipped.

    Returns:
        Figure.
    """
    columns = 2 if len(regions) % 2 == 0 else min(3, len(regions))
    rows = math.ceil(len(regions) / columns)
    figure, axes = plots_style.figure(3.8 * columns, 4.4 * rows, rows, columns)
    for axis in axes.flat[len(regions) :]:
        axis.set_visible(False)
    height, width = photo.shape[:2]
    lows = [min(0, *(start[axis] for start, _, _ in regions.values())) for axis in (0, 1)]
    highs = [max(side, *(stop[axis] for _, stop, _ in regions.values())) for axis, side in enumerate((height, width))]
    for axis, (title, (start, stop, center)) in zip(axes.flat, regions.items(), strict=False):
        axis.add_patch(Rectangle((lows[1], lows[0]), highs[1] - lows[1], highs[0] - lows[0], color="#e6e6e6", zorder=0))
        axis.imshow(np.asarray(photo).astype("uint8"), extent=(0, width, height, 0), zorder=1)
        box = {"fill": False, "linewidth": 3, "zorder": 3}
        corner, sides = (start[1], start[0]), (stop[1] - start[1], stop[0] - start[0])
        axis.add_patch(Rectangle(corner, *sides, edgecolor="white", **{**box, "linewidth": 5}))
        axis.add_patch(Rectangle(corner, *sides, edgecolor=RED, **box))
        axis.plot(center[1] + 0.5, center[0] + 0.5, "+", color=RED, markersize=13, markeredgewidth=2.5, zorder=4)
        margin = 0.03 * (highs[0] - lows[0])
        axis.set(xlim=(lows[1] - margin, highs[1] + margin), ylim=(highs[0] + margin, lows[0] - margin), aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        plots_style.labels(axis, title=title)
    return figure


def effective_maps(maps):
    """Effective receptive fields as maps, with the theoretical box and the fitted Gaussian, one panel a layer.

    Args:
        maps: {panel title: (map, start, stop, center, gaussian_size)}: map is (height, width) in 0..1, the rest (y, x)
            in pixels.

    Returns:
        Figure.
    """
    columns = min(3, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure, axes = plots_style.figure(3.2 * columns, 4.1 * rows + 0.9, rows, columns)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    for axis, (title, (values, start, stop, center, size)) in zip(axes.flat, maps.items(), strict=False):
        height, width = values.shape
        picture = axis.imshow(values, cmap=plt.get_cmap("magma", 12), vmin=0, vmax=1, extent=(0, width, height, 0))
        axis.add_patch(
            Rectangle(
                (start[1], start[0]), stop[1] - start[1], stop[0] - start[0], fill=False, edgecolor=SKY,
                linewidth=2.5,
            )
        )  # fmt: skip
        axis.add_patch(
            Ellipse(
                (center[1] + 0.5, center[0] + 0.5), size[1], size[0], fill=False, edgecolor="white", linewidth=2,
                linestyle="--",
            )
        )  # fmt: skip
        axis.set(xlim=(-2, width + 2), ylim=(height + 2, -2), aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        plots_style.labels(axis, title=title)
    bar = figure.colorbar(picture, ax=list(axes.flat), location="bottom", shrink=0.6, aspect=30)
    bar.set_label("gradient, share of the strongest pixel", fontsize=12)
    bar.ax.tick_params(labelsize=11)
    return figure


def zoo(models, highlight=()):
    """Models by parameters and MACs (logarithmic), coloured by receptive field.

    Args:
        models: DataFrame with columns model, params, macs, receptive_field_px, whole_image.
        highlight: names that are ringed; all names are written.

    Returns:
        Figure.
    """
    figure, ((axis,),) = plots_style.figure(11, 7.5)
    for whole, marker in ((False, "s"), (True, "o")):
        group = models[models["whole_image"] == whole]
        points = axis.scatter(
            group["params"] / 1e6, group["macs"] / 1e9, c=np.log10(group["receptive_field_px"].astype(float)), s=90,
            marker=marker, cmap="viridis", vmin=2, vmax=3.7, edgecolor="black", linewidth=0.5, zorder=2,
            label="with squeeze-excite or other global operations" if whole else "local operations only",
        )  # fmt: skip
    ringed = models[models["model"].isin(highlight)]
    axis.scatter(ringed["params"] / 1e6, ringed["macs"] / 1e9, s=330, facecolor="none", edgecolor=RED, lw=2.5)
    axis.set(xscale="log", yscale="log")
    bar = figure.colorbar(points, ax=axis)
    bar.set_ticks(np.log10([100, 200, 500, 1000, 2000, 5000]), labels=[100, 200, 500, 1000, 2000, 5000])
    bar.set_label("receptive field of the last layer (pixels)", fontsize=12)
    plots_style.labels(axis, x="parameters (millions)", y="MACs (billions)")
    axis.legend(fontsize=11, frameon=False, loc="upper left")
    _write_apart(figure, axis, models)
    return figure


def _write_apart(figure, axis, models):
    """Write each model's name beside its point, at the first place that no other name or point has taken."""
    figure.canvas.draw()
    beside = [(8, -4), (-8, -4), (0, 9), (0, -17), (8, 8), (8, -16), (-8, 8), (-8, -16), (14, 18), (-14, 18), (14, -28)]
    pixels = DPI / 72  # of a point
    places = np.column_stack([models["params"] / 1e6, models["macs"] / 1e9])
    points = axis.transData.transform(places)
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    for name, place, (x, y) in zip(models["model"], places, points, strict=True):
        width, height = 5.2 * pixels * len(name), 10 * pixels
        for right, up in beside:
            anchor = "left" if right > 0 else "right" if right < 0 else "center"
            left = x + right * pixels - {"left": 0, "right": width, "center": width / 2}[anchor]
            box = (left, y + up * pixels, left + width, y + up * pixels + height)
            free = all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in taken)
            if free:
                break
        taken.append(box)
        axis.annotate(
            name,
            place,
            xytext=(right, up),
            textcoords="offset points",
            fontsize=9,
            ha=anchor,
        )
