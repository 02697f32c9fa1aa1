"""What all figures share: one colour per meaning, sizes that stay legible at half width, photos in true colours."""

import functools
import io
import pathlib
import sys

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageOps

DPI = 100
TEXT, LABEL = 11, 12  # points

# One colour per meaning, one meaning per colour, after the colour-blind palettes of Okabe and Ito and of Paul Tol.
NEW_PHOTOGRAPHERS, SEEN_PHOTOGRAPHERS = "#0072B2", "#E69F00"  # whose photos a model is judged on
FROZEN, FINE_TUNED, SCRATCH = "#56B4E9", "#009E73", "#8C564B"  # how its weights were trained
CONV, POINTWISE, DEPTHWISE, DENSE = "#882255", "#CC6677", "#DDCC77", "#332288"  # what a layer computes
FLOAT, INT8 = "#444444", "#AA4499"  # numbers of a file
WRONG = "#D55E00"  # a mistake, or the mark that a figure is about
TRAIN, VALIDATION, TEST = "#C7CED6", "#8C98A4", "#3D4650"  # parts of a split
GREY = "#6b6b6b"  # axes, notes, and what has no meaning of its own
LIGHT = "#e5e5e5"

MODES = {"frozen": FROZEN, "fine_tune": FINE_TUNED, "scratch": SCRATCH}
TRAINED = {"frozen": FROZEN, "fine-tuned": FINE_TUNED, "from scratch": SCRATCH}
KINDS = {
    "k×k convolution": CONV, "convolution": CONV, "full convolution": CONV, "1×1 convolution": POINTWISE,
    "depthwise": DEPTHWISE, "depthwise convolution": DEPTHWISE, "dense": DENSE,
}  # fmt: skip
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Picture(Figure):
    """A Figure that a notebook shows once: by itself at the end of its cell, as JPEG where it holds photos, else PNG.

    Outside of a notebook it is a plain Figure. It belongs to no pyplot, so that nothing is left open.
    """

    photos = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if _watch_cells():
            _unshown.append(self)

    def _ipython_display_(self):
        from IPython.display import Image as Shown
        from IPython.display import display

        if self in _unshown:
            _unshown.remove(self)
        kind = "jpeg" if self.photos else "png"
        display(Shown(self.encoded(kind), format=kind))

    def encoded(self, kind):
        """The bytes of the figure as "png" or "jpeg"."""
        buffer = io.BytesIO()
        self.savefig(buffer, format=kind, dpi=self.dpi, pil_kwargs={"quality": 76} if kind == "jpeg" else None)
        return buffer.getvalue()


_unshown = []  # made in the cell that runs now, and not shown by it


@functools.cache
def _watch_cells():
    """Whether this is a notebook; from then on each of its cells shows at its end what it has drawn and not shown."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return False

    def show_the_rest():
        while _unshown:
            _unshown[0]._ipython_display_()

    shell.events.register("post_execute", show_the_rest)
    return True


def figure(width, height, rows=1, columns=1, photos=False, **kwargs):
    """A white Picture of `width` x `height` inches at 100 dpi, and its axes as a (rows, columns) array."""
    page = Picture(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    page.photos = photos
    FigureCanvasAgg(page)
    axes = page.subplots(rows, columns, squeeze=False, **kwargs)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=TEXT)
    return page, axes


def drawing(width, height, columns=1, rows=1, **kwargs):
    """A Picture whose axes have neither frame nor ticks, and the axes as a list, row by row."""
    page, axes = figure(width, height, rows, columns, **kwargs)
    for axis in axes.flat:
        axis.set_axis_off()
    return page, list(axes.flat)


def sheet(count, columns, side, foot=0, head=0):
    """A Picture of `count` photos, each exactly `side` pixels, with room for words: its axes in reading order.

    `foot` pixels are free below each photo, `head` above each row (one number, or one per row).
    """
    rows, columns, gap = -(-count // columns), min(columns, count), 8
    head = np.broadcast_to(head, rows)
    width, height = columns * (side + gap), int(head.sum()) + rows * (side + foot + gap)
    page = Picture(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    page.photos = True
    FigureCanvasAgg(page)
    axes = []
    for row, column in (divmod(place, columns) for place in range(count)):
        x = column * (side + gap) + gap / 2
        y = height - row * (foot + gap) - (row + 1) * side - gap / 2 - head[: row + 1].sum()
        axes.append(page.add_axes((x / width, y / height, side / width, side / height)))
        axes[-1].set_axis_off()
    return page, axes


def box(axis, corner, width, height, **look):
    """Draw a rectangle whose lower left corner is at `corner`, in data units."""
    axis.add_patch(Rectangle(corner, width, height, **look))


def nothing(words):
    """A Picture that says that there is nothing to draw."""
    page, (axis,) = drawing(6, 0.5)
    axis.text(0, 0.5, words, fontsize=LABEL, va="center")
    return page


def show_photo(axis, photo, side, words="", colour="black", frame=None):
    """Draw a photo, cut to a square, into axes of :func:`sheet`, with words below it."""
    axis.imshow(thumbnail(photo, side), extent=(0, 1, 0, 1), aspect="auto")
    if frame:
        box(axis, (0, 0), 1, 1, fill=False, edgecolor=frame, linewidth=5)
    note(axis, words, (0, 0), (0, -3), va="top", color=colour)


def labels(axis, x=None, y=None, title=None):
    """Axis labels and the title of one panel, in the sizes of the house."""
    axis.set_xlabel(x or axis.get_xlabel(), fontsize=LABEL)
    axis.set_ylabel(y or axis.get_ylabel(), fontsize=LABEL)
    axis.set_title(title or axis.get_title(), fontsize=LABEL)


def key(page, handles, names):
    """What the colours and marks mean, in one row below the figure."""
    page.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=TEXT)


def percent_axis(axis, which="y"):
    """Show shares 0..1 as whole percent on one axis."""
    getattr(axis, f"{which}axis").set_major_formatter(PercentFormatter(1, decimals=0))
    getattr(axis, f"{which}axis").set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))


def grid(axis, which="both"):
    """Faint lines behind what is measured."""
    axis.grid(axis=which, color=LIGHT, linewidth=0.8)
    axis.set_axisbelow(True)


def note(axis, words, point, offset, va="center", fontsize=TEXT, **kwargs):
    """Words at `point` (data units), moved by `offset` points."""
    axis.annotate(words, point, offset, textcoords="offset points", va=va, fontsize=fontsize, **kwargs)


def names_at_ends(axis, ends, leaders=False, left=False):
    """Write names to the right of where lines or points end, moved apart so that none covers another.

    `ends` are (x, y, name, colour) in data units; the limits and scales of `axis` must be final. With `leaders` all
    names stand in one column at the right edge, each joined to its point by a thin line; with `left` they stand to the
    left of their points.
    """
    axis.figure.draw_without_rendering()
    ends = sorted(ends, key=lambda end: axis.transData.transform((end[0], end[1]))[1])
    wanted = [axis.transData.transform((x, y))[1] for x, y, _, _ in ends]
    heights = [1.3 * (1 + name.count("\n")) * TEXT * DPI / 72 for _, _, name, _ in ends]
    right = axis.get_xlim()[1]
    for (x, y, name, colour), pixel, moved in zip(ends, wanted, _apart(wanted, heights), strict=True):
        at = axis.transData.inverted().transform((0, moved))[1]
        if leaders:
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 4}
            place = {"xytext": (right, at), "arrowprops": line}
        else:
            place = {"xytext": (-10 if left else 10, (moved - pixel) * 72 / DPI), "textcoords": "offset points"}
            place["ha"] = "right" if left else "left"
        axis.annotate(name, (x, y), fontsize=TEXT, color=colour, va="center", annotation_clip=False, **place)


def _apart(wanted, heights):
    """Positions near the wanted ones, in the same order, that lie a mean height apart."""
    groups = []  # of neighbours that touch: [mean position, members' heights]
    for pixel, height in zip(wanted, heights, strict=True):
        groups.append([[pixel], [height]])
        while len(groups) > 1 and _top(groups[-2]) > _bottom(groups[-1]):
            last = groups.pop()
            groups[-1] = [groups[-1][0] + last[0], groups[-1][1] + last[1]]
    places = []
    for pixels, sizes in groups:
        edges = np.concatenate([[0], np.cumsum(sizes)]) - sum(sizes) / 2 + np.mean(pixels)
        places += list((edges[:-1] + edges[1:]) / 2)
    return places


def _top(group):
    return np.mean(group[0]) + sum(group[1]) / 2


def _bottom(group):
    return np.mean(group[0]) - sum(group[1]) / 2


def need(frame, *columns):
    """Refuse a table without rows or without a column that the figure draws."""
    missing = [column for column in columns if column not in getattr(frame, "columns", ())]
    if missing:
        raise ValueError(f"expected a table with the columns {', '.join(columns)}; {', '.join(missing)} is missing")
    if len(frame) == 0:
        raise ValueError("expected a table with at least one row to draw, got none")


def thumbnail(photo, side):
    """A photo as a small square (side, side, 3) uint8, cut to the middle.

    Args:
        photo: path of an image file, or array (h, w, 3) in 0..255.
        side: of the square, in pixels.

    Raises:
        ValueError: the file cannot be read as an image; names it.
    """
    if not isinstance(photo, (str, pathlib.Path)):
        pixels = np.clip(np.rint(np.asarray(photo, dtype=float)), 0, 255).astype(np.uint8)
        return np.asarray(ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.LANCZOS))
    try:
        with Image.open(photo) as opened:
            opened.draft("RGB", (2 * side, 2 * side))
            image = ImageOps.exif_transpose(opened).convert("RGB")
            return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{photo} cannot be read as a photo ({error}); replace it or leave it out") from error
