"""Figures of the photos: what they show, who took them, how they are split and varied, and how training went."""

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.plots import style
from utils.plots.style import GREY, LABEL, PARTS, TEXT


def dataset_cover(frame, classes, seed=0):
    """A contact sheet: four photos of each class, drawn at random, the classes in two columns.

    Args:
        frame: DataFrame with `path` and `label`.
        classes: in the order in which to show them; one without photos says so in its place.
        seed: another seed, other photos.

    Raises:
        ValueError: no photos, missing columns, or a file that is no image (named).
    """
    style.need(frame, "path", "label")
    rows = -(-len(classes) // 2)
    page, axes = style.sheet(8 * rows, 8, 112, head=24)
    for index, label in enumerate(classes):  # down the first column, then the next
        start = (index % rows) * 8 + (index // rows) * 4
        photos = frame.loc[frame["label"] == label, "path"]
        count = f"{label} ({len(photos):,})" if len(photos) else f"{label} (no photo here)"
        style.note(axes[start], count, (0, 1), (0, 3), va="bottom", fontsize=LABEL)
        for axis, path in zip(axes[start:], photos.sample(min(4, len(photos)), random_state=seed), strict=False):
            style.show_photo(axis, path, 112)
    return page


def predictions(table, columns=6, side=140):
    """Photos with their true class, what the model called them and how surely; mistakes are framed.

    Args:
        table: DataFrame, one row per photo: path, true, predicted, confidence (0..1), as `worst_mistakes` gives it.
        columns: photos per row; side: of a photo, in pixels.
    """
    if len(table) == 0:
        return style.nothing("No photo to show: there is no mistake.")
    style.need(table, "path", "true", "predicted", "confidence")
    page, axes = style.sheet(len(table), columns, side, foot=40)
    for axis, row in zip(axes, table.to_dict("records"), strict=True):
        wrong = row["true"] != row["predicted"]
        said = f"{row['true']}\n{'called ' + row['predicted'] if wrong else 'correct'}, {row['confidence']:.0%}"
        colour = style.WRONG if wrong else "black"
        style.show_photo(axis, row["path"], side, said, colour, frame=style.WRONG if wrong else None)
    return page


def wardrobe(frame, sender, seed=0):
    """A strip of at most eight photos by one photographer, with their labels: the same floor, the same clothes.

    Args:
        frame: DataFrame with `path`, `label` and `sender`.
        sender: whose photos; seed: another seed, other photos.
    """
    style.need(frame, "path", "label", "sender")
    photos = frame[frame["sender"].astype(str) == str(sender)]
    if len(photos) == 0:
        raise ValueError(f"expected a sender of the frame, got {sender!r}, who has no photo there")
    photos = photos.sample(min(8, len(photos)), random_state=seed)
    page, axes = style.sheet(len(photos), len(photos), 110, foot=22)
    for axis, row in zip(axes, photos.to_dict("records"), strict=True):
        style.show_photo(axis, row["path"], 110, row["label"])
    return page


def augmentation_sheet(sheets):
    """Random variants of one photo, four per row; several recipes stand below each other.

    Args:
        sheets: title -> array (n, h, w, 3) in 0..255 whose first image is the photo as it is.

    Example:
        >>> page = augmentation_sheet({"flips": np.zeros((8, 32, 32, 3)), "flips and turns": np.zeros((8, 32, 32, 3))})
        >>> len(page.axes)
        16
    """
    rows = [-(-len(images) // 4) for images in sheets.values()]
    head = np.concatenate([[22] + [0] * (n - 1) for n in rows])
    page, axes = style.sheet(4 * sum(rows), 4, 120, head=head)
    unused, start = set(axes), 0
    for (title, images), lines in zip(sheets.items(), rows, strict=True):
        for place, image in enumerate(images):
            style.show_photo(axes[start + place], image, 120, frame=GREY if place == 0 else None)
            unused.discard(axes[start + place])
        style.note(axes[start], f"{title}; the first is the photo itself", (0, 1), (0, 3), va="bottom")
        start += 4 * lines
    for axis in unused:
        axis.remove()
    return page


def label_distribution(frame):
    """Photos per class as bars, stacked by part of the split, most frequent class first.

    Args:
        frame: DataFrame with `label` (and `split`).

    Returns:
        Figure. The number behind each bar is the class's photos in all parts, and how many times fewer that is.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "hat", "shirt"], "split": ["train", "test", "train"]})
        >>> page = label_distribution(photos)
    """
    style.need(frame, "label")
    parts = frame["split"] if "split" in frame else pd.Series("all photos", index=frame.index)
    counts = pd.crosstab(frame["label"], parts).reindex(frame["label"].value_counts().index, fill_value=0)
    page, ((axis,),) = style.figure(8.4, max(3.2, 1.4 + 0.31 * len(counts)))
    left = np.zeros(len(counts))
    shown, bars = [*(part for part in PARTS if part in counts), *(part for part in counts if part not in PARTS)], []
    for part in shown:
        bars.append(axis.barh(counts.index, counts[part], left=left, color=PARTS.get(part, GREY), height=0.72))
        left = left + counts[part].to_numpy()
    for place, total in enumerate(left):
        times = left.max() / total if total else 0
        fewer = f" ({times:.0f}× fewer)" if times >= 10 else ""
        axis.text(total, place, f" {int(total):,}{fewer}", va="center", fontsize=TEXT)
    axis.margins(x=0.14)
    axis.invert_yaxis()
    style.labels(axis, "photos")
    if len(shown) > 1:
        style.key(page, bars, shown)
    return page


def training_curves(runs):
    """Accuracy and loss by epoch, one column per model: validation solid, training dashed, the kept epoch marked.

    Args:
        runs: title -> Run, or title -> history DataFrame with the columns epoch, loss, accuracy, val_loss,
            val_accuracy (any of the last four may be missing).

    Returns:
        Figure; panels of a row share their y axis, each model has its own epochs.

    Example:
        >>> page = training_curves({"a": pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_loss": [2.1, 1.5]})})
    """
    if not runs:
        raise ValueError("expected at least one run to draw, got none; train one first")
    width = 0.8 + (3.1 * len(runs) if len(runs) > 1 else 5)
    measures = ("accuracy", "loss")
    page, axes = style.figure(width, 5.5, 2, len(runs), sharey="row")
    for column, (title, run) in enumerate(runs.items()):
        history = getattr(run, "history", run)
        style.need(history, "epoch")
        colour = style.MODES.get(getattr(getattr(run, "config", None), "mode", None), GREY)
        for axis, measure in zip(axes[:, column], measures, strict=True):
            dots = "o" if len(history) == 1 else None
            if measure in history:
                axis.plot(history["epoch"], history[measure], "--", color=colour, linewidth=1.6, marker=dots)
            if f"val_{measure}" in history:
                line = history.set_index("epoch")[f"val_{measure}"]
                axis.plot(line.index, line, color=colour, linewidth=2.4, marker=dots)
                best = getattr(run, "best_epoch", None)
                if best in line.index:
                    axis.plot(best, line[best], "o", color=colour, markersize=9, markeredgecolor="black")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            style.grid(axis)
            if measure == "accuracy":
                style.percent_axis(axis)
                axis.set_ylim(0, 1.03)
            else:
                axis.set_ylim(bottom=0)
        axes[0, column].set_title(title, fontsize=LABEL)
        style.labels(axes[-1, column], "epoch")
    style.labels(axes[0, 0], y="accuracy")
    style.labels(axes[1, 0], y="loss (cross-entropy, nats)")
    looks = ({}, {"linestyle": "--"}, {"linestyle": "none", "marker": "o", "markeredgecolor": "black"})
    style.key(page, [Line2D([], [], color=GREY, **look) for look in looks], ["validation", "training", "epoch kept"])
    return page
