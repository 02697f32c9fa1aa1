"""Figures about how good a classifier is: confusions, calibration, classes, senders, protocols, cost."""

import numpy as np
import seaborn

from utils.plots import style
from utils.plots.style import BLUE, COLOURS, GREY, LABEL, MARKERS, ORANGE, RED, TEXT

PROTOCOLS = {"random": (ORANGE, "s"), "grouped": (BLUE, "o")}


def confusion_matrix(evaluation, title=None):
    """Counts in the cells, share of the true class as colour; rows true, columns predicted.

    Args:
        evaluation: Evaluation.
        title: above the figure.

    Returns:
        Figure, square; 17 classes stay readable. A class without photos has a hatched row.

    Example:
        >>> page = confusion_matrix(evaluation.evaluate(predict, frame, classes))  # doctest: +SKIP
    """
    classes, counts = list(evaluation.classes), evaluation.confusion
    side = max(5.0, 2.2 + 0.44 * len(classes))
    page, axes = style.figure(side + 0.6, 0.94 * side)
    axis = axes[0, 0]
    marks = np.where(counts == 0, "", counts.astype(str))
    seaborn.heatmap(
        evaluation.confusion_normalised, ax=axis, cmap="Blues", vmin=0, vmax=1, square=True, linewidths=0.5,
        linecolor="#d9d9d9", annot=marks, fmt="", annot_kws={"fontsize": TEXT - (1 if counts.max() > 99 else 0)},
        xticklabels=classes, yticklabels=classes, cbar_kws={"label": "share of the true class", "shrink": 0.75},
    )  # fmt: skip
    axis.set_facecolor("white")
    for row, label in enumerate(classes):
        if label in evaluation.absent:
            axis.axhspan(row, row + 1, facecolor="none", edgecolor=GREY, hatch="///", linewidth=0)
    axis.tick_params(axis="x", labelrotation=90, labelsize=TEXT)
    axis.tick_params(axis="y", labelrotation=0, labelsize=TEXT)
    axis.figure.axes[-1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.figure.axes[-1].tick_params(labelsize=TEXT)
    style.labels(axis, "predicted", "true")
    return style.titled(page, title)


def reliability_diagram(evaluation, title=None):
    """Confidence against accuracy with Wilson intervals, above how many photos there are at each confidence.

    Args:
        evaluation: Evaluation.
        title: above the figure.

    Returns:
        Figure.

    Example:
        >>> page = reliability_diagram(evaluation.evaluate(predict, frame, classes))  # doctest: +SKIP
    """
    bins = evaluation.reliability
    page, axes = style.figure(6.4, 5.8, 2, 1, height_ratios=(3, 1), sharex=True)
    above, below = axes[:, 0]
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="as sure as right")
    spread = np.abs(bins[["accuracy_low", "accuracy_high"]].to_numpy().T - bins["accuracy"].to_numpy())
    above.errorbar(
        bins["confidence"], bins["accuracy"], spread, fmt="o-", color=BLUE, capsize=3, elinewidth=1.1, label="measured",
    )  # fmt: skip
    above.set_ylim(-0.02, 1.02)
    # Outside: where there are few photos, the bars fill the panel.
    page.legend(
        *above.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT,
        title=f"calibration error {100 * evaluation.ece:.1f} %",
    )  # fmt: skip
    below.bar(bins["low"], bins["n"], width=bins["high"] - bins["low"], align="edge", color=BLUE, edgecolor="white")
    for axis in (above, below):
        axis.set_xlim(0, 1)
        style.percent_axis(axis, "x")
    style.percent_axis(above)
    style.labels(above, y="accuracy")
    style.labels(below, "confidence of the prediction", "photos")
    return style.titled(page, title)


def class_f1(evaluation, published=None, title=None):
    """F1 of each class as bars, highest on top; published values as diamonds.

    Args:
        evaluation: Evaluation.
        published: class -> F1 (0..1), or None.
        title: above the figure.

    Returns:
        Figure.

    Example:
        >>> page = class_f1(judged, published={"hat": 0.82})  # doctest: +SKIP
    """
    table = evaluation.per_class.sort_values("f1", na_position="first")
    page, axes = style.figure(8, max(3.0, 1.5 + 0.36 * len(table)))
    axis = axes[0, 0]
    places = np.arange(len(table))
    axis.barh(places, table["f1"].fillna(0), color=BLUE, height=0.66, label="measured here")
    for place, (label, row) in enumerate(table.iterrows()):
        absent = label in evaluation.absent
        axis.text(0.012, place, "no photo here" if absent else f"{row['f1']:.2f}", va="center", fontsize=TEXT,
                  color=GREY if absent else "white" if row["f1"] > 0.1 else "black")  # fmt: skip
    if published:
        shown = [(place, published[label]) for place, label in enumerate(table.index) if label in published]
        if shown:
            axis.plot([f1 for _, f1 in shown], [place for place, _ in shown], "D", color=ORANGE,
                      markeredgecolor="black", markersize=9, linestyle="none", label="published")  # fmt: skip
    axis.set_yticks(places, [f"{label} ({int(n)})" for label, n in zip(table.index, table["support"], strict=True)])
    axis.set_xlim(0, 1.02)
    page.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=TEXT)
    style.labels(axis, "F1 (photos of the class in brackets)")
    return style.titled(page, title)


def sender_accuracy(evaluation, title=None, top=15):
    """Accuracy by sender with Wilson 95 % intervals, the senders with most photos first.

    Args:
        evaluation: Evaluation of a frame with senders.
        title: above the figure.
        top: at most this many senders; the axis says how many there are.

    Returns:
        Figure.

    Raises:
        ValueError: the evaluated frame had no senders.

    Example:
        >>> page = sender_accuracy(judged)  # doctest: +SKIP
    """
    if evaluation.n_senders is None:
        raise ValueError("the evaluated frame had no column 'sender'; evaluate one of datasets.load")
    table = evaluation.per_sender.head(top)
    page, axes = style.figure(8, max(2.6, 1.5 + 0.32 * len(table)))
    axis = axes[0, 0]
    places = np.arange(len(table))[::-1]
    axis.axvspan(evaluation.accuracy_low, evaluation.accuracy_high, color=GREY, alpha=0.18, linewidth=0)
    axis.axvline(
        evaluation.accuracy, color=GREY, linestyle="--", linewidth=1.3, label=f"all photos: {evaluation.accuracy:.1%}"
    )
    spread = np.abs(table[["accuracy_low", "accuracy_high"]].to_numpy().T - table["accuracy"].to_numpy())
    axis.errorbar(table["accuracy"], places, xerr=spread, fmt="o", color=BLUE, capsize=3, markersize=7, elinewidth=1.3)
    axis.set_yticks(places, [f"{sender} ({n})" for sender, n in zip(table["sender"], table["n"], strict=True)])
    axis.set_xlim(-0.02, 1.02)
    style.percent_axis(axis, "x")
    page.legend(*axis.get_legend_handles_labels(), loc="outside upper right", frameon=False, fontsize=TEXT)
    left_out = "" if evaluation.n_senders <= top else f", {top} of {evaluation.n_senders} shown"
    style.labels(axis, "accuracy, bars: 95 % interval", f"sender (photos){left_out}")
    return style.titled(page, title)


def random_against_grouped(table, title=None):
    """One model judged twice: folds that ignore senders, and folds in which no sender stands on two sides.

    Args:
        table: DataFrame, one row a judgement: photos (dataset), folds ("random" or "grouped"), n, accuracy, low, high
            (0..1).
        title: above the figure.

    Returns:
        Figure, one panel row a dataset.

    Raises:
        ValueError: a column is missing, or folds of another name.

    Example:
        >>> import pandas as pd
        >>> rows = [("all", "random", 3781, 0.87, 0.86, 0.88), ("all", "grouped", 3781, 0.84, 0.82, 0.86)]
        >>> table = pd.DataFrame(rows, columns=["photos", "folds", "n", "accuracy", "low", "high"])
        >>> page = random_against_grouped(table)
    """
    style.need(table, "photos", "folds", "n", "accuracy", "low", "high")
    unknown = sorted({str(folds) for folds in table["folds"]} - set(PROTOCOLS))
    if unknown:
        raise ValueError(f"folds {', '.join(unknown)} are unknown to this figure; name them random or grouped")
    sets = list(dict.fromkeys(table["photos"]))
    page, axes = style.figure(8.4, 1.5 + 1.25 * len(sets))
    axis = axes[0, 0]
    for row in table.to_dict("records"):
        colour, marker = PROTOCOLS[row["folds"]]
        place = -sets.index(row["photos"]) + (0.16 if row["folds"] == "random" else -0.16)
        spread = [[abs(row["accuracy"] - row["low"])], [abs(row["high"] - row["accuracy"])]]
        axis.errorbar(
            row["accuracy"], place, xerr=spread, fmt=marker, color=colour, markersize=10, capsize=5, elinewidth=2
        )
        axis.annotate(
            f"{row['accuracy']:.1%}", (row["accuracy"], place), (0, 9), textcoords="offset points", ha="center",
            fontsize=LABEL, color="black", fontweight="bold",
        )  # fmt: skip
    n = table.groupby("photos")["n"].max()
    axis.set_yticks([-i for i in range(len(sets))], [f"{name}\n{n[name]:,} photos" for name in sets], fontsize=LABEL)
    axis.set_ylim(-len(sets) + 0.42, 0.58)
    axis.margins(x=0.08)
    axis.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    style.percent_axis(axis, "x")
    words = {"random": "people seen before: folds at random", "grouped": "people never seen: folds by sender"}
    handles = [
        axis.plot([], [], marker=marker, color=colour, linestyle="none", markersize=9, label=words[name])[0]
        for name, (colour, marker) in PROTOCOLS.items()
    ]
    page.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT)
    style.labels(axis, "accuracy (bars: 95 % interval over senders)")
    return style.titled(page, title)


def balancing_order(table, title=None):
    """What the order of balancing and splitting does to the number: bars with intervals, one a protocol.

    Args:
        table: DataFrame: protocol, n, accuracy, accuracy_low, accuracy_high; shared_photos is shown where it is there.
        title: above the figure.

    Returns:
        Figure.

    Example:
        >>> page = balancing_order(experiments.balancing_order(dataset, "mobilenet_v2"))  # doctest: +SKIP
    """
    style.need(table, "protocol", "n", "accuracy", "accuracy_low", "accuracy_high")
    page, axes = style.figure(8.8, 1.3 + 0.85 * len(table))
    axis = axes[0, 0]
    colours = [BLUE] + [ORANGE] * (len(table) - 2) + [RED] * (len(table) > 1)
    for place, (row, colour) in enumerate(zip(table.to_dict("records"), colours, strict=True)):
        spread = [[abs(row["accuracy"] - row["accuracy_low"])], [abs(row["accuracy_high"] - row["accuracy"])]]
        axis.barh(-place, row["accuracy"], color=colour, height=0.62)
        axis.errorbar(row["accuracy"], -place, xerr=spread, fmt="none", color="black", capsize=5, elinewidth=1.6)
        shared = (
            f"\n{row['shared_photos']:,} of {row['n']:,} test photos also in train" if "shared_photos" in row else ""
        )
        axis.text(
            0.012,
            -place,
            f"{row['accuracy']:.1%}{shared}",
            color="black" if colour == ORANGE else "white",
            va="center",
            fontsize=TEXT,
            fontweight="bold",
        )
    axis.set_yticks([-place for place in range(len(table))], [name.replace(", ", ",\n") for name in table["protocol"]])
    axis.tick_params(axis="y", labelsize=LABEL)
    axis.set_xlim(0, 1)
    style.percent_axis(axis, "x")
    style.labels(axis, "test accuracy, bars: 95 % interval")
    return style.titled(page, title)


def accuracy_against_cost(table, cost="macs", unit=1e6, label="MACs (millions)", title=None):
    """Accuracy with its interval, and beside it what it costs: one line a model, the best on top.

    Costs of small networks lie close together or far apart, so that points over a cost axis hide one another; two
    panels with common lines show both numbers at once.

    Args:
        table: DataFrame: model, accuracy, accuracy_low, accuracy_high (0..1) and the column `cost`; with a column
            `judged` (such as "official test", "people never seen") a model has a point for each; with a column
            `group` (such as "10 classes") the lines stand in groups, for accuracies that cannot be compared.
        cost: column of the right panel; one value a model.
        unit: divide the cost by this.
        label: of the right panel.
        title: above the figure.

    Returns:
        Figure.

    Raises:
        ValueError: a column is missing, or a model has two costs.

    Example:
        >>> import pandas as pd
        >>> rows = [("a", 3e8, 0.87, 0.83, 0.90), ("b", 4e8, 0.93, 0.90, 0.95)]
        >>> names = ["model", "macs", "accuracy", "accuracy_low", "accuracy_high"]
        >>> page = accuracy_against_cost(pd.DataFrame(rows, columns=names))
    """
    style.need(table, "model", cost, "accuracy", "accuracy_low", "accuracy_high")
    table = table.assign(**{name: "" for name in ("judged", "group") if name not in table})
    torn = table.groupby(["group", "model"])[cost].nunique()
    if (torn > 1).any():
        raise ValueError(f"{torn.idxmax()[1]!r} stands in the table with two values of {cost}; name each network apart")
    best = table.groupby(["group", "model"])["accuracy"].max()
    groups, judgements = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["judged"]))
    order = [
        (group, model) for group in groups for model in best[group].sort_values(ascending=False, kind="stable").index
    ]
    places = {key: -number - 0.9 * groups.index(key[0]) for number, key in enumerate(order)}
    page, axes = style.figure(9.6, 1.5 + 0.42 * (len(order) + len(groups)), 1, 2, width_ratios=(3, 1.25), sharey=True)
    left, right = axes[0]
    for row in table.to_dict("records"):
        which = judgements.index(row["judged"])
        alone = len(table[(table["group"] == row["group"]) & (table["model"] == row["model"])]) == 1
        shift = 0.0 if alone else 0.18 * (len(judgements) - 1 - 2 * which)
        spread = [[abs(row["accuracy"] - row["accuracy_low"])], [abs(row["accuracy_high"] - row["accuracy"])]]
        place = places[row["group"], row["model"]] + shift
        left.errorbar(
            row["accuracy"], place, xerr=spread, fmt=MARKERS[which], color=COLOURS[which], markersize=9, capsize=4,
            elinewidth=2,
        )  # fmt: skip
        left.annotate(
            f"{row['accuracy']:.1%}", (row["accuracy_high"], place), (7, 0), textcoords="offset points", va="center",
            fontsize=TEXT,
        )  # fmt: skip
    costs = table.groupby(["group", "model"])[cost].first() / unit
    right.barh([places[key] for key in order], [costs[key] for key in order], color=GREY, height=0.5)
    for key in order:
        right.annotate(
            f"{costs[key]:,.0f}", (costs[key], places[key]), (5, 0), textcoords="offset points", va="center",
            fontsize=LABEL,
        )  # fmt: skip
    left.set_yticks([places[key] for key in order], [model for _, model in order], fontsize=LABEL)
    for group in filter(None, groups):
        top = max(place for key, place in places.items() if key[0] == group)
        left.annotate(
            group, (0, top + 0.72), (-8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="center", fontsize=LABEL, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    left.set_ylim(min(places.values()) - 0.6, max(places.values()) + (1.1 if any(groups) else 0.6))
    left.margins(x=0.1)
    right.set_xlim(0, 1.3 * costs.max())
    right.tick_params(axis="y", length=0)
    for axis in (left, right):
        axis.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
    style.percent_axis(left, "x")
    if any(judgements):
        handles = [
            left.plot([], [], marker=MARKERS[i], color=COLOURS[i], linestyle="none", markersize=9, label=name)[0]
            for i, name in enumerate(judgements)
        ]
        page.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=LABEL)
    style.labels(left, "accuracy (bars: 95 % interval)")
    style.labels(right, label)
    return style.titled(page, title)
