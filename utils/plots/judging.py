"""Figures about how good a classifier is: confusions, calibration, classes, photographers, splits, cost, attention."""

import matplotlib
import numpy as np

from utils.plots import style
from utils.plots.style import GREY, LABEL, LIGHT, NEW_PHOTOGRAPHERS, SEEN_PHOTOGRAPHERS, TEXT

FOLDS = {"random": SEEN_PHOTOGRAPHERS, "grouped": NEW_PHOTOGRAPHERS}


def confusion_matrix(evaluation):
    """Counts in the cells, share of the true class as colour; rows true (with their photos), columns predicted.

    Args:
        evaluation: Evaluation.
    """
    side = max(5.0, 2.2 + 0.44 * len(evaluation.classes))
    page, axes = style.figure(side + 0.6, 0.94 * side)
    _matrix(axes[0, 0], evaluation, evaluation.classes, lambda share, count: f"{count}" if count else "", TEXT)
    _share_bar(page, axes)
    return page


def confusion_matrices(evaluations):
    """Confusion matrices side by side, classes by frequency, one colour bar; cells above 5% say their percentage.

    Args:
        evaluations: list of named Evaluations of the same classes.
    """
    order = list(evaluations[0].per_class.sort_values("support", ascending=False, kind="stable").index)
    side = 0.7 + 0.21 * len(order)
    page, axes = style.figure(2.4 + side * len(evaluations), side + 1.7, 1, len(evaluations), sharey=True)
    for axis, evaluation in zip(axes[0], evaluations, strict=True):
        _matrix(axis, evaluation, order, lambda share, count: f"{100 * share:.0f}" if share > 0.05 else "", 9)
        style.labels(axis, title=evaluation.name)
    for axis in axes[0, 1:]:
        axis.set_ylabel("")
    _share_bar(page, axes)
    return page


def _matrix(axis, evaluation, order, mark, size):
    place = [evaluation.classes.index(label) for label in order]
    shares, counts = (
        matrix[np.ix_(place, place)] for matrix in (evaluation.confusion_normalised, evaluation.confusion)
    )
    axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        words = "" if np.isnan(share) else mark(share, counts[row, column])
        colour = "white" if share > 0.5 else "black" if row == column else style.WRONG
        axis.text(column, row, words, ha="center", va="center", fontsize=size, color=colour)
    for row in np.flatnonzero(np.isnan(shares[:, 0])):
        axis.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor=GREY, hatch="///", linewidth=0)
    numbers = range(len(order))
    axis.set_xticks(numbers, order, rotation=90, fontsize=TEXT, parse_math=False)  # "$" in a name is no formula
    axis.set_yticks(
        numbers, [f"{label} ({n})" for label, n in zip(order, counts.sum(axis=1), strict=True)], fontsize=TEXT,
        parse_math=False,
    )  # fmt: skip
    axis.set_xticks(np.arange(len(order) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(order) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=LIGHT, linewidth=0.6)
    axis.tick_params(which="minor", length=0)
    style.labels(axis, "predicted", "true (photos)")


def _share_bar(page, axes):
    bar = page.colorbar(axes.flat[0].images[0], ax=list(axes.flat), shrink=0.7, pad=0.02, aspect=25)
    bar.set_label("share of the true class", fontsize=LABEL)
    style.percent_axis(bar.ax)
    bar.ax.tick_params(labelsize=TEXT)


def reliability_diagram(evaluations, least=5):
    """Confidence against accuracy: one dot per bin with at least five photos, its area their number.

    Args:
        evaluations: title -> Evaluation for panels side by side, such as before and after calibration.
        least: bins with fewer photos are left out.
    """
    page, axes = style.figure(0.6 + 4.4 * len(evaluations), 4.6, 1, len(evaluations), sharex=True, sharey=True)
    for axis, (title, evaluation) in zip(axes[0], evaluations.items(), strict=True):
        bins = evaluation.reliability[evaluation.reliability["n"] >= least]
        axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
        axis.text(0.98, 0.86, "as sure as right", rotation=45, fontsize=TEXT, color=GREY, va="top", ha="right")
        spread = np.abs(bins[["accuracy_low", "accuracy_high"]].to_numpy().T - bins["accuracy"].to_numpy())
        axis.errorbar(bins["confidence"], bins["accuracy"], spread, fmt="none", ecolor=GREY, elinewidth=1.2)
        areas = 18 + 500 * bins["n"] / evaluation.n
        axis.scatter(bins["confidence"], bins["accuracy"], s=areas, color="black", zorder=3)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        style.labels(axis, "confidence", title=f"{title}\ncalibration error {evaluation.ece:.1%}")
        style.percent_axis(axis, "x")
    style.percent_axis(axes[0, 0])
    style.labels(axes[0, 0], y="accuracy (bars: 95% Wilson)")
    return page


def class_f1(evaluation, published):
    """F1 of each class: measured here and published, joined by a line, the largest gain on top.

    Args:
        evaluation: Evaluation.
        published: class -> F1 (0..1).
    """
    table = evaluation.per_class.assign(published=evaluation.per_class.index.map(published).astype(float))
    gain = table["f1"] - table["published"]
    table = table.loc[gain.sort_values(na_position="first", kind="stable").index]
    page, ((axis,),) = style.figure(8, max(3.0, 1.3 + 0.36 * len(table)))
    places = np.arange(len(table))
    axis.hlines(places, table["published"], table["f1"], color=LIGHT, linewidth=5, zorder=1)
    axis.plot(table["published"], places, "D", markerfacecolor="white", markeredgecolor="black", markersize=8)
    axis.plot(table["f1"], places, "o", color="black", markersize=9)
    for place, (_, row) in enumerate(table.iterrows()):
        absent = np.isnan(row["f1"])
        x = 0.0 if absent else np.nanmax([row["f1"], row["published"]])
        style.note(axis, "no photo here" if absent else f"{row['f1']:.2f}", (x, place), (10, 0))
    axis.set_yticks(places, [f"{label} ({int(n)})" for label, n in zip(table.index, table["support"], strict=True)])
    low = np.nanmin(table[["f1", "published"]].to_numpy())
    axis.set(xlim=(0 if table["f1"].isna().any() else max(0, low - 0.08), 1.06), ylim=(-0.6, len(table) - 0.4))
    style.grid(axis, "x")
    style.labels(axis, "F1 (photos of the class in brackets)")
    style.key(page, axis.lines[1::-1], ["measured here", "published"])
    return page


def random_against_grouped(table):
    """One recipe judged twice: on photographers seen in training (random folds) and on new ones (grouped folds).

    Args:
        table: DataFrame, one row per judgement: photos (title of the dataset), folds ("random" or "grouped"), n,
            accuracy, low, high (0..1).

    Returns:
        Figure; an arrow says what is lost in points.

    Example:
        >>> import pandas as pd
        >>> rows = [("10 classes", "random", 3781, 0.87, 0.86, 0.88), ("10 classes", "grouped", 3781, 0.84, 0.82, 0.86)]
        >>> names = ["photos", "folds", "n", "accuracy", "low", "high"]
        >>> page = random_against_grouped(pd.DataFrame(rows, columns=names))
    """
    style.need(table, "photos", "folds", "n", "accuracy", "low", "high")
    if unknown := sorted({str(folds) for folds in table["folds"]} - set(FOLDS)):
        raise ValueError(f"folds must be random or grouped, got {', '.join(unknown)}")
    sets = list(dict.fromkeys(table["photos"]))
    page, ((axis,),) = style.figure(8.6, 1.4 + 1.2 * len(sets))
    for place, name in enumerate(sets):
        rows = table[table["photos"] == name].set_index("folds")
        for folds, row in rows.iterrows():
            y = -place + (0.18 if folds == "random" else -0.18)
            axis.plot([row["low"], row["high"]], [y, y], "|-", color=FOLDS[folds], linewidth=2, markersize=11)
            axis.plot(row["accuracy"], y, "o", color=FOLDS[folds], markersize=10)
            style.note(axis, f"{row['accuracy']:.1%}", (row["high"], y), (8, 0), fontsize=LABEL)
        if {"random", "grouped"} <= set(rows.index):
            start, end = rows.loc["random", "accuracy"], rows.loc["grouped", "accuracy"]
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 7, "shrinkB": 7}
            axis.annotate("", (end, -place - 0.18), (start, -place + 0.18), arrowprops=arrow)
            said = f"{100 * (end - start):+.1f} points".replace("-", "−")
            style.note(axis, said, (rows["low"].min(), -place), (-8, 0), ha="right", fontsize=LABEL, color=GREY)
    n = table.groupby("photos")["n"].max()
    axis.set_yticks([-i for i in range(len(sets))], [f"{name}\n{n[name]:,} photos" for name in sets], fontsize=LABEL)
    axis.set_ylim(-len(sets) + 0.45, 0.55)
    axis.margins(x=0.25)
    style.grid(axis, "x")
    style.percent_axis(axis, "x")
    words = {"random": "photographers seen in training", "grouped": "new photographers"}
    handles = [axis.plot([], [], "o", color=colour, markersize=9)[0] for colour in FOLDS.values()]
    style.key(page, handles, [words[name] for name in FOLDS])
    style.labels(axis, "accuracy (bars: 95% interval over photographers)")
    return page


def balancing_order(table):
    """What the order of balancing and splitting does to macro recall: bars with intervals, one per protocol.

    Args:
        table: DataFrame: protocol, n, macro_recall, recall_low, recall_high; shared_photos (test photos of which a copy
            was trained on) is written into the bar where it is given, and colours it.
    """
    style.need(table, "protocol", "n", "macro_recall", "recall_low", "recall_high")
    page, ((axis,),) = style.figure(8.8, 1.1 + 0.85 * len(table))
    for place, row in enumerate(table.to_dict("records")):
        copies = row.get("shared_photos", 0)
        colour = style.WRONG if copies else NEW_PHOTOGRAPHERS if place == 0 else SEEN_PHOTOGRAPHERS
        axis.barh(-place, row["macro_recall"], color=colour, height=0.62)
        axis.plot([row["recall_low"], row["recall_high"]], [-place, -place], "|-", color="black", markersize=10)
        shared = f"\n{copies:,} of {row['n']:,} test photos were also trained on" if "shared_photos" in row else ""
        axis.text(0.012, -place, f"{row['macro_recall']:.1%}{shared}", va="center", fontsize=LABEL,
                  color="black" if colour == SEEN_PHOTOGRAPHERS else "white")  # fmt: skip
    names = [name.replace(", ", ",\n") for name in table["protocol"]]
    axis.set_yticks([-place for place in range(len(table))], names, fontsize=LABEL)
    axis.set_xlim(0, 1)
    style.percent_axis(axis, "x")
    style.labels(axis, "macro recall on the test set (bars: 95% over photographers)")
    return page


def accuracy_against_cost(table):
    """Accuracy against cost: one labelled point per model, coloured by how it was trained.

    A point that would cover another one of the same cost stands just right of it.

    Args:
        table: DataFrame, one row per model: model, macs, accuracy (0..1) and trained ("frozen", "fine-tuned" or "from
            scratch"); accuracy_low and accuracy_high become bars; with `classes` (a phrase such as "10 classes")
            markers tell the tasks apart.

    Example:
        >>> import pandas as pd
        >>> rows = [("a", 3e8, 0.87, "frozen"), ("b", 4e8, 0.93, "fine-tuned")]
        >>> page = accuracy_against_cost(pd.DataFrame(rows, columns=["model", "macs", "accuracy", "trained"]))
    """
    style.need(table, "model", "macs", "accuracy", "trained")
    if unknown := sorted(set(table["trained"]) - set(style.TRAINED)):
        raise ValueError(f"trained must be one of {', '.join(style.TRAINED)}, got {', '.join(unknown)}")
    tasks = list(dict.fromkeys(table["classes"])) if "classes" in table else [""]
    page, ((axis,),) = style.figure(8.6, 5)
    ends = []
    for row in table.to_dict("records"):
        x, y, colour = row["macs"] / 1e6, row["accuracy"], style.TRAINED[row["trained"]]
        while any(abs(np.log(x / other)) < 0.02 and abs(y - height) < 0.03 for other, height, *_ in ends):
            x *= 1.07
        if "accuracy_low" in row:
            axis.plot([x, x], [row["accuracy_low"], row["accuracy_high"]], "_-", color=colour, markersize=8)
        marker = style.MARKERS[tasks.index(row.get("classes", ""))]
        axis.plot(x, y, marker, color=colour, markersize=11, markeredgecolor="white")
        ends.append((x, y, f"{row['model']}, {y:.1%}", "black"))
    near = [[other for other, height, *_ in ends if abs(y - height) < 0.03 and other < 1.1 * x] for x, y, *_ in ends]
    ends = [(max(others), *end[1:]) for others, end in zip(near, ends, strict=True)]  # names right of both of a pair
    cheapest = table["macs"].min() / 1e6
    low, high = cheapest / 2.2, 1.3 * table["macs"].max() / 1e6
    axis.set(xscale="log", xlim=(low, high))
    axis.margins(y=0.1)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000) if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    style.grid(axis)
    style.percent_axis(axis)
    style.labels(axis, "MACs (millions, logarithmic)", "accuracy on new photographers")
    used = [name for name in style.TRAINED if name in set(table["trained"])]
    handles = [axis.plot([], [], "o", color=style.TRAINED[name], markersize=10)[0] for name in used]
    if tasks != [""]:
        handles += [axis.plot([], [], mark, color=GREY, markersize=10)[0] for mark in style.MARKERS[: len(tasks)]]
        used += tasks
    style.key(page, handles, used)
    beside = any(cheapest < end[0] < 2 * cheapest for end in ends)  # else names would cover the points to their right
    style.names_at_ends(axis, [end for end in ends if end[0] > cheapest or not beside])
    style.names_at_ends(axis, [end for end in ends if end[0] == cheapest and beside], left=True)
    return page


def gradcam_overlay(cams):
    """Photos beside the same photos under their Grad-CAM heat: bright is what spoke for the class.

    Args:
        cams: GradCam of `evaluation.gradcam`.
    """
    side, pairs = 160, 3 if len(cams.images) % 3 == 0 else min(2, len(cams.images))
    page, axes = style.sheet(2 * len(cams.images), 2 * pairs, side, foot=24)
    grey = cams.images.mean(axis=-1, keepdims=True)
    heat = 255 * matplotlib.colormaps["inferno"](cams.heat)[..., :3]  # brightness alone carries it
    strength = 0.25 + 0.4 * cams.heat[..., None]
    overlays = (1 - strength) * grey + strength * heat
    for place, (image, overlay, caption) in enumerate(zip(cams.images, overlays, cams.captions, strict=True)):
        style.show_photo(axes[2 * place], image, side, caption)
        style.show_photo(axes[2 * place + 1], overlay, side)
    return page
