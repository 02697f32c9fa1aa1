"""Cross-validation that holds for photos by photographers whom the model has never seen.

Photos are dealt into k folds so that no photographer is on both sides; each photo is predicted once, by a model that
has seen no other photo of its photographer. `protocol="random"` deals the same photos at random, as most studies do.
"""

import dataclasses
import html

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold
from tqdm import tqdm

from utils._checks import whole
from utils.datasets import splits
from utils.evaluation.intervals import sender_names
from utils.evaluation.judge import check_labels, check_probabilities, evaluate

PROTOCOLS = ("grouped", "random")


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedCV:
    """Out-of-fold judgement of one recipe; made by :func:`grouped_cv`, prints itself.

    Attributes:
        name: of the recipe, or None.
        protocol: "grouped" (no photographer on both sides) or "random".
        k, seed: of the folds.
        evaluation: Evaluation of all photos, each predicted by the model that was not trained on it.
        folds: DataFrame by fold (1..k): n_train, n, senders, accuracy, accuracy_low, accuracy_high (Wilson),
            macro_recall, cross_entropy, shared_senders (photographers on both sides; 0 when grouped).
        fold: (n,) int, which fold predicted each photo, 1..k.
        absent: tuple of (fold, "train" or "test", class) for classes without a photo there.
    """

    name: str | None
    protocol: str
    k: int
    seed: int
    evaluation: object
    folds: pd.DataFrame
    fold: np.ndarray
    absent: tuple

    @property
    def n(self):
        """Number of photos."""
        return self.evaluation.n

    @property
    def accuracy(self):
        """Share of all photos that were classified correctly out of fold, 0..1."""
        return self.evaluation.accuracy

    @property
    def accuracy_low(self):
        """Lower end of the 95% interval over photographers (over photos where there is only one)."""
        return self.evaluation.accuracy_low if self.evaluation.sender_low is None else self.evaluation.sender_low

    @property
    def accuracy_high(self):
        """Upper end of the 95% interval over photographers (over photos where there is only one)."""
        return self.evaluation.accuracy_high if self.evaluation.sender_high is None else self.evaluation.sender_high

    @property
    def macro_recall(self):
        """Mean recall of the classes over all photos, 0..1."""
        return self.evaluation.macro_recall

    @property
    def accuracy_spread(self):
        """Standard deviation of the accuracy between folds, 0..1."""
        return float(self.folds["accuracy"].std(ddof=1))

    def to_dict(self):
        """Plain numbers, lists and strings, fit for results JSON."""
        numbers = ("name", "protocol", "k", "seed", "n", "accuracy", "accuracy_low", "accuracy_high", "accuracy_spread")
        return {
            **{field: getattr(self, field) for field in numbers},
            "folds": self.folds.reset_index().to_dict("records"),
            "absent": [list(entry) for entry in self.absent],
            "evaluation": self.evaluation.to_dict(),
        }

    def __repr__(self):
        over = "over photos" if self.evaluation.sender_low is None else "over photographers"
        what = {"grouped": "grouped by photographer", "random": "at random"}[self.protocol]
        text = (
            f"{self.name or 'model'}, {self.k} folds {what}: accuracy {self.accuracy:.1%} "
            f"({self.accuracy_low:.1%} to {self.accuracy_high:.1%} {over}), macro recall "
            f"{self.macro_recall:.1%}, folds {self.folds['accuracy'].min():.1%} to {self.folds['accuracy'].max():.1%}, "
            f"{self.n:,} photos"
        )
        return text + "".join(f"\n  fold {fold}: no photo of {label} in {part}" for fold, part, label in self.absent)

    def _repr_html_(self):
        head = html.escape(repr(self)).replace("\n", "<br>")
        return f"<p>{head}</p>{self.folds.round(3).to_html()}"


def grouped_cv(fit_predict, frame, classes, k=5, seed=0, name=None, protocol="grouped", tie=("sha256",)):
    """Judge a recipe by k-fold cross-validation in which no photographer is on both sides.

    Args:
        fit_predict: callable (train_frame, test_frame) -> probabilities (n_test, C) of the test photos. It may use
            no label of test_frame. Both frames keep the index of `frame`.
        frame: DataFrame, one row per photo: `label`, `sender` (missing ones count as one photographer); the column
            `split` is ignored.
        classes: the C class names in the order of the probabilities' columns.
        k: folds, from 2 to the number of photos.
        seed: another seed, other folds.
        name: of the recipe, for tables.
        protocol: "grouped", or "random" for folds that ignore the photographers.
        tie: columns whose equal values tie photographers together, as in `datasets.grouped_split`.

    Returns:
        GroupedCV; its interval is the 95% interval over photographers.

    Raises:
        ValueError: fewer photographers (or photos) than folds, or probabilities that `evaluate` refuses (the message
            names the fold).

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "shirt"] * 10, "sender": [str(i // 2) for i in range(20)]})
        >>> chance = lambda train, test: np.full((len(test), 2), 0.5)
        >>> judged = grouped_cv(chance, photos, ["hat", "shirt"])
        >>> judged.accuracy, int(judged.folds["shared_senders"].sum())
        (0.5, 0)

    Source: folds by scikit-learn's StratifiedGroupKFold; interval by the cluster bootstrap of `sender_interval`.
    """
    classes = tuple(classes)
    labels = check_labels(frame, classes)
    if "sender" not in frame:
        raise ValueError("expected a frame of photos with a column 'sender'; take it from datasets.load")
    senders = sender_names(frame["sender"])
    probabilities = np.full((len(frame), len(classes)), np.nan)
    fold_of = np.zeros(len(frame), dtype=int)
    absent, rows = [], []
    folds = _folds(frame.assign(sender=senders), labels, k, seed, protocol, tie)
    for fold, (train_rows, test_rows) in enumerate(tqdm(folds, desc=name or "folds", disable=None), start=1):
        train, test = frame.iloc[train_rows], frame.iloc[test_rows]
        for part, rows_of_part in (("train", train_rows), ("test", test_rows)):
            missing = np.flatnonzero(np.bincount(labels[rows_of_part], minlength=len(classes)) == 0)
            absent += [(fold, part, classes[number]) for number in missing]
        found = fit_predict(train, test)
        found = check_probabilities(found, len(test), classes, f" of fold {fold}")
        probabilities[test_rows], fold_of[test_rows] = found, fold
        judged = evaluate(found, test, classes)
        numbers = ("accuracy", "accuracy_low", "accuracy_high", "macro_recall", "cross_entropy")
        rows.append(
            {"fold": fold, "n_train": len(train), "n": judged.n, "senders": judged.n_senders}
            | {number: getattr(judged, number) for number in numbers}
            | {"shared_senders": len({*senders[train_rows]} & {*senders[test_rows]})}
        )
    return GroupedCV(
        name=name, protocol=protocol, k=k, seed=seed, fold=fold_of, absent=tuple(absent),
        evaluation=evaluate(probabilities, frame, classes, name=name), folds=pd.DataFrame(rows).set_index("fold"),
    )  # fmt: skip


def _folds(frame, labels, k, seed, protocol, tie):
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be {' or '.join(PROTOCOLS)}, got {protocol!r}")
    k = whole("k", k, 2, len(frame))
    if protocol == "grouped":
        return splits.grouped_folds(frame, k=k, seed=seed, tie=tie)
    # A class with fewer photos than folds cannot be stratified; its few photos then fall where chance puts them.
    counts = np.bincount(labels)
    kind = StratifiedKFold if counts[counts > 0].min() >= k else KFold
    return list(kind(k, shuffle=True, random_state=seed).split(labels, labels))
