"""The linear probe: multinomial logistic regression on frozen features, ready to become a network's head."""

import dataclasses
import warnings

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A multinomial logistic regression on features, ready to start a Dense head from.

    Attributes:
        kernel: float32 (D, C), for features as they are (the standardisation is folded in).
        bias: float32 (C,).
        strength: the chosen C of scikit-learn (inverse regularisation).
        validation_accuracy: what it was chosen by, or None where there was only one to choose from.
        table: DataFrame C, validation_accuracy, of all that were tried.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    validation_accuracy: float | None
    table: object = dataclasses.field(repr=False)

    def predict(self, features):
        """Probabilities, float32 (n, C), of features (n, D)."""
        logits = np.asarray(features, np.float64) @ self.kernel + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)

    def to_frame(self):
        """The strengths that were tried, as a DataFrame."""
        return self.table.copy()

    def __repr__(self):
        judged = "" if self.validation_accuracy is None else f", validation accuracy {self.validation_accuracy:.3f}"
        return (
            f"LinearProbe({self.kernel.shape[0]} features, {self.kernel.shape[1]} classes, C={self.strength:g}{judged})"
        )

    def _repr_html_(self):
        return f"<p>{self!r}</p>{self.table.to_html(index=False)}"


def linear_probe(
    features, labels, validation_features=None, validation_labels=None, classes=None,
    strengths=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), class_weight=None, sample_weight=None,
):  # fmt: skip
    """Logistic regression on frozen features, its strength chosen on validation (never on test).

    Minimises ||W||^2 / 2 + C * sum of cross-entropies over standardised features (scikit-learn's LogisticRegression).

    Args:
        features: float (n, D), or (v, n, D) with augmented views; each view counts as a photo.
        labels: n integers in 0..C-1, or n class names where `classes` is given.
        validation_features, validation_labels: the part to choose by; without them the middle strength is taken.
        classes: class names in order, or their number; default: as many as the largest label.
        strengths: the values of C to try.
        class_weight: None, ``"balanced"``, or dict class number -> weight.
        sample_weight: n weights, or None.

    Returns:
        LinearProbe.

    Raises:
        ValueError: fewer than two classes among the labels, a class without a photo, or shapes that do not agree.

    Example:
        >>> x = np.array([[0.0], [0.1], [1.0], [1.1]])
        >>> linear_probe(x, [0, 0, 1, 1], x, [0, 0, 1, 1]).validation_accuracy
        1.0
    """
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    features = np.asarray(features, np.float32)
    labels = _numbers(labels, classes)
    n_classes = len(classes) if hasattr(classes, "__len__") else classes or int(labels.max()) + 1
    views = features.shape[0] if features.ndim == 3 else 1
    features = features.reshape(-1, features.shape[-1])
    if len(features) != views * len(labels):
        raise ValueError(
            f"{len(features)} feature vectors do not go with {views} x {len(labels)} labels; "
            "extract both from one frame"
        )
    absent = sorted(set(range(n_classes)) - set(labels.tolist()))
    if absent or n_classes < 2:
        names = [classes[i] for i in absent] if hasattr(classes, "__len__") else absent
        raise ValueError(f"a probe needs two classes or more, each with a photo; {n_classes} classes, none of {names}")
    labels = np.tile(labels, views)
    sample_weight = None if sample_weight is None else np.tile(np.asarray(sample_weight, float), views)
    mean = features.mean(axis=0)
    spread = features.std(axis=0)
    spread[spread < 1e-6] = 1.0  # a dead feature stays as it is
    scaled = (features - mean) / spread
    validation = None
    if validation_features is not None and len(validation_features):
        validation = np.asarray(validation_features, np.float32), _numbers(validation_labels, classes)
    else:
        strengths = (sorted(strengths)[len(strengths) // 2],)
    rows, best, warm = [], None, None
    for strength in sorted(strengths):
        fit = LogisticRegression(C=strength, max_iter=300, class_weight=class_weight, warm_start=True)
        if warm is not None:
            # The path from strong to weak regularisation: each fit starts where the last one ended.
            fit.coef_, fit.intercept_, fit.classes_ = warm.coef_, warm.intercept_, warm.classes_
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged to the last digit is converged enough to choose by
            warm = fit.fit(scaled, labels, sample_weight=sample_weight)
        kernel, bias = warm.coef_.T, warm.intercept_
        if n_classes == 2:
            # scikit-learn keeps one column for two classes; a softmax head has two.
            kernel, bias = np.hstack([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2
        kernel = kernel / spread[:, None]
        probe = LinearProbe(kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32), strength, None, None)
        accuracy = None
        if validation:
            accuracy = float((probe.predict(validation[0]).argmax(axis=1) == validation[1]).mean())
        rows.append({"C": strength, "validation_accuracy": accuracy})
        if best is None or (accuracy is not None and accuracy > best.validation_accuracy):
            best = dataclasses.replace(probe, validation_accuracy=accuracy)
    return dataclasses.replace(best, table=pd.DataFrame(rows))


def _numbers(labels, classes):
    labels = np.asarray(labels)
    if labels.dtype.kind in "iu":
        return labels.astype(int)
    if not hasattr(classes, "__len__"):
        raise ValueError("labels are names; give classes, the names in order")
    index = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(labels.tolist()) - set(index))
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} is none of the classes {tuple(classes)}; load the dataset again")
    return np.array([index[label] for label in labels.tolist()])
