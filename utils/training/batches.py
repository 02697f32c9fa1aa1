"""What a training step sees: photos or features in the order of (seed, epoch), with targets and weights.

Every random choice of an epoch follows from (seed, epoch) alone, so that a resumed run sees the same batches as one
that was never interrupted.
"""

import numpy as np
import pandas as pd

from utils.datasets import pipeline


def class_weights(frame, classes):
    """Balanced weights, n / (C * n_c), which let every class count alike in the loss.

    Args:
        frame: DataFrame of training photos, with `label`.
        classes: class names in order.

    Returns:
        dict class number -> float.

    Raises:
        ValueError: a class has no training photo, or a label is not among the classes.

    Example:
        >>> class_weights(pd.DataFrame({"label": ["hat"] * 3 + ["shoes"]}), ["hat", "shoes"])
        {0: 0.6666666666666666, 1: 2.0}

    Source: King & Zeng 2001 (as in scikit-learn).
    """
    counts = np.bincount(pipeline.label_numbers(frame["label"], classes), minlength=len(classes)).astype(float)
    if not counts.all():
        absent = [name for name, count in zip(classes, counts, strict=True) if not count]
        raise ValueError(f"no training photo of {', '.join(absent)}; drop the class, or use another split")
    return dict(enumerate((counts.sum() / (len(classes) * counts)).tolist()))


def class_weight_table(frame, classes):
    """:func:`class_weights` as a DataFrame: class, photos, weight; rarest class first."""
    weights = class_weights(frame, classes)
    counts = frame["label"].value_counts()
    rows = [{"class": name, "photos": int(counts[name]), "weight": weights[i]} for i, name in enumerate(classes)]
    return pd.DataFrame(rows).sort_values("photos", ignore_index=True)


def augmentation(name):
    """The pipeline.Augment of a RunConfig's `augment`: None, "light", "stretched", "strong" or "study_b".

    Study B flips horizontally and rotates; it does not say how far, and 36 degrees (Keras' RandomRotation(0.1)) is
    taken for it.
    """
    if name == "study_b":
        return pipeline.Augment(flip=True, rotation=36.0)
    return pipeline.Augment.named(name)


def class_targets(n_classes, label_smoothing=0.0):
    """float32 (C, C): the target of each class, its share of `label_smoothing` spread evenly over all classes.

    Source: Szegedy et al. 2016, arXiv:1512.00567.
    """
    return (np.eye(n_classes) * (1 - label_smoothing) + label_smoothing / n_classes).astype(np.float32)


def photo_batches(frame, classes, weights, config, epoch):
    """Training batches of photos: (images float32 (b, s, s, 3), targets (b, C), weights (b,)).

    `weights` are of the classes. Each pass over the result is the epoch that ``epoch()`` says at its start.
    """
    import tensorflow as tf

    data = pipeline.batches(
        frame, classes, config.input_size, config.batch_size, training=True,
        augment=augmentation(config.augment), seed=config.seed, first_epoch=epoch,
    )  # fmt: skip
    targets = tf.constant(class_targets(len(classes), config.label_smoothing))
    return data.map(lambda images, hot: (images, hot @ targets, tf.linalg.matvec(hot, weights))).prefetch(2)


def feature_batches(features, labels, weights, config, epoch):
    """Batches of head training: each photo once an epoch, in one of its views; otherwise as :func:`photo_batches`.

    `features` are (n, D) or (views + 1, n, D), `labels` n class numbers.
    """
    import tensorflow as tf

    stack = tf.constant(features if features.ndim == 3 else features[None])
    targets = tf.constant(class_targets(len(weights), config.label_smoothing)[labels])
    weights = tf.constant(weights[labels])
    n, size = len(labels), config.batch_size

    def steps():
        number = epoch()
        order = np.random.default_rng([config.seed, number, 11]).permutation(n)
        views = np.random.default_rng([config.seed, number, 13]).integers(0, stack.shape[0], n)
        for start in range(0, n, size):
            rows = order[start : start + size]
            yield np.stack([views[rows], rows], axis=1)

    def gather(places):
        rows = places[:, 1]
        return tf.gather_nd(stack, places), tf.gather(targets, rows), tf.gather(weights, rows)

    data = tf.data.Dataset.from_generator(steps, output_signature=tf.TensorSpec([None, 2], tf.int64)).map(gather)
    return data.apply(tf.data.experimental.assert_cardinality(-(-n // size))).prefetch(4)
