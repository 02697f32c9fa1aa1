"""Backbone features, computed once a photo and kept on disk, and the linear probe on top of them.

A frozen backbone gives the same features in every epoch, so that passing the photos through it once replaces hundreds
of passes; the head then trains in seconds. Cached features are keyed by the photo's bytes, not by its path.
"""

import hashlib
import pathlib
import sys

import numpy as np

from utils import files
from utils.training import run_store
from utils.training.feature_cache import FeatureCache
from utils.training.linear_probe import LinearProbe, linear_probe

__all__ = ["FeatureCache", "LinearProbe", "calibrate", "extract", "linear_probe"]

BATCH_SIZE = 32  # photos a forward pass; 16 to 32 are fastest on small CPUs
FLUSH_EVERY = 256  # photos between two commits of the cache: an interruption loses at most these


def extract(
    backbone, frame, input_size=224, cache_dir=None, views=0, augment=None, seed=0, verbose=0, calibration=None
):
    """Pooled features of photos from a pretrained backbone in inference mode; each photo passes through it once.

    Args:
        backbone: key of ``models.BACKBONES``.
        frame: DataFrame with a column `path` (and `copy`, where ``splits.balance`` made one).
        input_size: side of the square input, in pixels.
        cache_dir: folder of the cache; None = ``files.cache_dir()``, False = no cache on disk.
        views: number of augmented views a photo beside the plain one.
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
        >>> from utils import datasets, features  # doctest: +SKIP
        >>> frame = datasets.load("sketches", per_class=4, size=64).part("test")  # doctest: +SKIP
        >>> features.extract("mobilenet_v2", frame).shape[1]  # doctest: +SKIP
        1280
    """
    if len(frame) == 0:
        raise ValueError("there is no photo to extract features from: the frame is empty; check the split")
    if views < 0 or (views and augment is None):
        raise ValueError(f"views is {views}, augment is {augment}; give views >= 0, and an Augment for views > 0")
    copies = frame["copy"].to_numpy() if "copy" in frame.columns else np.zeros(len(frame), int)
    digests = [_content(path) for path in frame["path"]]
    photos = [f"{digest}/{int(copy)}" for digest, copy in zip(digests, copies, strict=True)]
    extractor, weights_id = _extractor(backbone, input_size, calibration, cache_dir)
    cache = None
    if cache_dir is not False:
        cache = FeatureCache(files.cache_dir(cache_dir) / f"features-{backbone}-{input_size}-{weights_id}.sqlite")
    stacks = []
    for view in range(views + 1):
        # The description of the view is part of the key: other augmentation, other features.
        suffix = f"/{view}/{seed}/{augment!r}" if view else ""
        keys = [photo + suffix for photo in photos]
        known = cache.get(keys) if cache else {}
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        if missing:
            rows = np.array(list(missing.values()))
            # A view depends on the photo, the seed and its number, not on its neighbours.
            draws = [(seed, view, int(photos[row][:12], 16), int(copies[row]), 31) for row in rows] if view else None
            fresh = _compute(extractor, frame.iloc[rows], input_size, augment, draws, verbose)
            names = list(missing)
            for start, block in fresh:
                part = dict(zip(names[start : start + len(block)], block, strict=True))
                known.update(part)
                if cache:
                    cache.put(part)
        stacks.append(np.stack([known[key] for key in keys]))
    return np.stack(stacks) if views else stacks[0]


def _content(path):
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:32]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the photo {path} is missing; load the dataset again") from error


def calibrate(model, frame, input_size, cache_dir=None, limit=1500, seed=0):
    """Re-estimate the batch-norm statistics of a model on training photos, once: the result is kept on disk.

    Args:
        model: keras.Model with the backbone's layers, changed in place.
        frame: DataFrame of training photos; `limit` of them are drawn at random.
        input_size: side of the square input, in pixels.
        cache_dir: as for :func:`extract`.
        limit: most photos to look at; about 1,500 are plenty.
        seed: of the drawing.

    Returns:
        the model.
    """
    from utils import models
    from utils.datasets import pipeline

    rows = np.sort(np.random.default_rng([seed, 32]).permutation(len(frame))[:limit])
    some = frame.iloc[rows]
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    variables = [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
    digest = hashlib.sha256(repr((input_size, seed, len(variables))).encode())
    for norm in norms[:1]:
        digest.update(run_store.value_of(norm.gamma).tobytes())
    copies = some["copy"] if "copy" in some.columns else [0] * len(some)
    for path, copy in zip(some["path"], copies, strict=True):
        digest.update(f"{_content(path)}/{int(copy)}".encode())
    path = (
        files.cache_dir(cache_dir or None)
        / f"batch-norm-{model.name.split('_features')[0]}-{digest.hexdigest()[:16]}.npz"
    )
    if path.exists():
        try:
            run_store.assign(variables, run_store.read_arrays(path), f"statistics in {path.name}")
            return model
        except run_store.DamagedRun:
            path.unlink()
    models.reestimate_batch_norm(model, pipeline.load_images(some, input_size), batch_size=32, seed=seed)
    if cache_dir is not False:
        files.write_bytes(path, run_store.pack(run_store.variables_to_arrays(variables)))
    return model


_extractors = {}  # the last two, by backbone, size and calibration: building and compiling one takes seconds


def _extractor(backbone, input_size, calibration, cache_dir):
    """The compiled forward pass of a backbone, and a hash of its weights."""
    import tensorflow as tf

    from utils import models

    needed = models.needs_batch_norm(backbone)
    if needed and calibration is None:
        raise ValueError(
            f"{backbone} starts from other weights here ({models.weights_source(backbone)}), and its batch "
            "normalization has to be set on training photos: give calibration=, the frame of the training part"
        )
    photos = tuple(calibration["path"]) if needed else ()
    key = (backbone, input_size, hash(photos), models.weights_source(backbone))
    if key in _extractors:
        return _extractors[key]
    model = models.feature_extractor(backbone, input_size)
    if needed:
        calibrate(model, calibration, input_size, cache_dir)
        model.trainable = False
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(np.ascontiguousarray(run_store.value_of(variable)).tobytes())
    shape = (BATCH_SIZE, input_size, input_size, 3)
    forward = tf.function(lambda images: model(images, training=False), autograph=False).get_concrete_function(
        tf.TensorSpec(shape, tf.float32)
    )

    def run(images, model=model):  # the model must live as long as the function that uses its variables
        return forward(tf.convert_to_tensor(images, tf.float32)).numpy()

    while len(_extractors) >= 2:
        _extractors.pop(next(iter(_extractors)))
    _extractors[key] = run, digest.hexdigest()[:12]
    return _extractors[key]


def _compute(extractor, frame, input_size, augment, draws, verbose):
    """Yields (start, float32 (<= FLUSH_EVERY, D)) over the frame; memory does not grow with the number of photos."""
    from tqdm import tqdm

    from utils.datasets import pipeline
    from utils.datasets.pipeline import apply_transforms, random_transforms

    with tqdm(total=len(frame), unit="photo", desc="features", disable=not verbose, file=sys.stdout) as bar:
        for start in range(0, len(frame), FLUSH_EVERY):
            images = pipeline.load_images(frame.iloc[start : start + FLUSH_EVERY], input_size)
            blocks = []
            for low in range(0, len(images), BATCH_SIZE):
                batch = images[low : low + BATCH_SIZE].astype(np.float32)
                n = len(batch)
                if draws is not None:
                    drawn = random_transforms(augment, draws[start + low : start + low + n], input_size)
                    batch = np.asarray(apply_transforms(batch, *drawn))
                # One batch size, one trace: the last batch is filled up and cut again.
                padded = np.concatenate([batch, np.zeros((BATCH_SIZE - n, *batch.shape[1:]), np.float32)])
                blocks.append(extractor(padded)[:n])
                bar.update(n)
            yield start, np.concatenate(blocks)
