"""Where a classifier errs: the commonest confusions and the most confident mistakes."""

import numpy as np
import pandas as pd

from utils.evaluation.predictions import check_labels, photo_ids


def confusions(evaluation, top=10):
    """The commonest confusions, most photos first.

    Returns:
        DataFrame: true, predicted, photos, share_% (of the true class's photos), at most `top` rows.

    Example:
        >>> from utils.evaluation import evaluate
        >>> photos = pd.DataFrame({"label": ["hat", "hat", "shirt"]})
        >>> judged = evaluate([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]], photos, ["hat", "shirt"])
        >>> confusions(judged).values.tolist()
        [['hat', 'shirt', 1, 50.0]]
    """
    counts = evaluation.confusion.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: max(0, top)]
    rows = [
        {
            "true": evaluation.classes[true],
            "predicted": evaluation.classes[predicted],
            "photos": int(counts[true, predicted]),
            "share_%": round(100 * float(evaluation.confusion_normalised[true, predicted]), 1),
        }
        for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[true, predicted] > 0
    ]
    return pd.DataFrame(rows, columns=["true", "predicted", "photos", "share_%"])


def worst_mistakes(evaluation, frame, n=24):
    """The photos that the model was most confidently wrong about.

    Args:
        evaluation: of `frame`.
        frame: the very frame that was judged, in the same order.
        n: at most this many.

    Returns:
        DataFrame: the rows of `frame`, most confident first, with true, predicted, confidence (probability of the
        predicted class), true_probability and position (row number in `frame`) added.

    Raises:
        ValueError: `frame` is not the one that was judged.

    Example:
        >>> from utils.evaluation import evaluate
        >>> photos = pd.DataFrame({"label": ["hat", "hat", "shirt"], "id": ["a", "b", "c"]})
        >>> judged = evaluate([[0.1, 0.9], [0.4, 0.6], [0.2, 0.8]], photos, ["hat", "shirt"])
        >>> worst_mistakes(judged, photos)[["id", "predicted", "confidence"]].values.tolist()
        [['a', 'shirt', 0.9], ['b', 'shirt', 0.6]]
    """
    same = len(frame) == evaluation.n and np.array_equal(check_labels(frame, evaluation.classes), evaluation.labels)
    ids = photo_ids(frame)
    if not same or (ids is not None and evaluation.ids is not None and not np.array_equal(ids, evaluation.ids)):
        raise ValueError("worst_mistakes needs the frame that was evaluated, in the same order; pass that one")
    wrong = np.flatnonzero(~evaluation.correct)
    wrong = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][: max(0, n)]
    names = np.array(evaluation.classes, dtype=object)
    return frame.iloc[wrong].assign(
        true=names[evaluation.labels[wrong]],
        predicted=names[evaluation.predicted[wrong]],
        confidence=evaluation.confidence[wrong],
        true_probability=evaluation.probabilities[wrong, evaluation.labels[wrong]],
        position=wrong,
    )
