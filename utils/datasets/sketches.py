"""Synthetic drawings: a stand-in for photos, so that everything runs with no network and no photos.

Ten classes with the names of clothing-10. The "senders" are styles: each has its own room (background, light) and taste
(colours, pattern), so that grouped protocols have something to group. Numbers from drawings say that the code works;
they say nothing about clothes.
"""

import colorsys

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from utils import files
from utils._checks import whole

VERSION = 2  # of the drawings: raise it when a change alters them
CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
_PER_SENDER = 12
_INDEX = "drawings.csv"


def build(root=None, per_class=60, size=128, seed=0):
    """Draw the garments, unless they are there already.

    The folder appears whole or not at all; the same arguments give the same drawings.

    Args:
        root: folder to put the folder of drawings in; default `data/` of the project.
        per_class: drawings per class.
        size: side in pixels.
        seed: other drawings.

    Returns:
        pathlib.Path of `sketches-v2-<per_class>x<size>-seed<seed>/`, with `<class>/<id>.png` and `drawings.csv`.

    Example:
        >>> import tempfile
        >>> folder = build(tempfile.mkdtemp(), per_class=3, size=32)
        >>> len(list(folder.glob("*/*.png")))
        30
    """
    per_class, size = whole("per_class", per_class), whole("size", size, 16, 1024)

    def paint(part):
        rows = plan(per_class, seed)
        for row in rows:
            target = part / row["label"] / f"{row['id']}.png"
            target.parent.mkdir(exist_ok=True)
            draw(row["label"], row["sender"], size, row["number"], seed).save(target, compress_level=1)
        pd.DataFrame(rows).to_csv(part / _INDEX, index=False)

    name = f"sketches-v{VERSION}-{per_class}x{size}-seed{seed}"
    return files.build_once(files.drawings_root(root) / name, paint)


def index(folder):
    """The drawings in a folder made by :func:`build`: DataFrame id, label, sender, path."""
    frame = pd.read_csv(folder / _INDEX, dtype=str)
    frame["path"] = [str(folder / row.label / f"{row.id}.png") for row in frame.itertuples()]
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
    """One drawing: PIL.Image.Image, RGB, size x size; one style per sender, one garment per number.

    Example:
        >>> draw("hat", "style-001", 64).size
        (64, 64)
    """
    rng = np.random.default_rng([seed, 11, number, CLASSES.index(label)])
    style = np.random.default_rng([seed, 12, *sender.encode()])  # what is constant in one sender's drawings
    big = 2 * size  # drawn at twice the size, then reduced: smooth edges
    wall, boards, hue = _colour(style.random(), 0.25, style.uniform(0.3, 0.95)), style.random() < 0.5, style.random()
    striped, light, noise = style.random(), style.uniform(-0.25, 0.25, 2), style.uniform(1, 8)
    canvas = Image.new("RGB", (big, big), wall)
    if boards:
        pen = ImageDraw.Draw(canvas)
        for x in range(-big, big, big // 5):
            pen.line([(x, 0), (x + big // 8, big)], fill=_shade(wall, 0.8), width=max(1, big // 90))

    value = rng.uniform(0.1, 1)
    while abs(value - max(wall) / 255) < 0.2:  # people lay a garment where it can be seen
        value = rng.uniform(0.1, 1)
    cloth = _colour(hue + rng.normal(0, 0.15), rng.beta(1.5, 2), value)
    trim, ink = _colour(hue + 0.5, rng.uniform(0, 0.9), rng.uniform(0.1, 1)), _shade(cloth, 0.4)
    angle, scale = rng.normal(0, 0.12), rng.uniform(0.62, 0.95, 2) * big / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = big / 2 + rng.uniform(-0.05, 0.05, 2) * big

    def place(points):
        return [tuple(point) for point in (np.asarray(points) * scale @ turn.T + shift).tolist()]

    bodies, trims, seams = _garment(label, rng.uniform)
    mask = Image.new("L", (big, big))
    for body in bodies:
        ImageDraw.Draw(mask).polygon(place(body), fill=255)
    canvas.paste(_shade(wall, 0.5), (big // 60, big // 50), mask.filter(ImageFilter.GaussianBlur(big / 60)))
    fabric = Image.new("RGB", (big, big), cloth)
    if rng.random() < 0.6 * striped:
        step = int(rng.uniform(0.04, 0.1) * big) + 2
        for at in range(0, big, step):
            line = [(0, at), (big, at)] if striped < 0.6 else [(at, 0), (at, big)]
            ImageDraw.Draw(fabric).line(line, fill=trim, width=max(1, step // 3))
    canvas.paste(fabric, (0, 0), mask)
    pen, width = ImageDraw.Draw(canvas), max(1, big // 110)
    for shapes, fill in ((bodies, None), (trims, trim)):
        for shape in shapes:
            pen.polygon(place(shape), fill=fill, outline=ink, width=width)
    for seam in seams:
        pen.line(place(seam), fill=ink, width=width)
    ramp = np.linspace(-1, 1, size)
    lit = 1 + light[0] * ramp[:, None, None] + light[1] * ramp[None, :, None]
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) * lit + rng.normal(0, noise, (size, size, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _garment(label, u):
    """(bodies, trims, seams) of a garment: lists of point lists; x and y (downwards) run from -1 to 1."""
    if label in ("t-shirt", "longsleeve", "shirt", "outwear"):
        sleeves = {"t-shirt": u(0.2, 0.4), "longsleeve": u(0.6, 0.9), "shirt": u(0.3, 0.85), "outwear": u(0.6, 0.95)}
        sleeve = sleeves[label]
        width, long = (u(0.48, 0.6), u(0.7, 0.9)) if label == "outwear" else (u(0.38, 0.5), u(0.6, 0.75))
        down, neck = u(0.4, 1.2), u(0.12, 0.2)  # the sleeve's angle below the horizontal
        shoulder = np.array([width, 0.1 - long])
        tip = shoulder + sleeve * np.array([np.cos(down), np.sin(down)])
        inner = np.maximum(tip + 0.2 * np.array([-np.sin(down), np.cos(down)]), [width + 0.02, -1])
        half = [(neck, -long), shoulder, tip, inner, (width, 0.4 - long), (width + u(-0.04, 0.1), long)]
        bodies, trims, seams = [_mirrored(half)], [], [[(-neck, -long), (0, u(0.08, 0.2) - long), (neck, -long)]]
        if label in ("shirt", "outwear"):  # collar or lapels, and what closes the front
            low = 0.2 if label == "shirt" else u(0.4, 0.6)
            trims = [[(s * neck, -long), (s * (neck + 0.1), low - long), (0, 0.7 * low - long)] for s in (1, -1)]
            seams = [[(0, 0.15 - long), (0, long)]]
        if label == "outwear":
            seams += [[(s * 0.15, long - 0.4), (s * 0.35, long - 0.3)] for s in (1, -1)]
        return bodies, trims, seams
    if label in ("dress", "skirt"):
        waist, hem, top, bottom = u(0.2, 0.32), u(0.4, 0.75), u(-0.65, -0.45), u(0.45, 0.75)
        if label == "skirt":
            band = [(waist, top), (waist, top + 0.1)]
            return (
                [_mirrored([(waist, top), (hem, bottom)])],
                [_mirrored(band)],
                [[(x * waist, top), (x * hem, bottom)] for x in (-0.4, 0.4)],
            )
        half = [(0.12, -0.9), (0.22, -0.9), (u(0.26, 0.34), -0.5), (waist, -0.25), (hem, bottom + 0.2)]
        return [_mirrored(half)], [], [[(-waist, -0.25), (waist, -0.25)]]
    if label in ("pants", "shorts"):
        long, cuff, stance = u(0.7, 0.95) if label == "pants" else u(0.38, 0.55), u(0.17, 0.32), u(0.03, 0.2)
        crotch = u(0.35, 0.5) - long
        half = [(0.34, -long), (0.42, crotch), (stance + cuff, long), (stance, long), (0.01, crotch)]
        return [_mirrored(half)], [_mirrored([(0.34, -long), (0.35, 0.1 - long)])], [[(0, 0.1 - long), (0, crotch)]]
    if label == "hat":
        wide, high, brim = u(0.35, 0.5), u(0.45, 0.7), u(0.1, 0.4)
        turns = np.linspace(0, np.pi, 13)
        dome = np.stack([wide * np.cos(turns), 0.2 - high * np.sin(turns)], axis=1)
        side = u(-1, 1) < 0  # a cap has its brim on one side
        left = -wide - (0 if side else brim)
        edge = [(wide + brim, 0.2), (wide + brim, 0.34), (left, 0.34), (left, 0.2)]
        return [dome], [edge], [[(0, 0.2 - high), (0.5 * wide, 0.2)]]
    shoes, soles = [], []
    for y in (u(-0.35, -0.2), u(0.3, 0.45)):
        long, high = u(0.6, 0.9), u(0.25, 0.45)
        top, bend = y - high, y - 0.5 * high
        shoes.append([(-long, top), (-0.2 * long, top), (0.2 * long, bend), (long, y - 0.1), (long, y), (-long, y)])
        soles.append([(-long, y), (long, y), (long, y + 0.1), (-long, y + u(0.1, 0.2))])
    return shoes, soles, []


def _mirrored(half):
    """A closed outline from its right half, top to bottom."""
    half = np.asarray(half, float)
    return np.concatenate([half, half[::-1] * [-1, 1]])


def _colour(hue, saturation, value):
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _shade(colour, factor):
    return tuple(int(factor * part) for part in colour)
