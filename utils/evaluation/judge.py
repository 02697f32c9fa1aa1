"""How good a classifier is, on whose photos, and where it errs.

`evaluate` judges predictions on the photos of one part; `compare` sets two models against each other on the same
photos; `grouped_cv` judges a way of training on people whom the model has never seen. `confusions` and
`worst_mistakes` say where the errors are. Everything is computed here once; `plots` only draws it and `results` only
stores it.
"""

import dataclasses

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from utils.evaluation.compare import Paired, compare
from utils.evaluation.grouped_cv import GroupedCV, grouped_cv
from utils.evaluation.intervals import sender_interval, sender_name, wilson
from utils.evaluation.mistakes import confusions, worst_mistakes
from utils.evaluation.predictions import check_labels, check_probabilities, photo_ids

__all__ = [
    "Evaluation", "GroupedCV", "Paired", "check_labels", "check_probabilities", "compare", "confusions", "evaluate",
    "grouped_cv", "reliability", "sender_interval", "wilson", "worst_mistakes",
]  # fmt: skip

# Keras clips probabilities here before taking the logarithm; the same clip keeps its losses and ours comparable.
EPSILON = 1e-7


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model did on n photos; made by :func:`evaluate`, prints itself.

    Attributes:
        name: of the model, or None.
        classes: tuple of class names, the order of every array here.
        n: number of photos.
        accuracy, accuracy_low, accuracy_high: 0..1, with the Wilson 95 % interval over photos.
        n_senders: number of people who took them (None where the frame has no `sender`).
        sender_low, sender_high: 95 % interval over senders (bootstrap); None with fewer than two senders.
        cross_entropy: mean negative log-probability of the true class, nats.
        macro_precision, macro_recall, macro_f1: unweighted means over the classes that have photos here.
        per_class: DataFrame by class: precision, recall, f1, support (photos), predicted (photos called that).
            A class without photos has NaN in the first three; one that is never predicted has precision 0.
        absent: tuple of the classes without a photo in this part.
        confusion: (C, C) int counts, rows true, columns predicted.
        ece: expected calibration error, 0..1.
        reliability: DataFrame, the bins behind `ece` (see :func:`reliability`).
        per_sender: DataFrame, largest first: sender, n, correct, accuracy, accuracy_low, accuracy_high (Wilson).
        probabilities: (n, C) float64; labels, predicted: (n,) int class numbers; ids, senders: (n,) str or None.
    """

    name: str | None
    classes: tuple
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n_senders: int | None
    sender_low: float | None
    sender_high: float | None
    cross_entropy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    per_class: pd.DataFrame
    absent: tuple
    confusion: np.ndarray
    ece: float
    reliability: pd.DataFrame
    per_sender: pd.DataFrame
    probabilities: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    ids: np.ndarray | None
    senders: np.ndarray | None

    @property
    def correct(self):
        """(n,) booleans: which photos were classified rightly."""
        return self.labels == self.predicted

    @property
    def confidence(self):
        """(n,) largest probability of each photo."""
        return self.probabilities.max(axis=1)

    @property
    def confusion_normalised(self):
        """(C, C) shares of each true class, so that rows sum to 1; the row of a class without photos is NaN."""
        totals = self.confusion.sum(axis=1, keepdims=True).astype(float)
        return np.divide(self.confusion, totals, out=np.full(self.confusion.shape, np.nan), where=totals > 0)

    def to_frame(self):
        """One row with the headline numbers, units in the column names (percent for accuracies)."""
        row = {
            "model": self.name or "model",
            "photos": self.n,
            "accuracy_%": 100 * self.accuracy,
            "low_%": 100 * self.accuracy_low,
            "high_%": 100 * self.accuracy_high,
            "cross_entropy_nats": self.cross_entropy,
            "macro_f1_%": 100 * self.macro_f1,
            "macro_recall_%": 100 * self.macro_recall,
            "ece_%": 100 * self.ece,
        }
        return pd.DataFrame([row]).set_index("model")

    def to_dict(self):
        """Everything but the photos' own rows, as plain data fit for results JSON (NaN becomes None)."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "absent": list(self.absent),
            **{
                field: _plain(getattr(self, field))
                for field in (
                    "n", "accuracy", "accuracy_low", "accuracy_high", "n_senders", "sender_low", "sender_high",
                    "cross_entropy", "macro_precision", "macro_recall", "macro_f1", "ece",
                )
            },
            "per_class": _records(self.per_class.rename_axis("class").reset_index()),
            "confusion": self.confusion.tolist(),
            "reliability": _records(self.reliability),
            "per_sender": _records(self.per_sender),
        }  # fmt: skip

    def __repr__(self):
        lines = [self._title()]
        lines += [f"  {label:<26}{value}" for label, value in self._facts()]
        return "\n".join(lines) + "\n" + self.per_class.round(3).to_string()

    def _repr_html_(self):
        rows = "".join(f"<tr><td>{label}</td><td>{value}</td></tr>" for label, value in self._facts())
        return f"<p><b>{_escape(self._title())}</b></p><table>{rows}</table>{self.per_class.round(3).to_html()}"

    def _title(self):
        people = (
            "" if self.n_senders is None else f" by {self.n_senders} {'person' if self.n_senders == 1 else 'people'}"
        )
        return f"{self.name or 'model'}: {self.n} photos{people}, {len(self.classes)} classes"

    def _facts(self):
        yield "accuracy", _share(self.accuracy, self.accuracy_low, self.accuracy_high) + " over photos"
        if self.sender_low is not None:
            yield "", f"{100 * self.sender_low:.1f}–{100 * self.sender_high:.1f} over senders"
        yield "cross-entropy", f"{self.cross_entropy:.3f} nats"
        yield "macro F1, macro recall", f"{100 * self.macro_f1:.1f} %, {100 * self.macro_recall:.1f} %"
        yield "calibration error (ECE)", f"{100 * self.ece:.1f} %"
        if self.absent:
            yield "no photo here of", ", ".join(map(str, self.absent))


def evaluate(predict, frame, classes, name=None, bins=15):
    """Judge predictions against the labels of the photos in `frame`.

    Args:
        predict: callable frame -> probabilities, or the probabilities themselves: (n, C), rows sum to 1.
        frame: DataFrame, one row a photo: `label`; `sender` and `id` (or `path`) are used where they are there.
        classes: the C class names in the order of the probabilities' columns.
        name: of the model, for tables.
        bins: of the calibration error.

    Returns:
        Evaluation.

    Raises:
        ValueError: no photos, a label outside `classes`, probabilities of another shape, NaN, negative, or rows that
            do not sum to 1 (logits, most often).
        TypeError: `predict` is neither a function of a frame nor an array.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "shirt", "hat"], "sender": ["1", "1", "2"]})
        >>> judged = evaluate([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], photos, ["hat", "shirt"])
        >>> judged.n, round(judged.accuracy, 3), judged.confusion.tolist()
        (3, 0.667, [[1, 1], [0, 1]])

    Source: sklearn for precision, recall and F1; statsmodels for Wilson's interval; Guo et al. 2017, arXiv:1706.04599,
    for the calibration error.
    """
    classes = tuple(classes)
    labels = check_labels(frame, classes)
    where = f" by {name}" if name else ""
    probabilities = check_probabilities(predict(frame) if callable(predict) else predict, len(frame), classes, where)
    predicted = probabilities.argmax(axis=1)
    correct = labels == predicted

    numbers = np.arange(len(classes))
    confusion = confusion_matrix(labels, predicted, labels=numbers)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0.0
    )
    present = support > 0
    per_class = pd.DataFrame(
        {"precision": precision, "recall": recall, "f1": f1}, index=pd.Index(classes, name="class", dtype=object)
    )
    # A class that nobody photographed here has no recall; zeros would pull the macro averages down for no fault.
    per_class[~present] = np.nan
    per_class["support"], per_class["predicted"] = support, confusion.sum(axis=0)
    macro = per_class.loc[present, ["precision", "recall", "f1"]].mean()

    bins_table = reliability(probabilities, labels, bins)
    senders = np.array([sender_name(s) for s in frame["sender"]], dtype=object) if "sender" in frame else None
    per_sender = _per_sender(correct, senders)
    several = senders is not None and len(per_sender) > 1
    sender_low, sender_high = sender_interval(correct, senders) if several else (None, None)
    low, high = wilson(correct.sum(), len(frame))
    return Evaluation(
        name=name,
        classes=classes,
        n=len(frame),
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        n_senders=None if senders is None else len(per_sender),
        sender_low=sender_low,
        sender_high=sender_high,
        cross_entropy=float(-np.log(probabilities[np.arange(len(labels)), labels].clip(EPSILON, 1.0)).mean()),
        macro_precision=float(macro["precision"]),
        macro_recall=float(macro["recall"]),
        macro_f1=float(macro["f1"]),
        per_class=per_class,
        absent=tuple(np.array(classes, dtype=object)[~present]),
        confusion=confusion,
        ece=float((bins_table["n"] * (bins_table["accuracy"] - bins_table["confidence"]).abs()).sum() / len(frame)),
        reliability=bins_table,
        per_sender=per_sender,
        probabilities=probabilities,
        labels=labels,
        predicted=predicted,
        ids=photo_ids(frame),
        senders=senders,
    )


def reliability(probabilities, labels, bins=15):
    """Confidence against accuracy, in bins of equal width: the data of a reliability diagram.

    ECE = sum over bins of n_bin / n * |accuracy_bin - confidence_bin|.

    Args:
        probabilities: (n, C).
        labels: (n,) class numbers.
        bins: how many, at least 1.

    Returns:
        DataFrame, one row for each bin that holds photos: low, high (bounds), n, confidence (mean), accuracy,
        accuracy_low, accuracy_high (Wilson 95 %).

    Raises:
        ValueError: `bins` is below 1.

    Example:
        >>> table = reliability(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]), bins=10)
        >>> table[["n", "accuracy"]].values.tolist()
        [[2.0, 0.5]]

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; a reliability diagram needs at least one")
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # bins (low, high], as in Guo
    rows = []
    for index in np.unique(number):
        inside = number == index
        low, high = wilson(right[inside].sum(), inside.sum())
        rows.append(
            {
                "low": edges[index],
                "high": edges[index + 1],
                "n": int(inside.sum()),
                "confidence": confidence[inside].mean(),
                "accuracy": right[inside].mean(),
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return pd.DataFrame(rows)


def _per_sender(correct, senders):
    columns = ["sender", "n", "correct", "accuracy", "accuracy_low", "accuracy_high"]
    if senders is None:
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame({"sender": senders, "right": correct}).groupby("sender")["right"].agg(["size", "sum"])
    table = table.reset_index().set_axis(["sender", "n", "correct"], axis=1).astype({"correct": int})
    table["accuracy"] = table["correct"] / table["n"]
    table["accuracy_low"], table["accuracy_high"] = wilson(table["correct"].to_numpy(), table["n"].to_numpy())
    return table.sort_values(["n", "sender"], ascending=[False, True], ignore_index=True)


def _plain(value):
    """A JSON value: numpy scalars become Python's, NaN becomes None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _records(frame):
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _share(value, low, high):
    return f"{100 * value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _escape(text):
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
