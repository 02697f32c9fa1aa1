"""Predictions against labels: accuracy with intervals, classes, calibration, photographers, and the mistakes."""

import dataclasses
import html

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from utils._checks import whole
from utils.evaluation.intervals import sender_interval, sender_names, wilson

# Keras clips probabilities here before taking the logarithm; the same clip keeps its losses and ours comparable.
EPSILON = 1e-7


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model did on n photos; made by :func:`evaluate`, prints itself.

    Attributes:
        name: of the model, or None; classes: class names, the order of every array here; n: photos.
        accuracy, accuracy_low, accuracy_high: 0..1, with the Wilson 95% interval over photos.
        n_senders: photographers (None where the frame has no `sender`).
        sender_low, sender_high: 95% interval over photographers (bootstrap); None with fewer than two.
        cross_entropy: mean negative log-probability of the true class, nats.
        macro_precision, macro_recall, macro_f1: unweighted means over the classes that have photos here.
        recall_low, recall_high: 95% interval of macro_recall over photographers; None with fewer than two.
        per_class: DataFrame by class: precision, recall, f1, support (photos), predicted (photos called that). A class
            without photos has NaN in the first three; one that is never predicted has precision 0.
        absent: classes without a photo here.
        confusion: (C, C) int counts, rows true, columns predicted.
        ece: expected calibration error, 0..1; reliability: the bins behind it, see :func:`reliability`.
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
    recall_low: float | None
    recall_high: float | None
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
        """(n,) booleans: which photos were classified correctly."""
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

    def to_dict(self):
        """Everything but the photos' own rows, as plain data fit for results JSON (NaN becomes None)."""
        numbers = (
            "n", "accuracy", "accuracy_low", "accuracy_high", "n_senders", "sender_low", "sender_high",
            "cross_entropy", "macro_precision", "macro_recall", "macro_f1", "recall_low", "recall_high", "ece",
        )  # fmt: skip
        return {field: _plain(getattr(self, field)) for field in numbers} | {
            "name": self.name,
            "classes": [_plain(name) for name in self.classes],
            "absent": [_plain(name) for name in self.absent],
            "per_class": _records(self.per_class.rename_axis("class").reset_index()),
            "confusion": self.confusion.tolist(),
            "reliability": _records(self.reliability),
            "per_sender": _records(self.per_sender),
        }

    def __repr__(self):
        facts = "".join(f"\n  {label:<26}{value}" for label, value in self._facts())
        return f"{self._title()}{facts}\n{self.per_class.round(3).to_string()}"

    def _repr_html_(self):
        rows = "".join(f"<tr><td>{label}</td><td>{html.escape(value)}</td></tr>" for label, value in self._facts())
        return f"<p><b>{html.escape(self._title())}</b></p><table>{rows}</table>{self.per_class.round(3).to_html()}"

    def _title(self):
        people = "" if self.n_senders is None else f" by {self.n_senders} photographer{'s' * (self.n_senders != 1)}"
        return f"{self.name or 'model'}: {self.n:,} photos{people}, {len(self.classes)} classes"

    def _facts(self):
        yield "accuracy", f"{self.accuracy:.1%} ({self.accuracy_low:.1%} to {self.accuracy_high:.1%} over photos)"
        if self.sender_low is not None:
            yield "", f"{self.sender_low:.1%} to {self.sender_high:.1%} over photographers"
        yield "cross-entropy", f"{self.cross_entropy:.3f} nats"
        yield "macro F1, macro recall", f"{self.macro_f1:.1%}, {self.macro_recall:.1%}"
        yield "calibration error (ECE)", f"{self.ece:.1%}"
        if self.absent:
            yield "classes without a photo", ", ".join(map(str, self.absent))


def evaluate(predict, frame, classes, name=None, bins=15):
    """Judge predictions against the labels of the photos in `frame`.

    Args:
        predict: callable frame -> probabilities, or the probabilities themselves: (n, C), rows sum to 1.
        frame: DataFrame, one row per photo: `label`; `sender` and `id` (or `path`) are used where they exist.
        classes: the C class names in the order of the probabilities' columns.
        name: of the model, for tables.
        bins: of the calibration error.

    Returns:
        Evaluation.

    Raises:
        ValueError: no photos, a label outside `classes`, or rows that are not probabilities (logits, NaN, other shape).
        TypeError: `predict` is neither a function of a frame nor an array.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "shirt", "hat"], "sender": ["1", "1", "2"]})
        >>> judged = evaluate([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], photos, ["hat", "shirt"])
        >>> judged.n, round(judged.accuracy, 3), judged.confusion.tolist()
        (3, 0.667, [[1, 1], [0, 1]])

    Source: scikit-learn for precision, recall and F1; Guo et al. 2017, arXiv:1706.04599, for the calibration error.
    """
    classes = tuple(classes)
    labels = check_labels(frame, classes)
    where = f" by {name}" if name else ""
    probabilities = check_probabilities(predict(frame) if callable(predict) else predict, len(frame), classes, where)
    predicted = probabilities.argmax(axis=1)
    correct = labels == predicted

    numbers = np.arange(len(classes))
    confusion = confusion_matrix(labels, predicted, labels=numbers)
    scores = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0.0)
    support, columns = scores[3], ["precision", "recall", "f1"]
    present = support > 0
    index = pd.Index(classes, name="class", dtype=object)
    per_class = pd.DataFrame(dict(zip(columns, scores, strict=False)), index=index)
    # A class that nobody photographed here has no recall; zeros would pull the macro averages down for no fault.
    per_class[~present] = np.nan
    per_class["support"], per_class["predicted"] = support, confusion.sum(axis=0)
    macro = per_class.loc[present, columns].mean()
    reliable = reliability(probabilities, labels, bins)
    senders = sender_names(frame["sender"]) if "sender" in frame else None
    per_sender = _per_sender(correct, senders)
    several = len(per_sender) > 1
    sender_low, sender_high = sender_interval(correct, senders) if several else (None, None)
    recall_low, recall_high = sender_interval(correct, senders, labels) if several else (None, None)
    low, high = wilson(correct.sum(), len(frame))
    return Evaluation(
        name=name, classes=classes, n=len(frame), accuracy=float(correct.mean()), accuracy_low=low, accuracy_high=high,
        n_senders=None if senders is None else len(per_sender), sender_low=sender_low, sender_high=sender_high,
        cross_entropy=float(-np.log(probabilities[np.arange(len(labels)), labels].clip(EPSILON, 1.0)).mean()),
        macro_precision=float(macro["precision"]), macro_recall=float(macro["recall"]), macro_f1=float(macro["f1"]),
        recall_low=recall_low, recall_high=recall_high, per_class=per_class, confusion=confusion,
        absent=tuple(np.array(classes, dtype=object)[~present]),
        ece=float((reliable["n"] * (reliable["accuracy"] - reliable["confidence"]).abs()).sum() / len(frame)),
        reliability=reliable, per_sender=per_sender, probabilities=probabilities, labels=labels, predicted=predicted,
        ids=photo_ids(frame), senders=senders,
    )  # fmt: skip


def reliability(probabilities, labels, bins=15):
    """Confidence against accuracy, in bins of equal width: the data of a reliability diagram.

    ECE = sum over bins of n_bin / n * |accuracy_bin - confidence_bin|.

    Args:
        probabilities: (n, C); labels: (n,) class numbers; bins: how many.

    Returns:
        DataFrame, one row per bin that holds photos: low, high (bounds), n, confidence (mean), accuracy,
        accuracy_low, accuracy_high (Wilson 95%).

    Example:
        >>> table = reliability(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]), bins=10)
        >>> table[["n", "accuracy"]].values.tolist()
        [[2.0, 0.5]]

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    bins = whole("bins", bins)
    probabilities, labels = check_numbers(probabilities, labels)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # bins (low, high], as in Guo
    rows = []
    for index in np.unique(number):
        inside = number == index
        bounds, n = wilson(right[inside].sum(), inside.sum()), int(inside.sum())
        rows.append([edges[index], edges[index + 1], n, confidence[inside].mean(), right[inside].mean(), *bounds])
    return pd.DataFrame(rows, columns=["low", "high", "n", "confidence", "accuracy", "accuracy_low", "accuracy_high"])


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


def worst_mistakes(evaluation, frame, n=24):
    """The photos that the model was most confidently wrong about.

    Args:
        evaluation: of `frame`.
        frame: the very frame that was judged, in the same order.
        n: at most this many.

    Returns:
        DataFrame: the rows of `frame`, most confident first, with true, predicted, confidence (probability of the
        predicted class), true_probability and position (row number in `frame`) added.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "hat", "shirt"], "id": ["a", "b", "c"]})
        >>> judged = evaluate([[0.1, 0.9], [0.4, 0.6], [0.2, 0.8]], photos, ["hat", "shirt"])
        >>> worst_mistakes(judged, photos)[["id", "predicted", "confidence"]].values.tolist()
        [['a', 'shirt', 0.9], ['b', 'shirt', 0.6]]
    """
    same = len(frame) == evaluation.n and np.array_equal(check_labels(frame, evaluation.classes), evaluation.labels)
    ids = photo_ids(frame)
    if not same or (ids is not None and evaluation.ids is not None and not np.array_equal(ids, evaluation.ids)):
        raise ValueError("expected the frame that was evaluated, in the same order, got another; pass that one")
    wrong = np.flatnonzero(~evaluation.correct)
    wrong = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:n]
    names = np.array(evaluation.classes, dtype=object)
    return frame.iloc[wrong].assign(
        true=names[evaluation.labels[wrong]],
        predicted=names[evaluation.predicted[wrong]],
        confidence=evaluation.confidence[wrong],
        true_probability=evaluation.probabilities[wrong, evaluation.labels[wrong]],
        position=wrong,
    )


def check_labels(frame, classes):
    """(n,) class numbers of the labels in `frame`; raises ValueError where there is nothing to judge.

    Example:
        >>> check_labels(pd.DataFrame({"label": ["shirt", "hat"]}), ["hat", "shirt"]).tolist()
        [1, 0]
    """
    classes = tuple(classes)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"expected two or more different classes, got {list(classes)}; name all classes of the model")
    if "label" not in getattr(frame, "columns", ()):
        raise ValueError("expected a frame of photos with a column 'label'; take one from Dataset.part(...)")
    if len(frame) == 0:
        raise ValueError("there are no photos to judge, the frame is empty; choose another part of the dataset")
    numbers = frame["label"].map({label: number for number, label in enumerate(classes)})
    if numbers.isna().any():
        unknown = sorted({str(label) for label in frame["label"][numbers.isna()]})
        raise ValueError(
            f"unknown label {', '.join(unknown)}: the model has {len(classes)} other classes; "
            "judge it on the dataset that it was trained on"
        )
    return numbers.to_numpy(dtype=int)


def check_numbers(probabilities, labels):
    """`probabilities` as float64 (n, C) and `labels` as (n,) class numbers, once they have proved to be that."""
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != (len(probabilities),) or not len(labels):
        raise ValueError(
            "expected probabilities (n, classes) and n labels, n at least 1, "
            f"got {probabilities.shape} and {labels.shape}"
        )
    count = probabilities.shape[1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= count:
        raise ValueError(
            f"expected labels as class numbers from 0 to {count - 1}, got {np.unique(labels.astype(str))[:3].tolist()} "
            f"({labels.dtype}); make them with check_labels"
        )
    return check_probabilities(probabilities, len(labels), range(count)), labels


def check_probabilities(probabilities, n, classes, where=""):
    """`probabilities` as float64 (n, C), once it has proved to hold probabilities.

    Rows may differ from 1 by what 8-bit outputs round away (steps of 1/256 per class), not by more.
    """
    if isinstance(probabilities, pd.DataFrame) and set(probabilities.columns) == set(classes):
        probabilities = probabilities[list(classes)]  # named columns: their order may be another one
    try:
        array = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected the predictions{where} as an array (n, C) or a function of the frame") from error
    if array.shape != (n, len(classes)):
        raise ValueError(
            f"expected predictions{where} of shape ({n}, {len(classes)}) for {n} photos and {len(classes)} classes, "
            f"got {array.shape}; predict the same frame with a model of these classes"
        )
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the predictions{where} contain NaN or infinity for {bad.sum()} of {n} photos "
            f"(first: row {bad.argmax()}); train or convert the model again"
        )
    sums = array.sum(axis=1)
    tolerance = 1e-3 + (len(classes) + 1) / 512
    bad = (np.abs(sums - 1) > tolerance) | (array < -1e-6).any(axis=1) | (array > 1 + 1e-3).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"expected probabilities{where}, but row {row} lies between {array[row].min():.3g} and "
            f"{array[row].max():.3g} and sums to {sums[row]:.3g}; apply softmax to logits first"
        )
    return array


def photo_ids(frame):
    """(n,) what tells the photos of `frame` apart: `id`, else `path`, else None."""
    for column in ("id", "path"):
        if column in frame:
            return frame[column].astype(str).to_numpy(dtype=object)
    return None
