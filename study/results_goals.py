"""README's table of what this project set itself before its first training, and how near it came."""

import dataclasses
import math
from collections.abc import Callable

from study.results_answers import row_of
from study.results_cells import TRAINING, Notes, accuracy_cell, markdown, not_yet, number_of
from study.results_tables import table


@dataclasses.dataclass(frozen=True)
class Target:
    """One number that was set beforehand.

    Attributes:
        what: the number in words, as a table cell.
        floor: least value that was asked for; a share of photos, or points above another model (then in points).
        goal: value hoped for beyond the floor, or None.
        judged: function of the records -> dict as rows hold it (accuracy, its interval, n), or a number of points,
            or None where it was not measured.
    """

    what: str
    floor: float
    goal: float | None
    judged: Callable


def _grouped(records):
    row = row_of(records, "b-lite0-fine") or {}
    return row.get("grouped")


def _above_frozen(field):
    """Points by which the fine-tuned 17-class model is above the frozen one of the same backbone, same photos."""

    def points(records):
        fine, frozen = (row_of(records, name) for name in ("a-lite0-fine", "a-lite0-frozen"))
        if fine is None or frozen is None:
            return None
        values = number_of(fine, field), number_of(frozen, field)
        return None if None in values else 100 * (values[0] - values[1])

    return points


_SEVENTEEN = "17 classes, people never seen: {} above the frozen model"
TARGETS = (
    Target("MobileNetV2, frozen, official test", 0.8548, None, lambda records: row_of(records, "b-mobilenet-frozen")),
    Target("ten classes, fine-tuned, official test", 0.93, 0.95, lambda records: row_of(records, "b-lite0-fine")),
    Target("ten classes, fine-tuned, people never seen", 0.89, 0.91, _grouped),
    Target(_SEVENTEEN.format("accuracy"), 4, None, _above_frozen("accuracy")),
    Target(_SEVENTEEN.format("macro recall"), 8, None, _above_frozen("macro_recall")),
)


def verdict(value, floor, goal, n=None):
    """Floor or goal reached, or by how much it was missed.

    Args:
        value, floor, goal: in one unit, shares of photos or points; goal may be None.
        n: number of photos behind a share; None for points.

    Returns:
        words.

    Example:
        >>> verdict(0.933, 0.93, 0.95, n=372)
        'floor reached; 1.7 points (7 photos) short of the goal'
    """

    def short(aim):
        if n is None:
            return f"{aim - value:.1f} points short"
        # A share that was stored as a float may lie a hair below the photos that it stands for.
        missing = math.ceil(round(aim * n, 6)) - round(value * n)
        return f"{100 * (aim - value):.1f} points ({missing} {'photo' if missing == 1 else 'photos'}) short"

    if value < floor:
        return f"{short(floor)} of the floor"
    if goal is None:
        return "floor reached"
    return "goal reached" if value >= goal else f"floor reached; {short(goal)} of the goal"


@table("goals")
def goals(records):
    """Each target: the floor, the goal, what was measured, and how near it is."""
    if missing := not_yet(records, TRAINING):
        return missing
    lines, notes = [], Notes(records)
    for target in TARGETS:
        judged, reason = target.judged(records), "the model was not trained"
        points = target.floor > 1

        def shown(value, points=points):
            if value is None:
                return "–"
            return f"+{value:g} points" if points else f"{100 * value:.4g} %"

        if points:
            cell = notes.reason(reason) if judged is None else f"{judged:+.1f} points"
            said = None if judged is None else verdict(judged, target.floor, target.goal)
        else:
            cell = accuracy_cell(judged or {}, notes, reason)
            value, n = number_of(judged or {}, "accuracy"), number_of(judged or {}, "n")
            said = None if value is None else verdict(value, target.floor, target.goal, n)
        lines.append([target.what, shown(target.floor), shown(target.goal), cell, said])
    header = ["what was asked", "at least", "goal", "measured (95 %), n", "verdict"]
    return markdown(header, lines) + notes.text()
