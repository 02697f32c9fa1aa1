"""Figures made of photos: what the classes look like, the worst mistakes, and where the model looked."""

import math

import matplotlib
import numpy as np

from utils.plots import style


def dataset_cover(frame, classes, title=None, seed=0, per_class=None, side=None):
    """A contact sheet: a few photos of each class, drawn at random.

    Args:
        frame: DataFrame with `path` and `label`.
        classes: in the order in which to show them; one without photos says so in its place.
        title: above the sheet.
        seed: another seed, other photos.
        per_class: photos a class; None: six for up to ten classes, else four.
        side: of a photo, in pixels; None: 72, or 64 for more than ten classes.

    Returns:
        Figure, about 900 pixels wide.

    Raises:
        ValueError: no photos, missing columns, or a file that is no image (named).

    Example:
        >>> cover = dataset_cover(dataset.part("train"), dataset.classes, title="Figure 1")  # doctest: +SKIP
    """
    style.need(frame, "path", "label")
    columns = 2 if len(classes) <= 10 else 3
    per_class = per_class or (6 if columns == 2 else 4)
    side = side or (72 if columns == 2 else 64)
    gap, head = 3, 24
    block_width, block_height = per_class * (side + gap) + 14, side + head + 6
    rows = math.ceil(len(classes) / columns)
    sheet = style.Sheet(columns * block_width, rows * block_height)
    for index, label in enumerate(classes):
        # Down the first column, then the next: the reader finds a class in alphabetical order.
        x, y = (index // rows) * block_width + 4, (index % rows) * block_height
        photos = frame.loc[frame["label"] == label, "path"]
        sheet.text(x, y + 4, f"{label} ({len(photos):,})" if len(photos) else f"{label} (no photo here)")
        for place, path in enumerate(photos.sample(min(per_class, len(photos)), random_state=seed)):
            sheet.photo(x + place * (side + gap), y + head, style.thumbnail(path, side, colours=24))
    return sheet.page(title)


def mistakes(worst, title=None, columns=6, side=140):
    """A contact sheet of mistakes: each photo with its true class, what the model called it and how surely.

    Args:
        worst: DataFrame of `evaluation.worst_mistakes`: path, true, predicted, confidence.
        title: above the sheet.
        columns: photos a row.
        side: of a photo, in pixels.

    Returns:
        Figure; where there is no mistake it says so.

    Example:
        >>> sheet = mistakes(evaluation.worst_mistakes(judged, frame, n=12))  # doctest: +SKIP
    """
    if len(worst) == 0:
        sheet = style.Sheet(640, 40)
        sheet.text(6, 8, "No mistake among these photos.")
        return sheet.page(title)
    style.need(worst, "path", "true", "predicted", "confidence")
    columns = min(columns, len(worst))
    wide, high = side + 8, side + 46
    sheet = style.Sheet(max(columns * wide, 320), math.ceil(len(worst) / columns) * high)
    for index, row in enumerate(worst.to_dict("records")):
        x, y = (index % columns) * wide + 4, (index // columns) * high
        sheet.photo(x, y, style.thumbnail(row["path"], side))
        sheet.text(x, y + side + 3, f"{row['true']}", size=10)
        sheet.text(x, y + side + 20, f"→ {row['predicted']} {row['confidence']:.0%}", size=10, color=style.RED)
    return sheet.page(title)


def gradcam_overlay(cams, title=None, side=150):
    """Photos beside the same photos under their Grad-CAM heat: bright is what spoke for the class.

    Args:
        cams: GradCam of `gradcam.gradcam`.
        title: above the sheet.
        side: of a photo, in pixels.

    Returns:
        Figure, three pairs a row.

    Example:
        >>> sheet = gradcam_overlay(gradcam.gradcam(model, worst.head(4)))  # doctest: +SKIP
    """
    pairs = 2 if len(cams.images) in (2, 4) else min(3, len(cams.images))
    wide, high = 2 * side + 14, side + 30
    sheet = style.Sheet(pairs * wide, math.ceil(len(cams.images) / pairs) * high)
    for index, (image, overlay, caption) in enumerate(zip(cams.images, _under_heat(cams), cams.captions, strict=True)):
        x, y = (index % pairs) * wide + 4, (index // pairs) * high
        sheet.photo(x, y, style.thumbnail(image, side, colours=64))
        sheet.photo(x + side + 3, y, style.thumbnail(overlay, side, colours=0))
        sheet.text(x, y + side + 4, caption, size=10)
    return sheet.page(title)


def _under_heat(cams):
    """(n, s, s, 3) uint8: the photos in grey under their heat (inferno: brightness alone carries it)."""
    grey = cams.images.mean(axis=-1, keepdims=True)
    strength = 0.25 + 0.4 * cams.heat[..., None]
    colour = 255 * matplotlib.colormaps["inferno"](cams.heat)[..., :3]
    return np.clip((1 - strength) * grey + strength * colour, 0, 255).astype(np.uint8)


def photo_grid(images, captions=None, title=None, columns=8, side=96):
    """Images side by side, such as one batch after augmentation.

    Args:
        images: uint8 or float array (n, h, w, 3) in 0..255, or paths.
        captions: n strings, or None.
        title: above the sheet.
        columns: images a row.
        side: of an image, in pixels.

    Returns:
        Figure.

    Example:
        >>> page = photo_grid(np.zeros((3, 32, 32, 3)), ["a", "b", "c"])
        >>> page.get_size_inches().round(2).tolist()
        [3.03, 1.22]
    """
    if len(images) == 0:
        raise ValueError("there is no image to draw; pass at least one")
    columns = min(columns, len(images))
    wide, high = side + 5, side + (22 if captions is not None else 5)
    sheet = style.Sheet(columns * wide, math.ceil(len(images) / columns) * high)
    for index, image in enumerate(images):
        if isinstance(image, np.ndarray):
            image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        x, y = (index % columns) * wide + 2, (index // columns) * high
        sheet.photo(x, y, style.thumbnail(image, side, colours=24))
        if captions is not None:
            sheet.text(x, y + side + 3, str(captions[index]), size=10)
    return sheet.page(title)
