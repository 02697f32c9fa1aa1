"""Figures about deployment: bytes, levels of an integer, changed answers, noise by layer, time, pruning, one answer."""

import numpy as np
from matplotlib.ticker import FuncFormatter

from utils.plots import style
from utils.plots.style import FLOAT, GREY, INT8, LABEL, LIGHT, TEXT, WRONG


def file_bars(table):
    """Files as bars of megabytes, largest on top, with their accuracy as text behind the bar.

    Args:
        table: DataFrame of `quantization.evaluate_schemes`, one row per file: scheme (column or index), size_bytes,
            accuracy (0..1); with `agreement` (0..1, same answer as float32) that is written too.

    Example:
        >>> import pandas as pd
        >>> rows = [("float32", 13.5e6, 0.933), ("int8", 4e6, 0.931)]
        >>> page = file_bars(pd.DataFrame(rows, columns=["scheme", "size_bytes", "accuracy"]))
    """
    table = table if "scheme" in table else table.reset_index(names="scheme")
    style.need(table, "scheme", "size_bytes", "accuracy")
    rows = table.sort_values("size_bytes", kind="stable")
    page, ((axis,),) = style.figure(8.6, 1.1 + 0.42 * len(rows))
    sizes = rows["size_bytes"].to_numpy(float) / 1e6
    colours = [INT8 if "int8" in name else FLOAT if "float" in name else GREY for name in rows["scheme"]]
    axis.barh(range(len(rows)), sizes, color=colours, height=0.7)
    for place, row in enumerate(rows.to_dict("records")):
        said = f"{sizes[place]:.1f} MB, {row['accuracy']:.1%} accurate"
        if "agreement" in row and row["scheme"] != "float32":
            said += f", {row['agreement']:.1%} as float32"
        inside = sizes[place] > 0.6 * sizes.max()
        look = {"ha": "right", "color": "white"} if inside else {"ha": "left", "color": "black"}
        style.note(axis, said, (sizes[place], place), (-8 if inside else 8, 0), **look)
    axis.set_yticks(range(len(rows)), rows["scheme"], fontsize=LABEL)
    style.labels(axis, "size of the .tflite file (MB)")
    return page


def changed_answers(table):
    """Photos whose answer changed: beside each, the probabilities of float32 and int8 for the classes in question.

    Args:
        table: DataFrame, one row per photo: path, true, and two columns of dicts class -> probability, `float32` and
            `int8`; the two or three most probable classes are drawn.
    """
    if len(table) == 0:
        return style.nothing("No answer changed.")
    style.need(table, "path", "true", "float32", "int8")
    columns, side = min(3, len(table)), 150
    rows = -(-len(table) // columns)
    widths = [side, 1.25 * side] * columns
    page, axes = style.drawing(3.9 * columns, 0.5 + 1.95 * rows, len(widths), rows, photos=True, width_ratios=widths)
    for place, row in enumerate(table.to_dict("records")):
        photo, bars = axes[2 * place :][:2]
        photo.imshow(style.thumbnail(row["path"], side))
        photo.set_title(f"true: {row['true']}", fontsize=LABEL)
        classes = sorted(row["float32"], key=lambda name: -(row["float32"][name] + row["int8"].get(name, 0)))[:3]
        for number, name in enumerate(classes):
            for shift, kind, colour in ((0.19, "float32", FLOAT), (-0.19, "int8", INT8)):
                share = row[kind].get(name, 0.0)
                bars.barh(-1.4 * number + shift, share, color=colour, height=0.34)
                bars.text(share, -1.4 * number + shift, f" {share:.0%}", va="center", fontsize=TEXT - 1)
            ink = "black" if name == row["true"] else WRONG
            bars.text(0, -1.4 * number + 0.4, name, va="bottom", fontsize=TEXT, color=ink)
        bars.set(xlim=(0, 1.3), ylim=(-3.3, 1))
    handles = [axes[1].barh([0], [0], color=colour) for colour in (FLOAT, INT8)]
    style.key(page, handles, ["float32", "int8"])
    return page


def quantization_error(errors, worst=5):
    """Signal-to-noise ratio of every layer in the order of computation; the worst are named beside their points.

    Args:
        errors: DataFrame in the order of execution with the columns layer and "SQNR (dB)"; low is bad.
        worst: how many to name.

    Example:
        >>> import pandas as pd
        >>> page = quantization_error(pd.DataFrame({"layer": list("abc"), "SQNR (dB)": [30.0, 12.0, 33.0]}), worst=1)
    """
    style.need(errors, "layer", "SQNR (dB)")
    page, ((axis,),) = style.figure(8.6, 4.6)
    values, names = errors["SQNR (dB)"].to_numpy(float), errors["layer"].astype(str).to_numpy()
    places = np.arange(len(values))
    blocks = errors["layer"].astype(str).str.extract(r"(^[a-zA-Z_]*\d+)")[0].fillna("").to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], blocks[1:] != blocks[:-1]]))
    for start, end in zip(starts[1::2], [*starts[2::2], len(values)], strict=False):
        axis.axvspan(start - 0.5, end - 0.5, color=LIGHT, alpha=0.5, linewidth=0)
    chosen = np.isin(places, np.argsort(values, kind="stable")[:worst])
    axis.plot(places, values, color=INT8, linewidth=1, alpha=0.4)
    axis.plot(places[~chosen], values[~chosen], "o", color=INT8, markersize=5)
    axis.plot(places[chosen], values[chosen], "D", color=WRONG, markersize=8)
    axis.margins(x=0.02, y=0.12)
    style.labels(axis, "layer, in the order of computation (blocks shaded by turns)", "SQNR (dB)")
    ends = [(place, values[place], f"{names[place]}: {values[place]:.1f}", "black") for place in places[chosen]]
    axis.set_xlim(axis.get_xlim())
    style.names_at_ends(axis, ends, leaders=True)
    return page


def latency_bars(table, marks=None):
    """Milliseconds per photo of every way to run a network, fastest on top, on a logarithmic axis.

    Args:
        table: DataFrame of `latency.compare`: name, median_ms, lower_quartile_ms, upper_quartile_ms; rows without a
            time are left out; "int8" or "float" in a name decides the colour.
        marks: words -> milliseconds, vertical lines such as {"published": 3200}.

    Returns:
        Figure; `table.attrs["caption"]` belongs into its caption.

    Example:
        >>> import pandas as pd
        >>> columns = ["name", "median_ms", "lower_quartile_ms", "upper_quartile_ms"]
        >>> page = latency_bars(pd.DataFrame([("int8", 11.0, 10.8, 11.4)], columns=columns), {"published": 3200})
    """
    style.need(table, "name", "median_ms", "lower_quartile_ms", "upper_quartile_ms")
    rows = table.dropna(subset=["median_ms"]).sort_values("median_ms", ascending=False, kind="stable")
    page, ((axis,),) = style.figure(8.8, 1.3 + 0.4 * len(rows))
    times, marks = rows["median_ms"].to_numpy(float), marks or {}
    names = rows["name"].astype(str)
    low = 0.5 * times.min()
    colours = [INT8 if "int8" in name else GREY if "int16" in name or "dynamic" in name else FLOAT for name in names]
    axis.barh(range(len(rows)), times - low, left=low, color=colours, height=0.68)
    spread = np.stack([times - rows["lower_quartile_ms"], rows["upper_quartile_ms"] - times])
    axis.errorbar(times, range(len(rows)), xerr=np.abs(spread), fmt="none", ecolor=GREY, capsize=3)
    for place, value in enumerate(times):
        x = max(value, rows["upper_quartile_ms"].iloc[place])
        style.note(axis, _milliseconds(value), (x, place), (8, 0))
    for words, value in marks.items():
        axis.axvline(value, color=WRONG, linestyle="--", linewidth=1.6)
        said = words if _milliseconds(value) in words else f"{words}: {_milliseconds(value)}"
        style.note(axis, said, (value, len(rows) - 0.4), (0, 3), ha="right", va="bottom", color=WRONG)
    axis.set(xscale="log", xlim=(low, 2.6 * max(times.max(), *marks.values(), 0)), ylim=(-0.6, len(rows) - 0.4))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_yticks(range(len(rows)), names, fontsize=TEXT)
    style.labels(axis, "milliseconds per photo (logarithmic; bars: quartiles)")
    return page


def _milliseconds(value):
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def pruning_curves(table):
    """What pruning costs and buys: accuracy and size against the share removed, one labelled line per kind.

    Args:
        table: DataFrame with the columns kind ("weights", "channels", perhaps with ", int8" or ", one-shot"), removed
            (share), accuracy and gzip_mb; accuracy_low and accuracy_high become a band. NaN is left out.

    Returns:
        Figure of two panels: the colour says what is removed, dashes say int8.

    Example:
        >>> import pandas as pd
        >>> rows = {"kind": ["weights"] * 2, "removed": [0, 0.8], "accuracy": [0.93, 0.9], "gzip_mb": [12.5, 3.9]}
        >>> page = pruning_curves(pd.DataFrame(rows))
    """
    style.need(table, "kind", "removed", "accuracy", "gzip_mb")
    page, (axes,) = style.figure(10.4, 4.4, 1, 2)
    for axis, column, label in zip(axes, ("accuracy", "gzip_mb"), ("accuracy", "size after gzip (MB)"), strict=True):
        ends = []
        for kind, rows in table.groupby("kind", sort=False):
            rows = rows.dropna(subset=[column]).sort_values("removed")
            colour = style.POINTWISE if kind.startswith("channels") else style.DENSE
            dashes = (0, (4, 2)) if "int8" in kind else "-"
            marker = "^" if "one-shot" in kind else "o"
            axis.plot(
                rows["removed"], rows[column], color=colour, marker=marker, linestyle=dashes, linewidth=2, markersize=7
            )
            if column == "accuracy" and {"accuracy_low", "accuracy_high"} <= set(rows):
                axis.fill_between(
                    rows["removed"], rows["accuracy_low"], rows["accuracy_high"], color=colour, alpha=0.08
                )
            ends.append((rows["removed"].iloc[-1], rows[column].iloc[-1], kind, colour))
        style.grid(axis)
        style.percent_axis(axis, "x")
        if column == "accuracy":
            style.percent_axis(axis)
        else:
            axis.set_ylim(bottom=0)
        style.labels(axis, "share of weights or channels removed", label)
        axis.set_xlim(axis.get_xlim()[0], 1.0)
        style.names_at_ends(axis, ends, leaders=True)
    return page


def top_predictions(photo, probabilities, true=None):
    """A photo and, beside it, bars of its three most probable classes.

    Args:
        photo: path, or array (h, w, 3) in 0..255.
        probabilities: class -> probability.
        true: name of the true class, or None; a wrong first answer is coloured.

    Example:
        >>> page = top_predictions(np.zeros((8, 8, 3)), {"hat": 0.9, "shirt": 0.06, "shoes": 0.02})
    """
    page, (picture, bars) = style.drawing(8.8, 2.3, 2, photos=True, width_ratios=(1, 2.4))
    picture.imshow(style.thumbnail(photo, 220))
    best = sorted(probabilities.items(), key=lambda pair: -pair[1])[:3]
    for place, (name, share) in enumerate(best):
        wrong = true is not None and place == 0 and name != true
        bars.barh(-place, share, color=WRONG if wrong else FLOAT, height=0.5)
        bars.text(-0.02, -place, name, ha="right", va="center", fontsize=LABEL)
        bars.text(share + 0.02, -place, f"{share:.1%}", va="center", fontsize=LABEL)
    bars.set(xlim=(-0.35, 1.25), ylim=(-2.8, 0.8))
    return page


def old_runtimes(table, published_ms=None):
    """Milliseconds per photo of one network's float32 and int8 file, in the runtimes of several years.

    Args:
        table: DataFrame indexed by the runtime's name, oldest first, with the columns float32 and int8 (ms).
        published_ms: a time to compare with, as a dashed line.

    Returns:
        Figure.

    Example:
        >>> import pandas as pd
        >>> page = old_runtimes(pd.DataFrame({"float32": [90, 60], "int8": [1100, 83]}, index=["2.4", "2.12"]), 3200)
    """
    style.need(table, "float32", "int8")
    page, ((axis,),) = style.figure(8.8, 1.2 + 0.52 * len(table))
    places = np.arange(len(table))[::-1]
    for column, colour, lift in (("float32", FLOAT, 0.2), ("int8", INT8, -0.2)):
        values = table[column].to_numpy(float)
        axis.barh(places + lift, values, height=0.38, color=colour)
        for place, value in zip(places + lift, values, strict=True):
            words = f"{column}, {_milliseconds(value)}" if place > places.max() - 0.5 else _milliseconds(value)
            style.note(axis, words, (value, place), (6, 0))
    if published_ms:
        axis.axvline(published_ms, color=WRONG, linestyle="--", linewidth=1.6)
        said = f"published: {_milliseconds(published_ms)}"
        style.note(axis, said, (published_ms, len(table) - 0.5), (-4, 2), ha="right", va="bottom", color=WRONG)
    axis.set(xlim=(0, 1.06 * max(published_ms or 0, 1.15 * table.to_numpy(float).max())))
    axis.set_ylim(-0.6, len(table) - 0.1)
    axis.set_yticks(places, table.index, fontsize=TEXT)
    style.labels(axis, "milliseconds per photo, one thread")
    return page
