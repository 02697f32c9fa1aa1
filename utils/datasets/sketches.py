"""Drawn garments: a stand-in for photos, so that the whole study runs with no network and no photos.

Ten classes with the names of clothing-10, drawn by the program: outline, colour, pattern, background and pose vary. The
"senders" are styles: each has its own room (background, light), taste (palette, patterns) and way of laying clothes
down, so that grouped protocols have something to group. Numbers from drawings say that the code works; they say nothing
about clothes.
"""

import colorsys
import csv

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from utils import files
from utils.datasets.garments import CLASSES
from utils.datasets.garments import build as build_garment

VERSION = 1  # of the drawings: raise it when a change alters them
_PER_SENDER = 12
_INDEX = "drawings.csv"
_COLUMNS = ("id", "label", "sender", "number")


def build(root=None, per_class=60, size=128, seed=0):
    """Draw the garments, unless they are there already.

    The folder appears whole or not at all; the same arguments give the same drawings.

    Args:
        root: folder to put the folder of drawings in; default `data/` of the project.
        per_class: drawings a class.
        size: side in pixels.
        seed: other drawings.

    Returns:
        pathlib.Path of `sketches-v1-<per_class>x<size>-seed<seed>/`, with `<class>/<id>.png` and `drawings.csv`.

    Raises:
        ValueError: fewer than one drawing a class, or a side outside 16..1024.
        OSError: the folder cannot be written; names it.

    Example:
        >>> import tempfile
        >>> folder = build(tempfile.mkdtemp(), per_class=3, size=32)
        >>> len(list(folder.glob("*/*.png")))
        30
    """
    if isinstance(per_class, bool) or int(per_class) != per_class or per_class < 1:
        raise ValueError(f"per_class is {per_class}; give a whole number of drawings from 1")
    if isinstance(size, bool) or int(size) != size or not 16 <= size <= 1024:
        raise ValueError(f"size is {size}; give a side of 16 to 1024 pixels")

    def paint(part):
        rows = plan(per_class, seed)
        for row in rows:
            target = part / row["label"] / f"{row['id']}.png"
            target.parent.mkdir(exist_ok=True)
            draw(row["label"], row["sender"], size, row["number"], seed).save(target, compress_level=1)
        with (part / _INDEX).open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    name = f"sketches-v{VERSION}-{int(per_class)}x{int(size)}-seed{seed}"
    return files.build_once(files.drawings_root(root) / name, paint)


def index(folder):
    """The drawings in a folder made by :func:`build`: DataFrame with `id`, `label`, `sender`, `path`.

    Raises:
        FileNotFoundError: no such folder, or a drawing is gone; says to delete the folder and draw again.
    """
    try:
        frame = pd.read_csv(folder / _INDEX, dtype=str)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no {_INDEX}; delete the folder and draw again") from None
    frame["path"] = [str(folder / row.label / f"{row.id}.png") for row in frame.itertuples()]
    there = {str(path) for path in folder.glob("*/*.png")}
    if gone := [path for path in frame["path"] if path not in there]:
        raise FileNotFoundError(f"{len(gone)} drawings are gone (first {gone[0]}); delete {folder} and draw again")
    return frame[["id", "label", "sender", "path"]]


def plan(per_class, seed):
    """Which drawing is by whom: list of rows with id, label, sender and number. Senders differ in diligence."""
    rng = np.random.default_rng([seed, 10])
    total = per_class * len(CLASSES)
    senders = max(min(10, total), round(total / _PER_SENDER))
    diligence = rng.gamma(1.5, size=senders) + 0.2
    rows = []
    for number in range(total):
        label = CLASSES[number % len(CLASSES)]
        sender = int(rng.choice(senders, p=diligence / diligence.sum()))
        rows.append({"id": f"{label}-{number:05d}", "label": label, "sender": f"style-{sender:03d}", "number": number})
    return rows


def draw(label, sender, size, number=0, seed=0):
    """One drawing.

    Args:
        label: one of the ten classes.
        sender: name of a style; the same name, the same style.
        size: side in pixels.
        number: another number, another garment.
        seed: other styles and garments.

    Returns:
        PIL.Image.Image, RGB, size x size.

    Raises:
        ValueError: there is no such class.

    Example:
        >>> draw("hat", "style-001", 64).size
        (64, 64)
    """
    if label not in CLASSES:
        raise ValueError(f"there is no drawn class {label!r}; the classes are {', '.join(CLASSES)}")
    style = _style(sender, seed)
    rng = np.random.default_rng([seed, 11, number, CLASSES.index(label)])
    big = 2 * size  # drawn at twice the size, then reduced: smooth edges
    canvas = _background(style, rng, big)
    garment = build_garment(label, rng)
    place = _pose(style, rng, big)
    cloth, trim, ink = _colours(style, rng)
    mask = Image.new("L", (big, big), 0)
    for body in garment.bodies:
        ImageDraw.Draw(mask).polygon(place(body), fill=255)
    shadow = mask.filter(ImageFilter.GaussianBlur(big / 60)).point(lambda value: int(value * style["shadow"]))
    canvas.paste(Image.new("RGB", (big, big), (20, 18, 24)), (round(big * 0.012), round(big * 0.018)), shadow)
    canvas.paste(_cloth(style, rng, big, cloth, trim), (0, 0), mask)
    pen, width = ImageDraw.Draw(canvas), max(1, round(big / 110 * style["pen"]))
    for body in garment.bodies:
        points = place(body)
        pen.line([*points, points[0]], fill=ink, width=width)
    for shape in garment.trims:
        points = place(shape)
        pen.polygon(points, fill=trim)
        pen.line([*points, points[0]], fill=ink, width=width)
    for seam in garment.seams:
        pen.line(place(seam), fill=ink, width=max(1, width // 2))
    radius = max(1.0, big / 90)
    for x, y in place(np.reshape(garment.dots, (-1, 2))):
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=trim, outline=ink)
    return _photographed(canvas.resize((size, size), Image.Resampling.BOX), style, rng)


def _style(sender, seed):
    """What is constant in one sender's drawings."""
    rng = np.random.default_rng([seed, 12, *sender.encode()])
    return {
        "background": str(rng.choice(["plain", "boards", "tiles", "gradient", "carpet"])),
        "wall": _hsv(rng.random(), rng.uniform(0.0, 0.3), rng.uniform(0.3, 0.98)),
        "hue": rng.random(),
        "spread": rng.uniform(0.05, 0.5),
        "patterns": rng.dirichlet([1.2] * 5),
        "tilt": rng.normal(0, 4),
        "scale": rng.uniform(0.72, 0.95),
        "light": rng.uniform(-0.2, 0.2, 2),
        "exposure": rng.uniform(0.8, 1.1),
        "tint": rng.uniform(0.92, 1.08, 3),
        "noise": rng.uniform(1, 7),
        "blur": rng.uniform(0, 0.9),
        "pen": rng.uniform(0.5, 1.5),
        "shadow": rng.uniform(0.1, 0.6),
        "clutter": rng.uniform(0, 0.4),
    }


def _pose(style, rng, big):
    angle = np.deg2rad(style["tilt"] + rng.normal(0, 6))
    scale = style["scale"] * rng.uniform(0.85, 1.1) * big / 2
    stretch = rng.uniform(0.88, 1.12)
    shift = big / 2 + rng.uniform(-0.05, 0.05, 2) * big
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lean = np.array([[1, rng.normal(0, 0.05)], [0, stretch]])
    matrix = scale * turn @ lean

    def place(points):
        return [tuple(point) for point in (points @ matrix.T + shift).tolist()]

    return place


def _colours(style, rng):
    hue, wall = style["hue"] + rng.normal(0, style["spread"]), np.mean(style["wall"]) / 255
    value = rng.uniform(0.1, 1)
    while abs(value - wall) < 0.2:  # people lay a garment where it can be seen
        value = rng.uniform(0.1, 1)
    cloth = _hsv(hue, rng.beta(1.5, 2), value)
    trim = _hsv(hue + rng.choice([0, 0.08, 0.5]), rng.uniform(0, 0.9), rng.uniform(0.1, 1))
    ink = tuple(int(value * 0.35) for value in cloth)
    return cloth, trim, ink


def _cloth(style, rng, big, cloth, trim):
    image = Image.new("RGB", (big, big), cloth)
    pen = ImageDraw.Draw(image)
    step = max(4, int(big * rng.uniform(0.03, 0.09)))
    thick = max(1, int(step * rng.uniform(0.2, 0.6)))
    pattern = rng.choice(["none", "across", "along", "checks", "dots"], p=style["patterns"] * 0.5 + np.eye(5)[0] * 0.5)
    slant = int(rng.choice([0, 0, big // 3]))
    if pattern in ("across", "checks"):
        for y in range(-big, 2 * big, step):
            pen.line([(0, y), (big, y + slant)], fill=trim, width=thick)
    if pattern in ("along", "checks"):
        for x in range(-big, 2 * big, step):
            pen.line([(x, 0), (x + slant, big)], fill=trim, width=thick)
    if pattern == "dots":
        for row, y in enumerate(range(0, big, step)):
            for x in range(-(row % 2) * step // 2, big, step):
                pen.ellipse([x, y, x + thick, y + thick], fill=trim)
    for _ in range(int(rng.integers(2, 7))):  # folds
        (x, y), (dx, dy) = rng.uniform(0.2, 0.8, 2) * big, rng.normal(0, 0.12, 2) * big
        fold = tuple(int(value * rng.uniform(0.75, 0.92)) for value in cloth)
        pen.line([(x, y), (x + dx, y + dy)], fill=fold, width=max(1, big // 70))
    return image


def _background(style, rng, big):
    wall = np.array(style["wall"])
    dark = tuple((wall * 0.8).astype(int).tolist())
    image = Image.new("RGB", (big, big), tuple(style["wall"]))
    pen = ImageDraw.Draw(image)
    offset = int(rng.integers(0, big // 4))
    if style["background"] in ("boards", "tiles"):
        for x in range(offset - big, 2 * big, big // 5):
            pen.line([(x, 0), (x + big // 8, big)], fill=dark, width=max(1, big // 90))
    if style["background"] == "tiles":
        for y in range(offset - big, 2 * big, big // 5):
            pen.line([(0, y), (big, y - big // 8)], fill=dark, width=max(1, big // 90))
    if style["background"] == "carpet":
        image = image.filter(ImageFilter.GaussianBlur(1))
        speckle = np.asarray(image).astype(float) * rng.normal(1, 0.09, (big, big, 1))
        image = Image.fromarray(np.clip(speckle, 0, 255).astype(np.uint8))
    if style["background"] == "gradient":
        ramp = np.linspace(0.7, 1.15, big)[:, None, None]
        image = Image.fromarray(np.clip(np.asarray(image) * ramp, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    while rng.random() < style["clutter"]:  # something else lies at the edge
        x, y = rng.choice([-0.05, 0.9]) * big, rng.uniform(0, 0.9) * big
        w, h = rng.uniform(0.08, 0.25, 2) * big
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape([x, y, x + w, y + h], fill=_hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.2, 0.9)))
    return image


def _photographed(image, style, rng):
    size = image.size[0]
    if style["blur"] > 0.3:
        image = image.filter(ImageFilter.GaussianBlur(style["blur"] * size / 160))
    ramp = np.linspace(-1, 1, size)
    light = 1 + style["light"][0] * ramp[:, None] + style["light"][1] * ramp[None, :]
    pixels = np.asarray(image).astype(np.float32) * (style["exposure"] * rng.uniform(0.9, 1.1) * light)[:, :, None]
    pixels = pixels * style["tint"] + rng.normal(0, style["noise"], (size, size, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _hsv(hue, saturation, value):
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
