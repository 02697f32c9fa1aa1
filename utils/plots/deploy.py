"""Figures about deployment: accuracy against bytes, where quantization errs, what calls cost, what pruning buys.

Every function takes data and returns a matplotlib Figure; none computes or shows anything.
"""

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from utils.plots import style as plots_style
from utils.plots.style import BLUE, COLOURS, GREEN, GREY, MARKERS, RED


def accuracy_against_size(table, reference=None, title=None):
    """Accuracy with its interval against the bytes of the file, one marker a scheme; the legend gives both numbers.

    Args:
        table: DataFrame with the columns scheme, size_bytes, accuracy, accuracy_low, accuracy_high; with a column
            model, markers tell schemes and colours models apart.
        reference: accuracy of a horizontal line (the Keras model), or None.
        title: of the figure.

    Returns:
        Figure.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    plots_style.need(table, "scheme", "size_bytes", "accuracy", "accuracy_low", "accuracy_high")
    figure, axis = _figure(11, 5.4)
    schemes = list(dict.fromkeys(table["scheme"]))
    models = list(dict.fromkeys(table["model"])) if "model" in table else []
    for row in table.to_dict("records"):
        colour = (models.index(row["model"]) if models else schemes.index(row["scheme"])) % len(COLOURS)
        value, size = row["accuracy"], row["size_bytes"] / 1e6
        owner = f"{row['model']}, " if models else ""
        axis.errorbar(
            size, value, [[abs(value - row["accuracy_low"])], [abs(row["accuracy_high"] - value)]],
            fmt=MARKERS[schemes.index(row["scheme"]) % len(MARKERS)], color=COLOURS[colour], markersize=10, capsize=4,
            elinewidth=1.2, alpha=0.9, label=f"{owner}{row['scheme']}: {size:.2f} MB, {value:.1%}",
        )  # fmt: skip
    if reference is not None:
        axis.axhline(reference, color=GREY, linestyle="--", linewidth=1.2, label=f"Keras model: {reference:.1%}")
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=11.5)
    return _finish(figure, axis, title, "size of the .tflite file (MB)", "test accuracy (bars: 95 % interval)")


def quantization_error(errors, worst=5, value="SQNR (dB)", lower_is_worse=True, title=None):
    """Error of every layer in the order of computation; the worst are marked and named.

    Args:
        errors: DataFrame in execution order with the columns layer and `value`.
        worst: how many to name.
        value: column to show.
        lower_is_worse: for a signal-to-noise ratio; False for an error.
        title: of the figure.

    Returns:
        Figure.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    plots_style.need(errors, "layer", value)
    figure, axis = _figure(10, 5.2)
    values = errors[value].to_numpy(float)
    places = np.arange(len(values))
    order = np.argsort(values if lower_is_worse else -values, kind="stable")[:worst]
    chosen = np.isin(places, order)
    axis.plot(places, values, color=BLUE, linewidth=1, alpha=0.5)
    axis.plot(places[~chosen], values[~chosen], "o", color=BLUE, markersize=5)
    axis.plot(places[chosen], values[chosen], "D", color=RED, markersize=9)
    names = [f"{rank}. {errors['layer'].iloc[place]}: {values[place]:.3g}" for rank, place in enumerate(order, start=1)]
    for rank, place in enumerate(order, start=1):
        axis.annotate(
            str(rank), (place, values[place]), (0, -17 if lower_is_worse else 9), textcoords="offset points",
            ha="center", color=RED, fontsize=12,
        )  # fmt: skip
    axis.margins(y=0.09)
    figure.legend(
        handles=[axis.plot([], [], "D", color=RED, label=name)[0] for name in names], title="worst layers",
        loc="outside right upper", frameon=False, fontsize=11, title_fontsize=12,
    )  # fmt: skip
    return _finish(figure, axis, title, "operator, in the order of computation", value)


def latency_ratios(table, title=None):
    """Ratio to the baseline with its interval on a logarithmic axis, one labelled row a candidate.

    Args:
        table: DataFrame of `latency.compare`: name, threads, ratio, ratio_low, ratio_high, perhaps note; candidates
            without a ratio are shown with their note.
        title: of the figure.

    Returns:
        Figure; the caption of the measurement (`table.attrs["caption"]`) belongs under it.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    plots_style.need(table, "name", "ratio", "ratio_low", "ratio_high")
    rows = table.iloc[::-1]
    figure, axis = _figure(10, 1.6 + 0.36 * len(rows))
    ratio = rows["ratio"].to_numpy(float)
    low, high = rows["ratio_low"].to_numpy(float), rows["ratio_high"].to_numpy(float)
    places = np.arange(len(rows))
    there = np.isfinite(ratio)
    colours = np.where(ratio > 1.1, RED, np.where(ratio < 0.9, GREEN, BLUE))
    for place in places[there]:
        axis.plot([1, ratio[place]], [place, place], color=colours[place], linewidth=5, alpha=0.25)
        axis.plot([low[place], high[place]], [place, place], color=colours[place], linewidth=2)
        axis.plot(ratio[place], place, "o", color=colours[place], markersize=8)
        axis.annotate(
            f"{ratio[place]:.3g}", (max(high[place], 1), place), (8, 0), textcoords="offset points", va="center",
            fontsize=11,
        )  # fmt: skip
    for place in places[~there]:
        note = rows["note"].iloc[place] if "note" in rows else "not measured"
        axis.annotate(str(note), (1, place), (8, 0), textcoords="offset points", va="center", fontsize=10, color=GREY)
    axis.axvline(1, color=GREY, linewidth=1.2)
    axis.set_xscale("log")
    axis.set_xlim(min(np.nanmin(low), 1) * 0.85, max(np.nanmax(high), 1) * 1.8)
    axis.set_yticks(places, rows["name"])
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    baseline = table.attrs.get("baseline", "the baseline")
    return _finish(figure, axis, title, f"time relative to {baseline} (log scale; bars: 95 % interval)", None)


def pruning_curves(
    table,
    panels=(("accuracy", "accuracy"), ("gzip_mb", "gzip (MB)"), ("macs_m", "MACs (millions)"), ("ratio", "time ratio")),
):
    """What pruning costs and buys against the share removed, one line a kind, one panel a quantity.

    Args:
        table: DataFrame with the columns kind (a phrase such as "weights" or "channels, int8"), removed (share) and
            those of `panels`; for a panel's column C, columns C_low and C_high become error bars. NaN is left out.
        panels: (column, axis label) pairs; columns that the table lacks are left out.

    Returns:
        Figure.

    Raises:
        ValueError: kind or removed is missing, no panel is there, or there is no row.
    """
    plots_style.need(table, "kind", "removed")
    panels = [(column, label) for column, label in panels if column in table]
    if not panels:
        raise ValueError("the pruning table has no column to draw; name some in panels=((column, label), ...)")
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure(5.6 * columns, 3.9 * lines, lines, columns)
    axes = np.atleast_1d(axes).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (column, label) in zip(axes, panels, strict=False):
        for (kind, rows), colour, marker in zip(table.groupby("kind", sort=False), COLOURS, MARKERS, strict=False):
            rows = rows.dropna(subset=[column]).sort_values("removed")
            value = rows[column].to_numpy(float)
            spread = None
            if f"{column}_low" in rows and f"{column}_high" in rows:
                spread = np.abs(np.stack([value - rows[f"{column}_low"], rows[f"{column}_high"] - value]))
            dashed = "--" if "int8" in str(kind) else "-"
            axis.errorbar(
                rows["removed"], value, spread, color=colour, marker=marker, linestyle=dashed, markersize=7, capsize=3,
                elinewidth=1, linewidth=1.8, label=kind,
            )  # fmt: skip
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if column.startswith("accuracy"):
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        else:
            axis.set_ylim(bottom=0)
        _finish(figure, axis, None, "removed (share of weights or channels)", label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), fontsize=12, frameon=False)
    return figure


def calibration_curve(table, reference=None, title=None, column="accuracy"):
    """Accuracy (or agreement) of the int8 model against the number of calibration photos, one line a method.

    Args:
        table: DataFrame with the columns photos, method, and `column`; `column`_low and _high become error bars.
        reference: the float model's value, a dashed line, or None.
        title: of the figure.
        column: what is shown.

    Returns:
        Figure.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    plots_style.need(table, "photos", "method", column)
    figure, axis = _figure(8.5, 5)
    methods = list(table.groupby("method", sort=False))
    for number, ((method, rows), colour, marker) in enumerate(zip(methods, COLOURS, MARKERS, strict=False)):
        rows = rows.sort_values("photos")
        beside = 1.05 ** (number - (len(methods) - 1) / 2)  # a little apart, so that bars do not hide each other
        value, spread = rows[column].to_numpy(float), None
        if f"{column}_low" in rows and f"{column}_high" in rows:
            spread = np.abs(np.stack([value - rows[f"{column}_low"], rows[f"{column}_high"] - value]))
        axis.errorbar(
            rows["photos"] * beside, value, spread, color=colour, marker=marker, markersize=8, capsize=3, linewidth=1.8,
            label=method,
        )  # fmt: skip
    if reference is not None:
        axis.axhline(reference, color=GREY, linestyle="--", linewidth=1.2, label="float32")
    axis.set_xscale("log")
    counts = sorted(table["photos"].unique())
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(frameon=False, fontsize=12)
    return _finish(figure, axis, title, "calibration photos (train only, log scale)", column)


def operator_times(frame, name_slowest=6, title=None):
    """Time of every operator against its MACs on logarithmic axes; far above the cloud is slow for its arithmetic.

    Args:
        frame: DataFrame of `operator_times.per_operator_times`: operator, name, macs, time_ms.
        name_slowest: how many operators to name, by time.
        title: of the figure.

    Returns:
        Figure; operators without MACs stand in a strip of their own at the left.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    plots_style.need(frame, "operator", "name", "macs", "time_ms")
    figure, axis = _figure(10, 6)
    frame = frame[frame["time_ms"] > 0]
    macs = frame["macs"].to_numpy(float)
    none = macs <= 0
    strip = macs[~none].min() / 6 / 1e6 if (~none).any() else 1.0
    places = np.where(none, strip, macs / 1e6)
    times = frame["time_ms"].to_numpy(float)
    for kind, colour, marker in zip(frame["operator"].unique(), COLOURS * 3, MARKERS * 3, strict=False):
        chosen = (frame["operator"] == kind).to_numpy()
        axis.plot(places[chosen], times[chosen], marker, color=colour, markersize=7, alpha=0.85, label=kind.lower())
    slowest = np.argsort(-times)[:name_slowest]
    names = "\n".join(f"{rank}. {frame['name'].iloc[place]}" for rank, place in enumerate(slowest, start=1))
    for rank, place in enumerate(slowest, start=1):
        axis.annotate(str(rank), (places[place], times[place]), (7, 4), textcoords="offset points", fontsize=11)
    axis.set_xscale("log")
    axis.set_yscale("log")
    if none.any() and (~none).any():
        axis.axvline(strip * 2.4, color=GREY, linewidth=1, linestyle=":")
        axis.annotate("no\nMACs", (strip, 1), xycoords=("data", "axes fraction"), ha="center", va="top", color=GREY)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_major_formatter(plain)
    axis.yaxis.set_major_formatter(plain)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=11)
    figure.text(0.995, 0.02, f"slowest\n{names}", ha="right", va="bottom", fontsize=10.5)
    return _finish(figure, axis, title, "MACs (millions, log scale)", "time (ms, log scale)")


def _figure(width, height, rows=1, columns=1):
    """A page with a grid behind what is measured: its one axis, or the (rows, columns) array of several."""
    figure, axes = plots_style.figure(width, height, rows, columns)
    for axis in axes.flat:
        axis.grid(color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes[0, 0] if axes.size == 1 else axes


def _finish(figure, axis, title, x, y):
    plots_style.labels(axis, x, y, title)
    return figure
