"""Figures of notebook 1: photos, labels, senders, training, and (from the two modules beside it) judgements.

Every function takes data and returns a matplotlib Figure at 100 dpi; none computes a result or shows anything.
Photos are in `plots_photos`, judgements in `plots_judging`, what they share in `plots_style`; all names are here too.
"""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from utils.plots import style
from utils.plots.judging import (
    accuracy_against_cost,
    balancing_order,
    class_f1,
    confusion_matrix,
    random_against_grouped,
    reliability_diagram,
    sender_accuracy,
)
from utils.plots.photos import dataset_cover, gradcam_overlay, mistakes, photo_grid
from utils.plots.style import BLUE, COLOURS, GREEN, GREY, ORANGE, TEXT

__all__ = [
    "accuracy_against_cost", "balancing_order", "class_f1", "confusion_matrix", "dataset_cover", "gradcam_overlay",
    "label_distribution", "mistakes", "photo_grid", "random_against_grouped", "reliability_diagram", "sender_accuracy",
    "sender_sizes", "training_curves",
]  # fmt: skip

PARTS = {"train": BLUE, "validation": ORANGE, "test": GREEN}


def label_distribution(frames, title=None):
    """Photos a class as bars, stacked by part of the split, commonest class first.

    Args:
        frames: DataFrame with `label` (and `split`), or title -> such a frame for panels side by side, such as
            {"random split": ..., "grouped by sender": ...}.
        title: above the figure.

    Returns:
        Figure. The number behind each bar is the class's photos in all parts.

    Raises:
        ValueError: no photos or no column `label`.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "hat", "shirt"], "split": ["train", "test", "train"]})
        >>> page = label_distribution(photos)
    """
    frames = frames if isinstance(frames, dict) else {None: frames}
    for frame in frames.values():
        style.need(frame, "label")
    order = next(iter(frames.values()))["label"].value_counts().index
    width = 8.4 if len(frames) == 1 else 5.4 * len(frames)
    page, axes = style.figure(width, max(3.2, 1.4 + 0.31 * len(order)), 1, len(frames), sharey=True, sharex=True)
    for axis, (name, frame) in zip(axes[0], frames.items(), strict=True):
        parts = frame["split"] if "split" in frame else pd.Series("all photos", index=frame.index)
        counts = pd.crosstab(frame["label"], parts).reindex(order, fill_value=0)
        shown = [part for part in PARTS if part in counts] + [part for part in counts if part not in PARTS]
        left = np.zeros(len(order))
        for part in shown:
            axis.barh(order, counts[part], left=left, color=PARTS.get(part, BLUE), label=part, height=0.72)
            left = left + counts[part].to_numpy()
        for place, total in enumerate(left):
            axis.text(total, place, f" {int(total):,}", va="center", fontsize=TEXT)
        axis.margins(x=0.14)
        style.labels(axis, "photos", title=name)
    axes[0, 0].invert_yaxis()
    keys = {}  # a part may be missing from the first panel
    for axis in axes[0]:
        keys |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    shown = [part for part in PARTS if part in keys] + [part for part in keys if part not in PARTS]
    page.legend(
        [keys[part] for part in shown], shown, loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT
    )
    return style.titled(page, title)


def sender_sizes(frame, title=None, top=10):
    """Who took the photos: photos of each sender, largest first, and the share that the largest took together.

    Args:
        frame: DataFrame with `sender`.
        title: above the figure.
        top: senders to mark.

    Returns:
        Figure of two panels.

    Raises:
        ValueError: no photos or no column `sender`.

    Example:
        >>> page = sender_sizes(pd.DataFrame({"sender": ["1", "1", "2"]}))
    """
    style.need(frame, "sender")
    sizes = frame["sender"].astype(str).value_counts()
    ranks = np.arange(1, len(sizes) + 1)
    share = sizes.cumsum() / sizes.sum()
    page, axes = style.figure(9, 3.8, 1, 2)
    left, right = axes[0]
    left.bar(ranks, sizes, width=1.0, color=np.where(ranks <= top, ORANGE, BLUE), linewidth=0)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    style.labels(left, "sender, busiest first", "photos (logarithmic)")
    right.plot(ranks, share, color=BLUE, linewidth=2)
    marked = min(top, len(sizes))
    right.plot(marked, share.iloc[marked - 1], "o", color=ORANGE, markersize=9, markeredgecolor="black")
    right.annotate(
        f"the {marked} busiest of {len(sizes)}\ntook {share.iloc[marked - 1]:.0%} of {sizes.sum():,} photos",
        (marked, share.iloc[marked - 1]), (14, -6), textcoords="offset points", va="top", fontsize=TEXT,
    )  # fmt: skip
    right.set_ylim(0, 1.03)
    right.set_xlim(left=0)
    style.percent_axis(right)
    style.labels(right, "senders, busiest first", "share of all photos")
    return style.titled(page, title)


def training_curves(runs, title=None):
    """Loss and accuracy by epoch: validation solid, training dashed, the kept epoch marked.

    Args:
        runs: one Run, several in a list, or name -> history DataFrame with the columns epoch, loss, accuracy, val_loss,
            val_accuracy (any of the last four may be missing).
        title: above the figure.

    Returns:
        Figure of two panels.

    Raises:
        ValueError: no run, or a history without an epoch.

    Example:
        >>> page = training_curves({"a": pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_loss": [2.1, 1.5]})})
    """
    named = _histories(runs)
    if not named:
        raise ValueError("there is no run to draw; train one first")
    page, axes = style.figure(8.4, 4.6, 1, 2)
    for colour, (name, (history, best)) in zip(COLOURS * (1 + len(named) // len(COLOURS)), named.items(), strict=False):
        style.need(history, "epoch")
        for axis, measure in zip(axes[0], ("accuracy", "loss"), strict=True):
            dots = "o" if len(history) == 1 else None
            if measure in history:
                axis.plot(
                    history["epoch"], history[measure], "--", color=colour, linewidth=1.3, alpha=0.75, marker=dots
                )
            if f"val_{measure}" in history:
                line = history.set_index("epoch")[f"val_{measure}"]
                axis.plot(line.index, line, color=colour, linewidth=2.2, label=name, marker=dots)
                if best in line.index:
                    axis.plot(best, line[best], "o", color=colour, markersize=9, markeredgecolor="black")
    lengths = [int(history["epoch"].max()) for history, _ in named.values()]
    far_apart = max(lengths) > 8 * min(lengths)  # on one linear axis a run of 8 epochs beside one of 200 is a stroke
    for axis, measure in zip(axes[0], ("accuracy", "loss (cross-entropy, nats)"), strict=True):
        if far_apart:
            ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= max(lengths)]
            axis.set_xscale("log")
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.labels(axis, "epoch (logarithmic)" if far_apart else "epoch", measure)
    style.percent_axis(axes[0, 0])
    axes[0, 1].set_ylim(bottom=0)
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles += [
        axes[0, 0].plot([], [], color=GREY, linewidth=2.2)[0],
        axes[0, 0].plot([], [], "--", color=GREY, linewidth=1.3)[0],
        axes[0, 0].plot([], [], "o", color=GREY, markeredgecolor="black", markersize=8)[0],
    ]
    page.legend(
        handles, [*names, "validation", "training", "epoch kept"], loc="outside lower center", ncols=3, frameon=False,
        fontsize=TEXT,
    )  # fmt: skip
    return style.titled(page, title)


def _histories(runs):
    """name -> (history, best epoch or None)."""
    if isinstance(runs, dict):
        return {
            str(name): (run.history, run.best_epoch) if hasattr(run, "history") else (run, None)
            for name, run in runs.items()
        }
    runs = runs if isinstance(runs, (list, tuple)) else [runs]
    return {run.config.name: (run.history, run.best_epoch) for run in runs}
