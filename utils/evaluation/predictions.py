"""Labels and probabilities, checked before anything is computed from them."""

import numpy as np
import pandas as pd


def check_labels(frame, classes):
    """(n,) class numbers of the labels in `frame`.

    Raises:
        ValueError: no photos, no `label` column, fewer than two classes, a class named twice, or a label outside them.

    Example:
        >>> check_labels(pd.DataFrame({"label": ["shirt", "hat"]}), ["hat", "shirt"]).tolist()
        [1, 0]
    """
    classes = tuple(classes)
    if len(classes) < 2:
        raise ValueError(f"judging needs at least two classes, and got {list(classes)}; name all classes of the model")
    if len(set(classes)) < len(classes):
        twice = sorted({str(c) for c in classes if classes.count(c) > 1})
        raise ValueError(f"the class {', '.join(twice)} is named twice; give each class once, in the model's order")
    if "label" not in getattr(frame, "columns", ()):
        raise ValueError("the frame of photos has no column 'label'; take one from Dataset.part(...) or add the column")
    if len(frame) == 0:
        raise ValueError("there is no photo to judge on: the frame is empty; choose another part of the dataset")
    numbers = frame["label"].map({label: number for number, label in enumerate(classes)})
    if numbers.isna().any():
        strangers = sorted({str(label) for label in frame["label"][numbers.isna()]})
        raise ValueError(
            f"label {', '.join(strangers)} is none of the model's {len(classes)} classes; "
            "judge on the dataset that the model was trained for"
        )
    return numbers.to_numpy(dtype=int)


def check_probabilities(probabilities, n, classes, where=""):
    """`probabilities` as a float64 array (n, C), once it has proved to hold probabilities.

    Rows may miss 1 by what 8-bit outputs round away (steps of 1/256 a class), not by more.

    Raises:
        ValueError: another shape, NaN or infinity, values outside 0..1, rows that do not sum to 1.
        TypeError: not an array of numbers.

    Example:
        >>> check_probabilities([[0.25, 0.75]], 1, ["hat", "shirt"]).shape
        (1, 2)
    """
    if isinstance(probabilities, pd.DataFrame) and set(probabilities.columns) == set(classes):
        probabilities = probabilities[list(classes)]  # named columns: their order may be another one
    try:
        array = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the predictions{where} are no array of numbers ({error}); pass a function frame -> (n, C), or an array"
        ) from error
    if array.shape != (n, len(classes)):
        raise ValueError(
            f"the predictions{where} have shape {array.shape}, but {n} photos and {len(classes)} classes need "
            f"({n}, {len(classes)}); predict the same frame with a model of these classes"
        )
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the predictions{where} hold NaN or infinity for {bad.sum()} of {n} photos (first: row {bad.argmax()}); "
            "the training diverged or the conversion lost the weights, so make the model again"
        )
    sums = array.sum(axis=1)
    tolerance = 1e-3 + (len(classes) + 1) / 512
    bad = (np.abs(sums - 1) > tolerance) | (array < -1e-6).any(axis=1) | (array > 1 + 1e-3).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"the predictions{where} are no probabilities: row {row} lies between {array[row].min():.3g} and "
            f"{array[row].max():.3g} and sums to {sums[row]:.3g}; apply softmax to logits first"
        )
    return array


def photo_ids(frame):
    """(n,) what tells the photos of `frame` apart: `id`, else `path`, else None."""
    for column in ("id", "path"):
        if column in frame:
            return frame[column].astype(str).to_numpy(dtype=object)
    return None
