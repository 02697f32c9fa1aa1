"""What a training step sees: photos in the order of (seed, epoch), augmented, mixed, with targets and weights.

Every random choice of an epoch follows from (seed, epoch) alone, so that a resumed run sees the same batches as one
that was never interrupted.
"""

import numpy as np
import pandas as pd

from utils.datasets import pipeline

MOST_TAUGHT = 20_000  # photos with a teacher: their rows are passed on one-hot, which grows with the square


def class_weights(frame, classes, kind="balanced", beta=0.999):
    """Weights that let every class count alike in the loss.

    Balanced: w_c = n / (C * n_c). Effective: w_c proportional to (1 - beta) / (1 - beta ** n_c), scaled to a mean
    weight of 1 over the photos.

    Args:
        frame: DataFrame of training photos, with `label`.
        classes: class names in order.
        kind: "balanced" or "effective".
        beta: of the effective number of samples, 0 <= beta < 1.

    Returns:
        dict class number -> float.

    Raises:
        ValueError: a class has no training photo, or a label is none of the classes.

    Example:
        >>> class_weights(pd.DataFrame({"label": ["hat"] * 3 + ["shoes"]}), ["hat", "shoes"])
        {0: 0.6666666666666666, 1: 2.0}

    Source: King & Zeng 2001 (as in scikit-learn); Cui et al. 2019, arXiv:1901.05555.
    """
    counts = np.bincount(label_numbers(frame, classes), minlength=len(classes)).astype(float)
    if not counts.all():
        absent = [name for name, count in zip(classes, counts, strict=True) if not count]
        raise ValueError(f"no training photo of {', '.join(absent)}; drop the class, or use another split")
    if kind == "balanced":
        weights = counts.sum() / (len(classes) * counts)
    elif kind == "effective":
        weights = (1 - beta) / (1 - beta**counts)
        weights *= counts.sum() / (weights * counts).sum()
    else:
        raise ValueError(f"kind is {kind!r}; choose 'balanced' or 'effective'")
    return {number: float(weight) for number, weight in enumerate(weights)}


def class_weight_table(frame, classes, kind="balanced", beta=0.999):
    """:func:`class_weights` as a DataFrame: class, photos, weight; rarest class first."""
    weights = class_weights(frame, classes, kind, beta)
    counts = frame["label"].value_counts()
    rows = [{"class": name, "photos": int(counts[name]), "weight": weights[i]} for i, name in enumerate(classes)]
    return pd.DataFrame(rows).sort_values("photos", ignore_index=True)


def augmentation(name):
    """The pipeline.Augment of a RunConfig's `augment`: None, "light", "strong" or "study_b".

    Study B flips horizontally and rotates; it does not say how far, and 36 degrees (Keras' RandomRotation(0.1)) is
    taken for it.
    """
    if name == "study_b":
        return pipeline.Augment(flip=True, rotation=36.0)
    return pipeline.Augment.named(name)


def label_numbers(frame, classes):
    """int array (n,): the number of each row's label in `classes`; an unknown label is named."""
    index = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(frame["label"]) - set(index))
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} is none of the classes {tuple(classes)}; load the dataset again")
    return frame["label"].map(index).to_numpy(int)


def targets(frame, classes, label_smoothing=0.0, teacher=None, teacher_weight=0.5):
    """Target probabilities: one-hot, smoothed, mixed with a teacher's.

    Args:
        frame: DataFrame with `label`.
        classes: class names in order.
        label_smoothing: share spread evenly over all classes, Szegedy et al. 2016, arXiv:1512.00567.
        teacher: probabilities (n, C) of a teacher, or None.
        teacher_weight: the teacher's share, Hinton et al. 2015, arXiv:1503.02531.

    Returns:
        float32 (n, C), rows sum to 1.
    """
    hard = np.eye(len(classes), dtype=np.float32)[label_numbers(frame, classes)]
    soft = hard * (1 - label_smoothing) + label_smoothing / len(classes)
    if teacher is not None:
        soft = (1 - teacher_weight) * soft + teacher_weight * np.asarray(teacher, np.float32)
    return soft.astype(np.float32)


def epoch_order(n, seed, epoch):
    """The order in which epoch `epoch` (0-based) visits n photos: an int permutation that depends on (seed, epoch)."""
    return np.random.default_rng([seed, epoch, 11]).permutation(n)


def step_seeds(n_steps, seed, epoch):
    """int32 (n_steps,): one seed a step, for augmentation and mixing."""
    return np.random.default_rng([seed, epoch, 12]).integers(0, 2**31 - 1, n_steps, dtype=np.int32)


def mix_batch(images, labels, weights, seed, mixup=0.0, cutmix=0.0):
    """Mixup or CutMix on one batch; where both are on, a fair coin chooses one for the whole batch.

    Args:
        images: float32 (b, h, w, 3), or features (b, D) for mixup alone.
        labels: float32 (b, C).
        weights: float32 (b,), sample weights, mixed in the same shares.
        seed: int, also as a tensor.
        mixup, cutmix: alphas of the Beta distribution; 0 = off.

    Returns:
        (images, labels, weights) as tensors.

    Source: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
    """
    import tensorflow as tf

    images, labels, weights = map(tf.convert_to_tensor, (images, labels, weights))
    seeds = tf.random.split(tf.stack([tf.cast(seed, tf.int32), 77]), 6)
    order = tf.argsort(tf.random.stateless_uniform([tf.shape(images)[0]], seeds[0]))

    def beta(alpha, seed):
        a = tf.random.stateless_gamma([2], seed, alpha)
        return a[0] / tf.maximum(a[0] + a[1], 1e-12)

    def blend(share):
        other = tf.gather(images, order)
        return share * images + (1 - share) * other, share

    def paste(share):
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        side = tf.sqrt(1 - share)
        h, w = tf.cast(height, tf.float32) * side, tf.cast(width, tf.float32) * side
        y, x = tf.unstack(tf.random.stateless_uniform([2], seeds[3]))
        y, x = y * tf.cast(height, tf.float32), x * tf.cast(width, tf.float32)
        rows, columns = tf.cast(tf.range(height), tf.float32) + 0.5, tf.cast(tf.range(width), tf.float32) + 0.5
        inside = ((rows > y - h / 2) & (rows < y + h / 2))[:, None] & ((columns > x - w / 2) & (columns < x + w / 2))
        # The box is cut off at the border: what counts is the area that was really pasted.
        kept = 1 - tf.reduce_mean(tf.cast(inside, tf.float32))
        return tf.where(inside[None, :, :, None], tf.gather(images, order), images), kept

    if mixup and cutmix:
        coin = tf.random.stateless_uniform([], seeds[1]) < 0.5
        mixed, share = tf.cond(coin, lambda: blend(beta(mixup, seeds[2])), lambda: paste(beta(cutmix, seeds[2])))
    elif mixup:
        mixed, share = blend(beta(mixup, seeds[2]))
    elif cutmix:
        mixed, share = paste(beta(cutmix, seeds[2]))
    else:
        return images, labels, weights
    labels = share * labels + (1 - share) * tf.gather(labels, order)
    weights = share * weights + (1 - share) * tf.gather(weights, order)
    mixed.set_shape(images.shape)
    return mixed, labels, weights


def photo_batches(frame, labels, weights, config, input_size, epoch):
    """Training batches of photos; each pass over the result is the epoch that `epoch` says at its start.

    Args:
        frame: DataFrame of the training photos.
        labels: float32 (n, C), targets.
        weights: float32 (n,), sample weights.
        config: RunConfig (batch size, augmentation, mixing, seed).
        input_size: side of the square input, in pixels.
        epoch: callable () -> 0-based number of the epoch that begins.

    Returns:
        tf.data.Dataset of (images float32 (b, s, s, 3), targets (b, C), weights (b,)).
    """
    import tensorflow as tf

    # Targets and weights follow from the class; with a teacher they belong to the photo, and rows stand in for classes.
    _, first, codes = np.unique(frame["label"].to_numpy(str), return_index=True, return_inverse=True)
    if config.teacher:
        if len(frame) > MOST_TAUGHT:
            raise ValueError(f"{len(frame)} photos are too many to train with a teacher; give at most {MOST_TAUGHT}")
        first = codes = np.arange(len(frame))
    labels, weights = labels[first], weights[first]
    data = pipeline.batches(
        frame.assign(label=codes), range(len(first)), input_size, config.batch_size, training=True,
        augment=augmentation(config.augment), seed=config.seed, first_epoch=epoch,
    )  # fmt: skip
    count = -(-len(frame) // config.batch_size)
    seeds = tf.data.Dataset.from_generator(
        lambda: iter(step_seeds(count, config.seed, epoch())), output_signature=tf.TensorSpec([], tf.int32)
    )

    def complete(batch, seed):
        images, code = batch[0], tf.argmax(batch[1], axis=1)
        return mix_batch(images, tf.gather(labels, code), tf.gather(weights, code), seed, config.mixup, config.cutmix)

    data = tf.data.Dataset.zip(data, seeds).map(complete)
    return data.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)


def feature_batches(features, labels, weights, config, epoch):
    """The batches of head training: each photo once an epoch, in one of its views, mixed where asked.

    Args:
        features: float32 (n, D) or (views + 1, n, D).
        labels: float32 (n, C), targets.
        weights: float32 (n,), sample weights.
        config: RunConfig (batch size, mixup, seed).
        epoch: callable () -> 0-based number of the epoch that begins.

    Returns:
        tf.data.Dataset of (features (b, D), targets (b, C), weights (b,)).
    """
    import tensorflow as tf

    stack = tf.constant(features if features.ndim == 3 else features[None])
    n, size = len(labels), config.batch_size
    count = -(-n // size)

    def steps():
        number = epoch()
        order = epoch_order(n, config.seed, number)
        views = np.random.default_rng([config.seed, number, 13]).integers(0, stack.shape[0], n)
        seeds = step_seeds(count, config.seed, number)
        for step in range(count):
            rows = order[step * size : (step + 1) * size]
            yield np.stack([views[rows], rows], axis=1), seeds[step]

    def gather(places, seed):
        chosen = tf.gather_nd(stack, places)
        return mix_batch(chosen, tf.gather(labels, places[:, 1]), tf.gather(weights, places[:, 1]), seed, config.mixup)

    signature = tf.TensorSpec([None, 2], tf.int64), tf.TensorSpec([], tf.int32)
    data = tf.data.Dataset.from_generator(steps, output_signature=signature).map(gather)
    return data.apply(tf.data.experimental.assert_cardinality(count)).prefetch(4)
