"""Backbone features, computed once for each photo and kept on disk, and the linear probe on top of them.

A frozen backbone gives the same features in every epoch, so that passing the photos through it once replaces hundreds
of passes; the head then trains in seconds. Cached features are keyed by the photo's bytes, not by its path.
"""

import dataclasses
import hashlib
import pathlib
import sys
import warnings
import zipfile

import numpy as np

from utils import files, models
from utils.datasets import pipeline

BATCH_SIZE = 32  # photos a forward pass; 16 to 32 are fastest on small CPUs
BLOCK = 256  # photos that are decoded at a time; memory does not grow with their number


def extract(
    backbone, frame, input_size=224, cache_dir=None, views=0, augment=None, seed=0, verbose=0, calibration=None
):
    """Pooled features of photos from a pretrained backbone in inference mode; each photo passes through it once.

    Args:
        backbone: key of ``models.BACKBONES``.
        frame: DataFrame with a column `path` (and `copy`, where ``splits.balance`` made one).
        input_size: side of the square input, in pixels.
        cache_dir: folder of the cache; None = ``files.cache_dir()``, False = no cache on disk.
        views: number of augmented views of each photo beside the plain one.
        augment: ``pipeline.Augment`` of the augmented views.
        seed: of the augmented views; a view depends on (photo, seed, number of the view) and on nothing else.
        verbose: 1 shows a progress bar.
        calibration: DataFrame of training photos for :func:`calibrate`; needed where EfficientNetB0 starts from
            EfficientNet-Lite0 (``models.needs_batch_norm``), of no effect otherwise.

    Returns:
        float32 (n, D), rows in the frame's order; with `views` > 0 (views + 1, n, D), the plain photos first.

    Raises:
        ValueError: unknown backbone, an empty frame, a file that cannot be decoded, views without `augment`, or no
            `calibration` where it is needed.
        FileNotFoundError: a photo is missing; names it.

    Example:
        >>> from utils import datasets
        >>> frame = datasets.load("sketches", per_class=4, size=64).part("test")  # doctest: +SKIP
        >>> extract("mobilenet_v2", frame).shape[1]  # doctest: +SKIP
        1280
    """
    if len(frame) == 0:
        raise ValueError("there is no photo to extract features from: the frame is empty; check the split")
    if views and augment is None:
        raise ValueError(f"views={views} needs an augmentation, got None; pass augment=pipeline.Augment.light()")
    photos = _keys(frame)
    extractor, weights_id = _extractor(backbone, input_size, calibration, cache_dir)
    stacks = []
    for view in range(views + 1):
        # Other augmentation, other features: each view has a file of its own.
        described = hashlib.sha256(f"{view} {seed} {augment!r}".encode()).hexdigest()[:12] if view else "plain"
        path = files.cache_dir(cache_dir or None) / f"features-{backbone}-{input_size}-{weights_id}-{described}.npz"
        known = {} if cache_dir is False else _read(path)
        missing = {key: row for row, key in enumerate(photos) if key not in known}
        rows = np.array(list(missing.values()), int)
        # A view depends on the photo, the seed and its number, not on its neighbours.
        drawn = [photos[row].split("/") for row in rows]
        draws = [(seed, view, int(photo[:12], 16), int(copy), 31) for photo, copy in drawn] if view else None
        fresh = {}
        try:
            for block in _compute(extractor, frame.iloc[rows], input_size, augment, draws, verbose):
                fresh.update(zip(list(missing)[len(fresh) : len(fresh) + len(block)], block, strict=True))
        finally:  # an interruption loses nothing that was computed
            if fresh and cache_dir is not False:
                _add(path, fresh)
        known |= fresh
        stacks.append(np.stack([known[key] for key in photos]))
    return np.stack(stacks) if views else stacks[0]


def content(path):
    """Digest of a photo's bytes, 32 hexadecimal digits."""
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:32]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the photo {path} is missing; load the dataset again") from error


def _keys(frame):
    """What tells photos apart: the digest of each one's bytes, and the number of its copy where it was balanced."""
    copies = frame["copy"] if "copy" in frame.columns else [0] * len(frame)
    return [f"{content(path)}/{int(copy)}" for path, copy in zip(frame["path"], copies, strict=True)]


def calibrate(model, frame, input_size, cache_dir=None):
    """Re-estimate a model's batch-norm statistics on 1,500 training photos, once: the result is kept on disk."""
    rows = np.sort(np.random.default_rng([0, 32]).permutation(len(frame))[:1500])
    some = frame.iloc[rows]
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    variables = [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
    digest = hashlib.sha256(repr(input_size).encode())
    # The statistics follow from every weight before the pooled features: kernels, scales and offsets.
    names = [layer.name for layer in model.layers]
    for layer in model.layers[: names.index("pooled_features")]:
        for weight in layer.weights[:2] if layer in norms else layer.weights:
            digest.update(weight.numpy().tobytes())
    digest.update("".join(_keys(some)).encode())
    path = files.cache_dir(cache_dir or None) / f"batch-norm-{digest.hexdigest()[:24]}.npz"
    known = {} if cache_dir is False else _read(path)
    if not known:
        models.reestimate_batch_norm(model, pipeline.load_images(some, input_size), batch_size=32)
        if cache_dir is not False:
            files.write_arrays(path, {f"{i:04d}": variable.numpy() for i, variable in enumerate(variables)})
    for name, variable in zip(sorted(known), variables, strict=bool(known)):
        variable.assign(known[name])
    return model


def _read(path):
    """dict key -> float32 array of a cache file; a missing or damaged one holds nothing."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if "keys" not in stored:
                return dict(stored)
            return dict(zip(stored["keys"].tolist(), stored["values"], strict=True))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return {}


def _add(path, fresh):
    with files.lock(path):  # another process may have added to it meanwhile
        known = _read(path) | fresh
        with files.atomic_path(path) as part:
            np.savez(part, keys=np.array(list(known)), values=np.stack(list(known.values())))


_extractors = {}  # the last two, by backbone, size and calibration: building and compiling one takes seconds


def _extractor(backbone, input_size, calibration, cache_dir):
    """The compiled forward pass of a backbone, and a hash of its weights."""
    import tensorflow as tf

    needed = models.needs_batch_norm(backbone)
    if needed and calibration is None:
        raise ValueError(
            f"{backbone} starts from other weights here ({models.weights_source(backbone)}), and its batch "
            "normalization has to be set on training photos; pass calibration=, the frame of the training set"
        )
    photos = tuple(map(content, calibration["path"])) if needed else ()
    key = (backbone, input_size, photos, models.weights_source(backbone))
    if key in _extractors:
        return _extractors[key]
    model = models.feature_extractor(backbone, input_size)
    if needed:
        calibrate(model, calibration, input_size, cache_dir)
        model.trainable = False
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(variable.numpy().tobytes())
    forward = tf.function(lambda images: model(images, training=False), autograph=False).get_concrete_function(
        tf.TensorSpec((BATCH_SIZE, input_size, input_size, 3), tf.float32)
    )

    def run(images, model=model):  # the model must live as long as the function that uses its variables
        return forward(tf.convert_to_tensor(images, tf.float32)).numpy()

    while len(_extractors) >= 2:
        _extractors.pop(next(iter(_extractors)))
    _extractors[key] = run, digest.hexdigest()[:12]
    return _extractors[key]


def _compute(extractor, frame, input_size, augment, draws, verbose):
    """Yields float32 (<= BLOCK, D) over the frame."""
    from tqdm import tqdm

    silent = not verbose or frame.empty
    with tqdm(total=len(frame), unit="photo", desc="features", disable=silent, file=sys.stdout) as bar:
        for start in range(0, len(frame), BLOCK):
            images = pipeline.load_images(frame.iloc[start : start + BLOCK], input_size)
            blocks = []
            for low in range(0, len(images), BATCH_SIZE):
                batch = images[low : low + BATCH_SIZE].astype(np.float32)
                n = len(batch)
                if draws is not None:
                    drawn = pipeline.random_transforms(augment, draws[start + low : start + low + n], input_size)
                    batch = np.asarray(pipeline.apply_transforms(batch, *drawn))
                # One batch size, one trace: the last batch is filled up and cut again.
                padded = np.concatenate([batch, np.zeros((BATCH_SIZE - n, *batch.shape[1:]), np.float32)])
                blocks.append(extractor(padded)[:n])
                bar.update(n)
            yield np.concatenate(blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A multinomial logistic regression on features, ready to start a Dense head from.

    Attributes:
        kernel: float32 (D, C), for features as they are (the standardisation is folded in).
        bias: float32 (C,).
        strength: the chosen C of scikit-learn (inverse regularisation).
        validation_accuracy: what it was chosen by, or None where there was only one to choose from.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    validation_accuracy: float | None

    def predict(self, features):
        """Probabilities, float32 (n, C), of features (n, D)."""
        logits = np.asarray(features, np.float64) @ self.kernel + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)

    def __repr__(self):
        judged = "" if self.validation_accuracy is None else f", validation accuracy {self.validation_accuracy:.3f}"
        return (
            f"LinearProbe({self.kernel.shape[0]} features, {self.kernel.shape[1]} classes, C={self.strength:g}{judged})"
        )


def linear_probe(
    features, labels, validation_features=None, validation_labels=None, classes=(),
    strengths=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), sample_weight=None,
):  # fmt: skip
    """Logistic regression on frozen features, its strength chosen on validation (never on test).

    Minimises ||W||^2 / 2 + C * sum of cross-entropies over standardised features (scikit-learn's LogisticRegression).

    Args:
        features: float (n, D).
        labels: n class names.
        validation_features, validation_labels: the part to choose by; without them the middle strength is taken.
        classes: class names in order.
        strengths: the values of C to try.
        sample_weight: n weights, or None.

    Returns:
        LinearProbe.

    Raises:
        ValueError: a class without a photo, or an unknown label.

    Example:
        >>> x = np.array([[0.0], [0.1], [1.0], [1.1]])
        >>> linear_probe(x, list("aabb"), x, list("aabb"), classes="ab").validation_accuracy
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    labels, features = pipeline.label_numbers(labels, classes), np.asarray(features, np.float32)
    if absent := [name for number, name in enumerate(classes) if number not in labels]:
        raise ValueError(f"a probe needs a photo of every class, got none of {', '.join(map(str, absent))}")
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread < 1e-6] = 1.0  # a dead feature stays as it is
    scaled = (features - mean) / spread
    judged = validation_features is not None and len(validation_features) > 0
    strengths = sorted(strengths) if judged else sorted(strengths)[len(strengths) // 2 :][:1]
    best = None
    # warm_start: the path from strong to weak regularisation, each fit starting where the last one ended.
    fit = LogisticRegression(max_iter=300, warm_start=True)
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged to the last digit is converged enough to choose by
            fit.set_params(C=strength).fit(scaled, labels, sample_weight=sample_weight)
        kernel, bias = fit.coef_.T, fit.intercept_
        if len(classes) == 2:  # scikit-learn keeps one column for two classes; a softmax head has two
            kernel, bias = np.hstack([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2
        kernel = kernel / spread[:, None]
        probe = LinearProbe(kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32), strength, None)
        if judged:
            wanted = pipeline.label_numbers(validation_labels, classes)
            right = probe.predict(validation_features).argmax(axis=1) == wanted
            probe = dataclasses.replace(probe, validation_accuracy=float(right.mean()))
        if best is None or probe.validation_accuracy > best.validation_accuracy:
            best = probe
    return best
