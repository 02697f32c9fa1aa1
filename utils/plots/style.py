"""What all figures share: colours that colour-blind readers can tell apart, sizes that stay legible at half width."""

import io
import pathlib

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

DPI = 100
# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK, "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#6b6b6b"
TEXT, LABEL, TITLE = 11, 12, 13  # points


class Page(Figure):
    """A Figure that a notebook shows as PNG even where nobody has imported pyplot, and never shows twice."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


class PaletteCanvas(FigureCanvasAgg):
    """Writes PNG with a palette of 256 colours: a sheet of photos in a third of the bytes, however it is saved."""

    def print_png(self, filename_or_obj, **_):
        self.draw()
        full = Image.fromarray(np.asarray(self.buffer_rgba())[..., :3].copy())
        palette = full.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette.save(filename_or_obj, format="png", optimize=True, dpi=(self.figure.dpi, self.figure.dpi))


def figure(width, height, rows=1, columns=1, **kwargs):
    """A white Page of `width` x `height` inches at 100 dpi, and its axes as a (rows, columns) array."""
    page = Page(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(page)
    axes = page.subplots(rows, columns, squeeze=False, **kwargs)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=TEXT)
    return page, axes


def titled(page, title):
    """Put `title` above the whole figure, where there is one."""
    if title:
        page.suptitle(title, fontsize=TITLE, x=0.01, ha="left")
    return page


def labels(axis, x=None, y=None, title=None):
    """Axis labels and the title of one panel, in the sizes of the house."""
    if x:
        axis.set_xlabel(x, fontsize=LABEL)
    if y:
        axis.set_ylabel(y, fontsize=LABEL)
    if title:
        axis.set_title(title, fontsize=LABEL)


def percent_axis(axis, which="y"):
    """Show shares 0..1 as percent on one axis."""
    getattr(axis, f"{which}axis").set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))


def need(frame, *columns):
    """Refuse a table without rows or without a column that the figure draws."""
    missing = [column for column in columns if column not in getattr(frame, "columns", ())]
    if missing:
        raise ValueError(f"the table to draw has no column {', '.join(map(repr, missing))}; add it or rename yours")
    if len(frame) == 0:
        raise ValueError("the table to draw has no row; measure something first")


def thumbnail(photo, side, colours=40):
    """A photo as a small square (side, side, 3) uint8, cut to the middle, in few colours so that PNG stays small.

    Args:
        photo: path of an image file, or uint8 array (h, w, 3).
        side: of the square, in pixels.
        colours: of its own palette, 0 for all; a notebook full of sheets must stay under 1 MB.

    Raises:
        ValueError: the file cannot be read as an image; names it.
    """
    try:
        if isinstance(photo, (str, pathlib.Path)):
            with Image.open(photo) as opened:
                opened.draft("RGB", (2 * side, 2 * side))
                image = ImageOps.exif_transpose(opened).convert("RGB")
        else:
            image = Image.fromarray(np.asarray(photo, dtype=np.uint8), "RGB")
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        name = photo if isinstance(photo, (str, pathlib.Path)) else f"an array of shape {np.shape(photo)}"
        raise ValueError(f"{name} cannot be drawn as a photo ({error}); replace it or leave it out") from error
    image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    if colours:
        # Median cut without dithering: flat areas are what deflate compresses.
        image = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return np.asarray(image)


class Sheet:
    """Thumbnails at exact pixels on one white canvas with text between them; `page()` makes the figure.

    Everything is placed in pixels from the top left. One image at one screen pixel a sheet pixel, not one axes a photo:
    sixty axes are slow, and resampled thumbnails triple the file.
    """

    def __init__(self, width, height):
        self.canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        self.texts = []

    def photo(self, x, y, pixels):
        """Put (h, w, 3) pixels with their top left corner at x, y."""
        self.canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def text(self, x, y, words, size=TEXT, **kwargs):
        """Put words with their top left corner at x, y."""
        self.texts.append((x, y, words, size, kwargs))

    def page(self, title=None):
        """The sheet as a Page, with the title above it."""
        height, width = self.canvas.shape[:2]
        head = 34 if title else 4
        page = Page(figsize=(width / DPI, (height + head) / DPI), dpi=DPI, facecolor="white")
        PaletteCanvas(page)
        axis = page.add_axes((0, 0, 1, height / (height + head)))
        axis.imshow(self.canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
        axis.set_axis_off()
        for x, y, words, size, kwargs in self.texts:
            axis.text(x, y, words, fontsize=size, va="top", ha="left", **kwargs)
        if title:
            page.text(4 / width, 1 - 6 / (height + head), title, fontsize=TITLE, va="top", ha="left")
        return page
