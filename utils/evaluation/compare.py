"""Two models on the same photos: which is right where the other is wrong."""

import dataclasses
import html

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from utils.evaluation.intervals import LEVEL, sender_interval


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models judged on the same n photos; made by :func:`compare`, prints itself.

    Attributes:
        name_a, name_b: of the models; n: photos.
        both_right, only_a, only_b, both_wrong: photos; their sum is n.
        difference: accuracy of b minus accuracy of a, -1..1.
        difference_low, difference_high: its 95% interval over photos (Agresti and Min 2005).
        sender_low, sender_high: its 95% interval over photographers; None with fewer than two.
        p_value: of McNemar's exact test that both err equally often.
        agreement: share of the photos on which both name the same class.
        largest_change: largest absolute difference of one probability.
    """

    name_a: str
    name_b: str
    n: int
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    difference: float
    difference_low: float
    difference_high: float
    sender_low: float | None
    sender_high: float | None
    p_value: float
    agreement: float
    largest_change: float

    def to_dict(self):
        """Plain numbers and strings, fit for results JSON."""
        return dataclasses.asdict(self)

    def __repr__(self):
        over = ""
        if self.sender_low is not None:
            over = f"; over photographers {100 * self.sender_low:+.1f} to {100 * self.sender_high:+.1f} points"
        return (
            f"{self.name_b} against {self.name_a} on the same {self.n:,} photos: {100 * self.difference:+.1f} points "
            f"({100 * self.difference_low:+.1f} to {100 * self.difference_high:+.1f}), only {self.name_b} right "
            f"{self.only_b}, only {self.name_a} right {self.only_a}, McNemar exact p = {self.p_value:.2g}, "
            f"agreement {self.agreement:.1%}{over}"
        )

    def _repr_html_(self):
        return f"<p>{html.escape(repr(self))}</p>"


def compare(a, b):
    """McNemar's exact test of two evaluations on the same photos.

    Args:
        a, b: Evaluation of the same photos and classes; photos in another order are matched by id.

    Returns:
        Paired; a positive difference means that b is better.

    Raises:
        ValueError: the two were judged on other classes, photos or labels.

    Example:
        >>> import pandas as pd
        >>> from utils import evaluation
        >>> photos = pd.DataFrame({"label": ["hat", "hat", "shirt"], "id": ["1", "2", "3"]})
        >>> a = evaluation.evaluate([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], photos, ["hat", "shirt"], name="a")
        >>> b = evaluation.evaluate([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]], photos, ["hat", "shirt"], name="b")
        >>> paired = compare(a, b)
        >>> paired.only_a, paired.only_b, paired.p_value
        (0, 2, 0.5)

    Source: McNemar 1947 with the exact binomial of statsmodels; Agresti and Min 2005, doi:10.1002/sim.1781, for the
    interval of the difference (half a photo added to each cell).
    """
    name_a, name_b = a.name or "a", b.name or "b"
    if tuple(a.classes) != tuple(b.classes):
        raise ValueError(f"{name_a} and {name_b} have different classes; compare models of the same dataset")
    order = _match(a, b, name_a, name_b)
    labels, predicted, probabilities = b.labels[order], b.predicted[order], b.probabilities[order]
    if not np.array_equal(a.labels, labels):
        raise ValueError(f"{name_a} and {name_b} were judged on other photos or labels; evaluate both on one frame")
    right_a, right_b = a.correct, labels == predicted
    cells = [[int((x & y).sum()) for y in (right_b, ~right_b)] for x in (right_a, ~right_a)]
    low, high = _difference_interval(cells[0][1], cells[1][0], a.n)
    several = a.senders is not None and len(set(a.senders)) > 1
    sender_low, sender_high = sender_interval(right_b.astype(float) - right_a, a.senders) if several else (None, None)
    return Paired(
        name_a=name_a, name_b=name_b, n=a.n,
        both_right=cells[0][0], only_a=cells[0][1], only_b=cells[1][0], both_wrong=cells[1][1],
        difference=float((cells[1][0] - cells[0][1]) / a.n), difference_low=low, difference_high=high,
        sender_low=sender_low, sender_high=sender_high, p_value=float(mcnemar(cells, exact=True).pvalue),
        agreement=float((a.predicted == predicted).mean()),
        largest_change=float(np.abs(a.probabilities - probabilities).max()),
    )  # fmt: skip


def _match(a, b, name_a, name_b):
    """Row numbers of b in the order of a."""
    if a.n != b.n:
        raise ValueError(f"{name_a} was judged on {a.n} photos and {name_b} on {b.n}; evaluate both on one frame")
    if a.ids is None or b.ids is None or np.array_equal(a.ids, b.ids):
        return np.arange(a.n)
    places = {photo: place for place, photo in enumerate(b.ids)}
    if len(places) < b.n or set(places) != set(a.ids):
        raise ValueError(f"{name_a} and {name_b} were judged on different photos; evaluate both on one frame")
    return np.array([places[photo] for photo in a.ids])


def _difference_interval(only_a, only_b, n):
    only_a, only_b, n = only_a + 0.5, only_b + 0.5, n + 2
    difference = (only_b - only_a) / n
    spread = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(only_a + only_b - (only_b - only_a) ** 2 / n) / n
    return float(max(-1.0, difference - spread)), float(min(1.0, difference + spread))
