"""The field of one tensor: what it sees along each axis of the image, through joins, mixing and reshapes.

Mostly one tensor axis holds one axis of the image. A reshape spreads an axis of the image over several axes of the
tensor, or puts several into one. The pixels that a feature reads are then the sum of one line for each tensor axis (a
branch), and where branches meet, their union.
"""

import itertools
import math
from typing import NamedTuple

from .lines import FAR, merged, plain, tidied, united

MOST_BRANCHES = 12


class Conflict(NamedTuple):
    """Two branches that meet in `layer` and do not move together along `axis`.

    `what` is "stride" or "center"; `values` are those of the branches, in pixels of the input.
    """

    layer: str
    axis: int
    what: str
    values: tuple

    def __str__(self):
        values = " against ".join(format(float(value), "g") for value in self.values)
        return f"the branches of layer {self.layer!r} disagree along axis {self.axis}: {self.what} {values} pixels"


class Axis(NamedTuple):
    """One axis of the image, as one tensor sees it.

    Attributes:
        branches: tuple of branches; a branch is a tuple of (tensor axis, Line): a feature reads the sum of its lines.
            The tensor axis is None where nothing indexes the line any more (then its feature 0 counts).
        whole: something has mixed all positions; the branches go on to describe the local path.
        dead: (tensor axis, layer) where a layer like Dense has put new units in place of the positions, else None.
        mixer: the layer that mixed all positions first.
    """

    branches: tuple
    whole: bool = False
    dead: tuple | None = None
    mixer: str = ""

    @property
    def positions(self):
        if len(self.branches) == len(self.branches[0]) == 1:  # nearly always
            position = self.branches[0][0][0]
            return set() if position is None else {position}
        return {position for branch in self.branches for position, _ in branch if position is not None}

    @property
    def lines(self):
        return [line for branch in self.branches for _, line in branch]

    @property
    def exact(self):
        return all(line.exact for line in self.lines)

    @property
    def size(self):
        sums = [1 + sum(line.size - 1 for _, line in branch) for branch in self.branches]
        return max(*sums, 0)

    def map(self, change):
        """Apply `change(tensor axis, Line) -> (tensor axis, Line)`."""
        return self._replace(branches=tuple([tuple([change(*part) for part in branch]) for branch in self.branches]))

    def mixed(self, gone, shape, path, keep, stays):
        """All positions of the tensor axes `gone` mixed; `keep`: they stay (attention); `stays`: units replace them."""
        branches, whole, dead, mixer, hulls = [], self.whole, self.dead, self.mixer, False
        for branch in self.branches:
            inside = [part for part in branch if part[0] in gone]
            rest = [part for part in branch if part[0] not in gone]
            if not inside:
                branches.append(branch)
            elif any(at is not None for at, _ in rest) or (rest and all(not line.moves for _, line in inside)):
                # a window or a channel: its hull, exactly
                for position, line in inside:
                    low, high = line.hull(shape[position])
                    at, own = rest[0]
                    known, exact = own.known and line.known, own.exact and line.exact
                    rest[0] = at, own.plus(low, high)._replace(known=known, exact=exact)
                branches.append(tuple(rest))
                hulls = True
            else:
                many = any(shape[position] != 1 for position, _ in inside)
                whole, mixer = whole or many, mixer or path
                if stays and many:
                    dead = (inside[0][0], path)
                branches.append(branch if keep and many else tuple([(None, line) for _, line in branch]))
        live = [branch for branch in branches if any(position is not None for position, _ in branch)]
        branches = live if live and whole else branches
        return Axis(_union(branches) if hulls else tuple(dict.fromkeys(branches)), whole, dead, mixer)


class Field(NamedTuple):
    """What one tensor sees of the input: an Axis for y, x (or t; or z, y, x), and the conflicts on the way to it.

    `lost` says, where it is not None, why nothing more can be said of the tensor.
    """

    axes: tuple
    conflicts: tuple = ()
    lost: str | None = None

    @property
    def whole_image(self):
        return self.lost is not None or any(axis.whole for axis in self.axes)

    @property
    def positions(self):
        return set().union(*[axis.positions for axis in self.axes])

    def moves_along(self, position):
        """Whether the place in the image changes along a tensor axis, and not just what is seen there."""
        return any(
            at == position and (len(branch) == 1 or line.moves)
            for axis in self.axes
            for branch in axis.branches
            for at, line in branch
        )

    def map(self, change):
        """Apply `change(tensor axis, Line) -> (tensor axis, Line)`."""
        return self._replace(axes=tuple([axis.map(change) for axis in self.axes]))

    def step(self, steps, lengths):
        """Apply `steps` {tensor axis: Step}; `lengths` {tensor axis: output length}."""
        lost = self.lost
        for axis in self.axes:
            if axis.dead is not None and axis.dead[0] in steps and not steps[axis.dead[0]].idle:
                lost = lost or f"layer {axis.dead[1]!r} mixes all positions of an axis along which later layers work"
        return self.map(
            lambda at, line: (at, line.through(steps[at], lengths.get(at)) if at in steps else line)
        )._replace(lost=lost)

    def take(self, position, indices):
        """Pick features along one tensor axis by their indices."""
        return self.map(lambda at, line: (at, line.taken(indices) if at == position else line))

    def mix(self, positions, shape, path="", keep=False, stays=False):
        """Mix everything along these tensor axes of a tensor of this shape."""
        if not any(part[0] in positions for axis in self.axes for branch in axis.branches for part in branch):
            return self
        return self._replace(
            axes=tuple([
                axis.mixed(positions, shape, path, keep, stays) if axis.positions & positions else axis
                for axis in self.axes
            ])
        )  # fmt: skip

    def move(self, new_position):
        """Rename tensor axes by `new_position(old) -> new` (None: the axis is gone, its feature 0 stays)."""
        return self.renamed(lambda at: at if at < 0 else new_position(at))  # below 0: it stepped aside

    def renamed(self, name):
        """As `move`, of the tensor axes that stepped aside too."""
        axes = []
        for axis in self.axes:
            place = None if axis.dead is None else name(axis.dead[0])
            dead = None if place is None else (place, axis.dead[1])
            axes.append(axis.map(lambda at, line: (None if at is None else name(at), line))._replace(dead=dead))
        return self._replace(axes=tuple(axes))

    def stretch(self, shape, out_shape):
        """Where a tensor axis of length 1 meets a longer one, its one feature is the same for all."""

        def change(position, line):
            short = position is not None and shape[position] == 1 and out_shape[position] not in (1, None)
            return position, line.taken([0]) if short else line

        return self.map(change)


def join(fields, layer):
    """The union of fields that meet element by element in `layer`; a Conflict where they differ in stride or centre."""
    first = fields[0]
    if all(field is first or field == first for field in fields):
        return first
    conflicts = list(dict.fromkeys(conflict for field in fields for conflict in field.conflicts))
    axes = []
    for number, group in enumerate(zip(*(field.axes for field in fields), strict=True)):
        if all(axis == group[0] for axis in group):
            axes.append(group[0])
            continue
        whole = any(axis.whole for axis in group)
        mixer = next((axis.mixer for axis in group if axis.mixer), "")
        live = [axis for axis in group if axis.positions]
        if not live:
            live, dead = group, group[0].dead
        else:  # an axis that is mixed already is seen whole anyway, and the flag says so
            dead = None
            live = [
                axis if axis.positions else axis.map(lambda at, line: (at, line.taken([0])))
                for axis in group
                if axis.positions or not axis.whole
            ]
        conflict = _disagreement(live, number, layer)
        if conflict is not None:
            conflicts.append(conflict)
        axes.append(Axis(_union([branch for axis in live for branch in axis.branches]), whole, dead, mixer))
    lost = next((field.lost for field in fields if field.lost), None)
    return Field(tuple(axes), tuple(conflicts), lost)


def _union(branches):
    """Branches that cover all of these, the widest first; those that move together become one."""
    kept = []
    for branch in dict.fromkeys(branches):
        for at, other in enumerate(kept):
            both = _together(branch, other, len(kept) >= MOST_BRANCHES)
            if both is not None:
                kept[at] = both
                break
        else:
            kept.append(branch)
    return tuple(sorted(kept, key=lambda branch: sum(line.size - 1 for _, line in branch), reverse=True))


def _together(branch, other, roughly):
    """One branch for two that stand on the same tensor axes and move with the same strides, else None."""
    if [part[0] for part in branch] != [part[0] for part in other]:
        return None
    if len(branch) > 1 and sum(a != b for a, b in zip(branch, other, strict=True)) > 1:
        branch, other = _shifted(branch, other)
        if not roughly and sum(a != b for a, b in zip(branch, other, strict=True)) > 1:
            return None
    lines = [(one[1], two[1]) for one, two in zip(branch, other, strict=True)]
    if any(one.stride != two.stride and not (one.finite or two.finite) for one, two in lines):
        return None
    joined = [united(one, two) for one, two in lines]
    if roughly and len(branch) > 1:
        joined = [line._replace(exact=False) for line in joined]
    return tuple(zip((part[0] for part in branch), joined, strict=True))


def _shifted(branch, other):
    """The same two branches, their constants moved to the one finite line that both have: a channel's, say."""
    at = [line.finite for _, line in branch].index(True) if any(line.finite for _, line in branch) else None
    lines = [one[at][1] for one in (branch, other)] if at is not None else ()
    rests = [tuple(part for number, part in enumerate(one) if number != at) for one in (branch, other)]
    if not lines or not lines[1].finite or len(lines[0].lows) != len(lines[1].lows):
        return branch, other
    if not all(one.known and one.rhythm == two.rhythm for (_, one), (_, two) in zip(*rests, strict=True)):
        return branch, other
    rest, shifts = _rebased(rests)
    moved = [(branch[at][0], line.plus(*by)) for line, by in zip(lines, shifts, strict=True)]
    return [(*rest[:at], one, *rest[at:]) for one in moved]


def _disagreement(group, axis, layer):
    lines = [_main(axis.branches[0]) for axis in group]
    strides = list(dict.fromkeys(plain(line.stride) for line in lines))
    if len(strides) > 1:
        return Conflict(layer, axis, "stride", tuple(strides))
    centers = list(dict.fromkeys(line.center for line in lines if line.center is not None))
    return Conflict(layer, axis, "center", tuple(centers)) if len(centers) > 1 else None


def _main(branch):
    """The line that a branch moves along; what only tells channels apart is a part of its width."""
    (_, line), *rest = sorted(branch, key=lambda part: part[1].finite)
    for _, other in rest:
        if other.finite:
            line = line.plus(min(other.lows), max(other.highs))
    return line


def sequence(joined, pieces, lengths, position, apart):
    """The Axis of tensors set one after another along a tensor axis: feature by feature where that is possible.

    `pieces` are their axes, None for one that sees nothing of the image; `joined` is the union, the answer where they
    cannot be told apart. If `position` holds no axis of the image (`apart`), a feature is all that lies along it.
    """
    live = [axis for axis in pieces if axis is not None]
    bound = joined.map(lambda at, line: (at, line._replace(exact=line.exact and not apart)))
    if any(axis.whole for axis in live) or not all(line.known for axis in live for line in axis.lines):
        return bound
    groups, firsts, rests = {}, [sum(lengths[:at]) for at in range(len(lengths))], set()
    for number, axis in enumerate(pieces):
        for branch in axis.branches if axis is not None else ():
            rest = tuple(part for part in branch if part[0] not in (position, None))
            bounds = _bounds([part for part in branch if part[0] in (position, None)], lengths[number])
            key = tuple((at, line.rhythm) for at, line in rest)
            while number in groups.setdefault(key, {}):  # two branches of one tensor
                key = (*key, None)
            groups[key][number] = rest, bounds
            rests.add(rest)
    exact = all(line.exact for axis in live for line in axis.lines)
    branches = [_along(group, lengths, firsts, position, exact) for group in groups.values()]
    if len(rests) == 1 and all(line is None for _, line in branches):
        return joined  # channels that see the same
    if len(rests) > 1 and () in rests:
        return bound
    branches = [rest if line is None else (*rest, (position, line)) for rest, line in branches]
    found = joined._replace(branches=_union(branches))
    if apart or len(rests) == 1 or found.mixed({position}, {position: sum(lengths)}, "", False, False) == joined:
        return found
    return bound


def _bounds(parts, length):
    """(lows, highs) of the features along one tensor axis, of which these parts are the sum."""
    found = [[line.at(0 if at is None else u) for at, line in parts] for u in range(length)]
    return tuple(sum(low for low, _ in one) for one in found), tuple(sum(high for _, high in one) for one in found)


def _along(group, lengths, firsts, position, exact):
    """(parts, Line along `position` or None) of branches {number of tensor: (parts, bounds)} of one rhythm."""
    rest, shifts = _rebased([one for one, _ in group.values()])
    lows, highs = [], []
    moves = dict(zip(group, shifts, strict=True))
    for number, length in enumerate(lengths):
        if number in group:
            (low, high), (_, (own_lows, own_highs)) = moves[number], group[number]
            lows += [one + low for one in own_lows]
            highs += [one + high for one in own_highs]
        else:
            lows += (FAR,) * length
            highs += (-FAR,) * length
    if rest and lows.count(lows[0]) == len(lows) and highs.count(highs[0]) == len(highs):
        (at, line), *others = rest
        return ((at, line.plus(lows[0], highs[0])), *others), None
    return rest, tidied(list(zip(lows, highs, strict=True)), exact)


def _rebased(rests):
    """One tuple of parts for several of one rhythm, and the (low, high) by which each of them reaches beyond it."""
    base, shifts = [], [(0, 0)] * len(rests)
    for parts in zip(*rests, strict=True):
        lines = [line for _, line in parts]
        narrow = min(lines, key=lambda line: line.highs[0] - line.lows[0])
        base.append((parts[0][0], narrow))
        shifts = [
            (low + line.lows[0] - narrow.lows[0], high + line.highs[0] - narrow.highs[0])
            for (low, high), line in zip(shifts, lines, strict=True)
        ]
    return tuple(base), shifts


# Reshapes ------------------------------------------------------------------------------------------------------------


def reshape(field, shape, out_shape):
    """The field of a tensor whose elements are regrouped from `shape` to `out_shape`; None where sizes are unknown."""
    groups = _groups(shape, out_shape)
    if groups is None:
        return None
    axes = []
    for axis in field.axes:
        branches = tuple([_regrouped(branch, groups, shape, out_shape) for branch in axis.branches])
        dead = axis.dead
        if dead is not None:
            targets = next((targets for sources, targets in groups if dead[0] in sources), ())
            dead = (targets[0], dead[1]) if targets else None
        axes.append(axis._replace(branches=branches, dead=dead))
    return field._replace(axes=tuple(axes))


def _groups(shape, out_shape):
    """Pairs (input axes, output axes) that hold the same elements in the same order; None where sizes are unknown."""
    groups, i, o = [], 0, 0
    while i < len(shape) or o < len(out_shape):
        if i < len(shape) and o < len(out_shape) and shape[i] == out_shape[o]:  # also None and None
            groups.append(((i,), (o,)))
            i, o = i + 1, o + 1
            continue
        sources, targets = [], []
        size = out_size = 1
        while True:
            if size <= out_size and i < len(shape):
                sources.append(i)
                size, i = size * (shape[i] or 0), i + 1
            elif o < len(out_shape):
                targets.append(o)
                out_size, o = out_size * (out_shape[o] or 0), o + 1
            else:
                return None
            if not size or not out_size:
                return None
            if size == out_size and ((sources and targets) or size == 1):
                break
        groups.append((tuple(sources), tuple(targets)))
    return groups


def _regrouped(branch, groups, shape, out_shape):
    parts = [part for part in branch if part[0] is None or part[0] < 0]  # nothing indexes it, or it stepped aside
    lines = dict(part for part in branch if part[0] is not None and part[0] >= 0)
    for sources, targets in groups:
        if not any(source in lines for source in sources):
            continue
        if len(sources) == len(targets) == 1:
            parts.append((targets[0], lines[sources[0]]))
            continue
        for source in sources:
            if shape[source] == 1 and source in lines:  # nothing indexes it any more
                parts.append((None, lines.pop(source)))
        atoms = _atoms([shape[source] for source in sources], [out_shape[target] for target in targets])
        if atoms is None:
            parts += _bounded(lines, sources, targets, shape, out_shape)
            continue
        digits = []
        for source, sizes in zip(sources, atoms[0], strict=True):
            line, inner = lines.get(source), []
            for size in reversed(sizes[1:]):
                line, last = (None, None) if line is None else line.split(size)
                inner.append((size, last))
            digits += [(sizes[0], line), *reversed(inner)] if sizes else []
        for target, sizes in zip(targets, atoms[1], strict=True):
            line, digits, mine = None, digits[len(sizes) :], digits[: len(sizes)]
            for number, (size, inner) in enumerate(mine):
                line = merged(line, inner, size) if number else inner
            if line is not None:
                parts.append((target, line))
    return tuple(parts)


def _atoms(sizes, out_sizes):
    """Each size as a product of factors, outermost first, so that both sides have the same factors; else None."""

    def ends(side):
        products = [1]
        for size in reversed(side):
            products.append(products[-1] * size)
        return products

    cuts = sorted({*ends(sizes), *ends(out_sizes)})
    if any(big % small for small, big in itertools.pairwise(cuts)):
        return None

    def factors(side):
        edges = ends(side)
        answer = []
        for low, high in itertools.pairwise(edges):
            inside = [cut for cut in cuts if low <= cut <= high]
            answer.append([big // small for small, big in itertools.pairwise(inside)][::-1])
        return answer[::-1]

    return factors(sizes), factors(out_sizes)


def _bounded(lines, sources, targets, shape, out_shape):
    """A bound for a regrouping that cuts across rows: of each output axis, the hull; the narrowest of them is kept."""
    import numpy as np  # only here

    size = math.prod(shape[source] for source in sources)
    low, high = np.zeros(size, "int64"), np.zeros(size, "int64")
    inner = size
    known = True
    for source in sources:
        inner //= shape[source]
        if source in lines:
            bounds = np.array([lines[source].at(u) for u in range(shape[source])])
            index = np.arange(size) // inner % shape[source]
            low, high = low + bounds[index, 0], high + bounds[index, 1]
            known = known and lines[source].known
    low, high = (side.reshape([out_shape[target] for target in targets]) for side in (low, high))
    found = []
    for number, target in enumerate(targets):
        others = tuple(at for at in range(len(targets)) if at != number)
        bounds = zip(low.min(axis=others).tolist(), high.max(axis=others).tolist(), strict=True)
        found.append((target, tidied(list(bounds), False, known)))
    return [min(found, key=lambda part: part[1].size)]
