"""Outlines of ten garments: what `utils.datasets.sketches` paints.

A garment is built in a frame where x runs from about -1 to 1 and y (downwards) from about -1 to 1; every proportion is
drawn from a range, and the ranges of neighbouring classes overlap, as they do in wardrobes.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Garment:
    """Shapes of one garment: lists of (n, 2) arrays of (x, y).

    Attributes:
        bodies: polygons filled with the cloth and its pattern, painted in order.
        trims: polygons in a second colour (collars, soles, bands).
        seams: open lines.
        dots: (x, y) of buttons and eyelets.
    """

    bodies: list
    trims: list = dataclasses.field(default_factory=list)
    seams: list = dataclasses.field(default_factory=list)
    dots: list = dataclasses.field(default_factory=list)


def build(label, rng):
    """A garment of the class `label` with proportions drawn from `rng` (numpy Generator): Garment."""
    return _BUILDERS[label](rng)


def mirrored(half):
    """A closed outline from its right half, top centre to bottom centre: (n, 2) -> (2 n, 2)."""
    half = np.asarray(half, float)
    return np.concatenate([half, half[::-1] * [-1, 1]])


def rounded(outline, rounds=2):
    """An outline with its corners cut (Chaikin 1974), each round doubles the points."""
    points = np.asarray(outline, float)
    for _ in range(rounds):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.8 * points + 0.2 * following, 0.2 * points + 0.8 * following], axis=1).reshape(-1, 2)
    return points


def _top(rng, sleeve, length, width=(0.40, 0.52), neck=(0.12, 0.24), depth=(0.06, 0.22), cuff=(0.13, 0.2), flare=0.06):
    """A garment for the upper body: body with sleeves, spread or hanging; returns Garment and where things are."""
    w, n, d = rng.uniform(*width), rng.uniform(*neck), rng.uniform(*depth)
    long, arm, end = rng.uniform(*length), rng.uniform(*sleeve), rng.uniform(*cuff)
    top = -long / 2
    angle = rng.uniform(0.35, 1.25)  # 0 = arms spread, 1.57 = hanging
    shoulder = np.array([w * rng.uniform(0.9, 1.05), top + rng.uniform(0.06, 0.14)])
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    tip = shoulder + arm * along
    inner = tip + end * across
    armpit = np.array([w * 0.97, shoulder[1] + rng.uniform(0.24, 0.34)])
    if inner[0] < armpit[0] + 0.02:
        inner[0] = armpit[0] + 0.02
    hem = w + rng.uniform(-0.04, flare)
    bottom = long / 2
    half = [
        (0, top + d),
        (n * 0.7, top + d * 0.75),
        (n, top),
        shoulder,
        tip,
        inner,
        armpit,
        (w * rng.uniform(0.9, 1), 0.1),
    ]
    half += [(hem, bottom), (0, bottom + rng.uniform(0, 0.04))]
    garment = Garment([rounded(mirrored(half))])
    if arm > 0.15:
        for side in (1, -1):
            garment.seams.append(np.array([shoulder, armpit]) * [side, 1])
            band = np.array([tip - 0.05 * along, inner - 0.05 * along])
            garment.seams.append(band * [side, 1])
    return garment, {"top": top, "bottom": bottom, "neck": n, "depth": d, "width": w}


def _t_shirt(rng):
    garment, at = _top(rng, sleeve=(0.2, 0.42), length=(1.15, 1.45), cuff=(0.2, 0.28))
    _neckband(garment, at)
    if rng.random() < 0.35:  # a print on the chest
        r, y = rng.uniform(0.1, 0.2), at["top"] + rng.uniform(0.4, 0.55)
        turns = np.linspace(0, 2 * np.pi, int(rng.integers(3, 9)), endpoint=False)
        garment.trims.append(np.stack([r * np.cos(turns), y + r * np.sin(turns)], 1))
    return garment


def _longsleeve(rng):
    garment, at = _top(rng, sleeve=(0.62, 0.98), length=(1.15, 1.45))
    _neckband(garment, at)
    if rng.random() < 0.3:
        garment.seams.append(np.array([[-at["width"], at["bottom"] - 0.1], [at["width"], at["bottom"] - 0.1]]))
    return garment


def _shirt(rng):
    sleeve = (0.62, 0.95) if rng.random() < 0.7 else (0.25, 0.42)
    garment, at = _top(rng, sleeve, length=(1.25, 1.5), depth=(0.04, 0.12))
    _collar(garment, at, rng.uniform(0.12, 0.2))
    if rng.random() < 0.9:
        _buttons(garment, at, int(rng.integers(4, 8)))
    if rng.random() < 0.5:
        x, y, s = at["width"] * 0.45, at["top"] + 0.45, 0.14
        garment.seams.append(
            np.array([[x - s / 2, y], [x + s / 2, y], [x + s / 2, y + s], [x - s / 2, y + s], [x - s / 2, y]])
        )
    return garment


def _outwear(rng):
    garment, at = _top(
        rng, sleeve=(0.65, 1.0), length=(1.3, 1.75), width=(0.46, 0.6), depth=(0.02, 0.1), cuff=(0.18, 0.27), flare=0.12
    )
    style = rng.random()
    if style < 0.4:  # lapels
        n, top, low = at["neck"], at["top"], at["top"] + rng.uniform(0.45, 0.7)
        for side in (1, -1):
            garment.trims.append(np.array([(n, top), (n + 0.12, top + 0.22), (0, low), (0, low - 0.1)]) * [side, 1])
    elif style < 0.75:  # hood
        n, top = at["neck"], at["top"]
        garment.trims.append(
            rounded(mirrored([(0, top - 0.2), (n + 0.1, top - 0.12), (n + 0.14, top + 0.1), (0, top + 0.2)]))
        )
    else:
        _collar(garment, at, 0.16)
    garment.seams.append(np.array([[0, at["top"] + 0.12], [0, at["bottom"]]]))
    if rng.random() < 0.5:
        _buttons(garment, at, int(rng.integers(3, 6)), x=0.06)
    for side in (1, -1):
        y = at["bottom"] - rng.uniform(0.3, 0.42)
        garment.seams.append(np.array([[0.18, y], [0.36, y + 0.1]]) * [side, 1])
    if rng.random() < 0.4:
        for y in np.arange(at["top"] + 0.4, at["bottom"] - 0.1, 0.22):  # quilting
            garment.seams.append(np.array([[-at["width"], y], [at["width"], y]]))
    return garment


def _dress(rng):
    arm = 0.0 if rng.random() < 0.5 else rng.uniform(0.15, 0.7)
    top, bottom = -0.9 * rng.uniform(0.85, 1), 0.9 * rng.uniform(0.75, 1)
    w, waist, hem = rng.uniform(0.26, 0.36), rng.uniform(0.2, 0.3), rng.uniform(0.34, 0.72)
    n, d, middle = rng.uniform(0.1, 0.2), rng.uniform(0.08, 0.25), top + rng.uniform(0.55, 0.75)
    half = [(0, top + d), (n, top), (n + 0.08, top)]
    if arm:
        half += [
            (w, top + 0.08),
            (w + arm * 0.75, top + 0.1 + arm * 0.6),
            (w + arm * 0.75 - 0.14, top + 0.18 + arm * 0.6),
        ]
    half += [(w, top + 0.36), (waist, middle), ((waist + hem) / 2 + rng.uniform(-0.02, 0.08), (middle + bottom) / 2)]
    half += [(hem, bottom), (0, bottom + rng.uniform(0, 0.06))]
    garment = Garment([rounded(mirrored(half))])
    if rng.random() < 0.7:
        garment.seams.append(np.array([[-waist, middle], [waist, middle]]))
    for x in np.linspace(-0.6, 0.6, int(rng.integers(0, 5))):
        garment.seams.append(np.array([[x * waist, middle + 0.1], [x * hem, bottom - 0.05]]))
    return garment


def _skirt(rng):
    top, bottom = -rng.uniform(0.45, 0.7), rng.uniform(0.4, 0.75)
    waist, hem = rng.uniform(0.28, 0.42), rng.uniform(0.4, 0.8)
    half = [
        (0, top),
        (waist, top),
        ((waist + hem) / 2 + rng.uniform(0, 0.1), (top + bottom) / 2),
        (hem, bottom),
        (0, bottom + 0.05),
    ]
    garment = Garment([rounded(mirrored(half))])
    garment.trims.append(mirrored([(0, top), (waist, top), (waist + 0.02, top + 0.09), (0, top + 0.09)]))
    for x in np.linspace(-0.75, 0.75, int(rng.integers(0, 9))):
        garment.seams.append(np.array([[x * waist, top + 0.1], [x * hem, bottom]]))
    return garment


def _legs(rng, length, width):
    top = -length / 2
    bottom, waist = length / 2, rng.uniform(0.28, 0.38)
    hip, crotch = waist + rng.uniform(0.02, 0.1), top + rng.uniform(0.36, 0.5)
    cuff = rng.uniform(*width)
    stance = rng.uniform(0.03, 0.2)
    half = [(0, top), (waist, top), (hip, crotch - 0.06), (stance + cuff, bottom), (stance, bottom), (0.01, crotch)]
    garment = Garment([rounded(mirrored(half), 1)])
    garment.trims.append(mirrored([(0, top), (waist, top), (waist + 0.01, top + 0.08), (0, top + 0.08)]))
    garment.seams.append(np.array([[0, top + 0.08], [0, crotch]]))
    for side in (1, -1):
        if rng.random() < 0.7:
            garment.seams.append(np.array([[waist * 0.55, top + 0.1], [waist * 0.98, top + 0.26]]) * [side, 1])
        if rng.random() < 0.5:
            garment.seams.append(np.array([[stance, bottom - 0.07], [stance + cuff, bottom - 0.07]]) * [side, 1])
    return garment


def _pants(rng):
    return _legs(rng, rng.uniform(1.35, 1.9), (0.15, 0.3))


def _shorts(rng):
    return _legs(rng, rng.uniform(0.75, 1.2), (0.25, 0.4))


def _hat(rng):
    w, h = rng.uniform(0.38, 0.5), rng.uniform(0.4, 0.7)
    style, base = rng.random(), 0.2
    turns = np.linspace(np.pi, 0, 12)
    crown = np.stack([w * np.cos(turns), base - h * np.abs(np.sin(turns)) ** rng.uniform(0.5, 1.2)], 1)
    dome = np.concatenate([crown, [(w, base), (-w, base)]])
    garment = Garment([dome])
    if style < 0.4:  # cap with a visor to one side
        side = rng.choice([-1, 1])
        reach = rng.uniform(0.3, 0.5)
        visor = [
            (w * 0.2, base - 0.06),
            (w, base - 0.08),
            (w + reach, base + 0.08),
            (w + reach * 0.8, base + 0.14),
            (w * 0.1, base + 0.08),
        ]
        garment.trims.append(rounded(np.array(visor) * [side, 1]))
        garment.seams += [np.array([[0, base - h], [x * w, base]]) for x in (-0.5, 0, 0.5)]
        garment.dots.append((0, base - h))
    elif style < 0.7:  # brim all round
        brim, thick = w + rng.uniform(0.2, 0.45), rng.uniform(0.08, 0.16)
        turns = np.linspace(0, 2 * np.pi, 30, endpoint=False)
        garment.bodies.insert(0, np.stack([brim * np.cos(turns), base + thick * np.sin(turns)], 1))
        garment.trims.append(np.array([(-w, base - 0.12), (w, base - 0.12), (w, base), (-w, base)]))
    else:  # knitted
        garment.trims.append(
            np.array(
                [(-w - 0.03, base - 0.16), (w + 0.03, base - 0.16), (w + 0.03, base + 0.06), (-w - 0.03, base + 0.06)]
            )
        )
        if rng.random() < 0.6:
            turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
            garment.trims.append(np.stack([0.12 * np.cos(turns), base - h - 0.06 + 0.12 * np.sin(turns)], 1))
    return garment


def _shoes(rng):
    garment = Garment([])
    length, height, heel = rng.uniform(0.75, 1.0), rng.uniform(0.24, 0.5), rng.uniform(0, 0.25)
    pair = rng.random() < 0.75
    for i in range(2 if pair else 1):
        at = np.array([0.06 * i - 0.03, (-0.26 + 0.5 * i) if pair else 0.0])
        upper = np.array(
            [
                (-0.5, -height),
                (-0.15, -height),
                (0.02, -height * 0.55),
                (0.35, -height * 0.35),
                (0.5, -0.06),
                (0.5, 0.03),
                (-0.5, 0.03),
            ]
        )
        garment.bodies.append(rounded(upper * [length, 0.9]) + at)
        sole = np.array(
            [
                (-0.51, 0.0),
                (0.52, 0.0),
                (0.5, 0.08),
                (0.0, 0.08 + heel * 0.2),
                (-0.2, 0.07),
                (-0.25, 0.07 + heel),
                (-0.5, 0.07 + heel),
            ]
        )
        garment.trims.append(sole * [length, 0.9] + at)
        for step in np.linspace(0, 1, int(rng.integers(0, 5))):
            x = length * (-0.12 + 0.3 * step)
            y = -height * 0.9 * (0.75 - 0.3 * step)
            garment.seams.append(np.array([[x - 0.05, y], [x + 0.06, y + 0.06]]) + at)
    if rng.random() < 0.5:
        garment = Garment(
            *[[shape * [-1, 1] for shape in shapes] for shapes in (garment.bodies, garment.trims, garment.seams)]
        )
    return garment


def _neckband(garment, at):
    n, d, top = at["neck"], at["depth"], at["top"]
    x = np.linspace(-1, 1, 9)
    garment.seams.append(np.stack([x * n, top + 0.05 + d * (1 - x**2)], 1))


def _collar(garment, at, size):
    n, top = at["neck"], at["top"]
    for side in (1, -1):
        garment.trims.append(
            np.array([(n, top - 0.04), (n + 0.05, top + size), (n * 0.35, top + size * 1.1), (0, top + at["depth"])])
            * [side, 1]
        )


def _buttons(garment, at, count, x=0.0):
    garment.seams.append(np.array([[x + 0.04, at["top"] + at["depth"]], [x + 0.04, at["bottom"]]]))
    garment.dots += [(x, y) for y in np.linspace(at["top"] + at["depth"] + 0.1, at["bottom"] - 0.1, count)]


_BUILDERS = {
    "dress": _dress, "hat": _hat, "longsleeve": _longsleeve, "outwear": _outwear, "pants": _pants, "shirt": _shirt,
    "shoes": _shoes, "shorts": _shorts, "skirt": _skirt, "t-shirt": _t_shirt,
}  # fmt: skip
CLASSES = tuple(sorted(_BUILDERS))
