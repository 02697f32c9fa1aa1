"""Photos to batches: decode, resize, cache, shuffle, augment, batch, prefetch.

Decoding is `utils.classify.photo.read_photo` (Pillow) in threads, so that training, evaluation and the shipped
classifier see the same pixels; everything after it is tf.data. Decoded photos are kept, in memory where they fit and on
disk where they do not, so each is decoded once. Which transform a photo gets depends on nothing but a seed, the epoch
and the photo's number, so that an interrupted training that goes on sees what an undisturbed one would have seen.
"""

import dataclasses
import hashlib
import itertools
import logging
import pathlib
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from utils import files
from utils._checks import whole
from utils.classify import photo
from utils.environment import describe

from . import splits

MEMORY_SHARE = 0.25  # of the memory that is free now: what "auto" lets decoded photos take
_DECODED_VERSION = 1  # of decoded pixels: raise it when a change alters them
_CHUNK = 256  # photos that are decoded at a time on their way to the disk
_log = logging.getLogger(__name__)
_in_memory = weakref.WeakValueDictionary()  # decoded photos that some dataset still uses, by key


@dataclasses.dataclass(frozen=True)
class Augment:
    """How far photos are transformed; each photo draws its own transform, uniformly within these ranges.

    What comes in from outside the photo repeats its edge, as in Keras' ImageDataGenerator.

    Attributes:
        flip: mirror left and right, every second photo.
        rotation: up to so many degrees either way.
        zoom: size times 1 - zoom to 1 + zoom.
        shift: up to this share of the side, down or up and left or right.
        brightness: pixels times 1 - brightness to 1 + brightness.
        contrast: distance from the photo's mean times 1 - contrast to 1 + contrast.
        aspect: width against height times 1 / (1 + aspect) to 1 + aspect, log-uniform.

    Example:
        >>> Augment(flip=True, rotation=15)
        Augment(flip=True, rotation=15, zoom=0.0, shift=0.0, brightness=0.0, contrast=0.0, aspect=0.0)
    """

    flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    aspect: float = 0.0

    def __post_init__(self):
        limits = {"rotation": 180, "zoom": 0.9, "shift": 1, "brightness": 1, "contrast": 1, "aspect": 2}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"{name} must be a number from 0 to {limit}, got {value}")

    @classmethod
    def light(cls):
        """What a photo of the same garment could look like: small turns and shifts, a little light."""
        return cls(flip=True, rotation=10.0, zoom=0.1, shift=0.05, brightness=0.1, contrast=0.1)

    @classmethod
    def stretched(cls):
        """Light, and stretched: squashed to a square, a landscape photo is 1.8 times as narrow as a portrait one."""
        return dataclasses.replace(cls.light(), aspect=0.8)

    @classmethod
    def strong(cls):
        """More of everything, for long training."""
        return cls(flip=True, rotation=25.0, zoom=0.2, shift=0.15, brightness=0.25, contrast=0.25)

    @classmethod
    def named(cls, value):
        """An Augment from "light", "stretched", "strong", None (no transform: None) or an Augment."""
        if value is None or isinstance(value, cls):
            return value
        if value not in ("light", "stretched", "strong"):
            raise ValueError(f"augment must be 'light', 'stretched', 'strong', None or an Augment, got {value!r}")
        return getattr(cls, value)()


def batches(
    frame, classes, input_size=224, batch_size=32, training=False, augment=None, seed=0, cache="auto", cache_dir=None,
    first_epoch=0,
):  # fmt: skip
    """Batches of photos and one-hot labels for Keras.

    Deterministic: the order of epoch e depends on (seed, e), the transform of a photo on (seed, e, its row), nothing
    else. Each pass over the result is the next epoch, so a run that resumes at epoch 5 asks for `first_epoch=5`.

    Args:
        frame: DataFrame with `path` and `label`, and `copy` where it was balanced.
        classes: sequence of labels; the column of each in the one-hot labels.
        input_size: side in pixels; photos are squashed to a square, antialiased.
        batch_size: photos per batch.
        training: shuffle, and augment if `augment` says how.
        augment: Augment, "light", "stretched", "strong" or None; only in training.
        seed: of order and transforms.
        cache: where decoded photos are kept: "memory", "disk", or "auto" (memory if they take at most a quarter of what
            is free, else disk; the log says which).
        cache_dir: folder for the disk cache; default `data/.cache`.
        first_epoch: number of the first pass; or a callable that says the number of the pass that begins, which is the
            safe way with Keras' `fit`: it takes one pass more at its start where it still has to build the model, and
            under every distribution strategy.

    Returns:
        tf.data.Dataset of (float32 (b, s, s, 3) in 0..255, float32 (b, C)), with known cardinality.

    Raises:
        ValueError: no rows, an unknown label or cache, or a photo that cannot be decoded, by name.
        FileNotFoundError: a photo is not there.

    Example:
        >>> from utils import datasets
        >>> drawn = datasets.load("sketches", root=__import__("tempfile").mkdtemp(), per_class=6, size=32)
        >>> images, labels = next(iter(batches(drawn.frame, drawn.classes, input_size=32, batch_size=8)))
        >>> images.shape, labels.shape
        (TensorShape([8, 32, 32, 3]), TensorShape([8, 10]))
    """
    import tensorflow as tf

    splits.require(frame, ["path", "label"], "a frame to make batches of")
    targets = tf.constant(label_numbers(frame["label"], classes), tf.int32)
    batch_size = whole("batch_size", batch_size)
    augment = Augment.named(augment) if training else None
    n = len(frame)
    read = _reader(frame, input_size, cache, cache_dir)
    passes = itertools.count(first_epoch) if not callable(first_epoch) else iter(first_epoch, object())

    def rows_of_next_pass():
        epoch = next(passes)
        rows = np.random.default_rng([seed, epoch, 20]).permutation(n) if training else np.arange(n)
        for start in range(0, n, batch_size):
            yield np.int64(epoch), rows[start : start + batch_size]

    def draw(epoch, rows):
        return random_transforms(augment, [(seed, int(epoch), int(row), 21) for row in rows], input_size)

    def batch(epoch, rows):
        images = tf.ensure_shape(read(rows), [None, input_size, input_size, 3])
        labels = tf.one_hot(tf.gather(targets, rows), len(classes))
        if augment is None:
            return tf.cast(images, tf.float32), labels
        matrices, light = tf.numpy_function(draw, [epoch, rows], [tf.float32, tf.float32], stateful=False)
        images = apply_transforms(images, tf.ensure_shape(matrices, [None, 8]), tf.ensure_shape(light, [None, 2]))
        return tf.ensure_shape(images, [None, input_size, input_size, 3]), labels

    signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([None], tf.int64))
    stream = tf.data.Dataset.from_generator(rows_of_next_pass, output_signature=signature)
    stream = stream.apply(tf.data.experimental.assert_cardinality(-(-n // batch_size)))
    return stream.map(batch, num_parallel_calls=describe()["cores"], deterministic=True).prefetch(2)


def label_numbers(labels, classes):
    """int array (n,): the number of each label in `classes`; an unknown one is named."""
    if isinstance(classes, set | frozenset):
        raise ValueError(f"classes must be a list in the order of the numbers, got a {type(classes).__name__}")
    index = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(set(labels) - set(index), key=str):
        raise ValueError(f"expected labels among {tuple(classes)}, got {unknown[0]!r}; load the dataset again")
    return np.array([index[label] for label in labels], int)


def decode(path, input_size, copy=0):
    """One photo as the models see it: uint8 (input_size, input_size, 3); copy k > 0 is its k-th random transform."""
    image = photo.read_photo(path, input_size)
    if copy == 0:
        return image
    # the key is the file's name, not its folder: the same copies on every machine
    name = int.from_bytes(hashlib.sha256(pathlib.Path(path).name.encode()).digest()[:8], "big")
    drawn = random_transforms(Augment.light(), [(name, int(copy), 22)], input_size)
    return np.rint(apply_transforms(image[None], *drawn)[0].numpy()).astype(np.uint8)


def load_images(frame, input_size, out=None):
    """All photos of a frame (`path`, and `copy` where it was balanced), decoded in threads.

    Returns:
        uint8 array (n, input_size, input_size, 3), rows as in `frame`; `out` where it is given.

    Raises:
        FileNotFoundError, ValueError: the first photo that cannot be decoded, by name.
    """
    if not isinstance(frame, pd.DataFrame) or "path" not in frame:
        raise ValueError('photos must be a DataFrame with the column path; pass pd.DataFrame({"path": paths})')
    input_size = whole("input_size", input_size)
    paths = list(frame["path"])
    copies = list(frame["copy"]) if "copy" in frame else [0] * len(paths)
    if out is None:
        out = np.empty((len(paths), input_size, input_size, 3), np.uint8)

    def place(row):
        out[row] = decode(paths[row], input_size, copies[row])

    # two threads per core: one reads its file or waits for the interpreter while the other decodes
    with ThreadPoolExecutor(2 * describe()["cores"]) as pool:
        for _ in pool.map(place, range(len(paths))):
            pass
    return out


def random_transforms(augment, keys, side):
    """Draw a transform for each key (a tuple of ints): the same key draws the same transform, in any company.

    Returns:
        (n, 8) float32, output (x, y) to input (x, y) as `tf.raw_ops.ImageProjectiveTransformV3` takes it, and (n, 2)
        float32 factors of brightness and contrast.
    """
    draws = np.stack([np.random.default_rng(key).random(8) for key in keys]) if len(keys) else np.zeros((0, 8))
    spread = 2 * draws - 1
    mirror = np.where(augment.flip & (draws[:, 0] < 0.5), -1.0, 1.0)
    angle = np.deg2rad(augment.rotation) * spread[:, 1]
    scale = 1 / (1 + augment.zoom * spread[:, 2])
    # about the centre: first the shift, then turn, zoom and stretch, then the mirror
    wide = np.exp(np.log1p(augment.aspect) * spread[:, 7] / 2)
    a, b = mirror * scale * np.cos(angle) / wide, -mirror * scale * np.sin(angle) / wide
    c, d = scale * np.sin(angle) * wide, scale * np.cos(angle) * wide
    centre = (side - 1) / 2
    x, y = -centre - augment.shift * side * spread[:, 3], -centre - augment.shift * side * spread[:, 4]
    zero = np.zeros_like(a)
    matrices = np.stack([a, b, a * x + b * y + centre, c, d, c * x + d * y + centre, zero, zero], axis=1)
    light = 1 + np.stack([augment.brightness * spread[:, 5], augment.contrast * spread[:, 6]], axis=1)
    return matrices.astype(np.float32), light.astype(np.float32)


def apply_transforms(images, matrices, light):
    """Apply what `random_transforms` drew to photos (b, s, s, 3) in 0..255: float32 tensor of that shape and range."""
    import tensorflow as tf

    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=matrices, output_shape=tf.shape(images)[1:3],  # uint8 stays uint8: half the work
        interpolation="BILINEAR", fill_mode="NEAREST", fill_value=0.0,
    )  # fmt: skip
    images = tf.cast(images, tf.float32)
    # brightness b, then contrast c about the mean m: m b + (x b - m b) c = x (b c) + m b (1 - c), in fewer passes
    bright, contrast = light[:, None, None, :1], light[:, None, None, 1:]
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value(images * (bright * contrast) + mean * bright * (1 - contrast), 0.0, 255.0)


def _reader(frame, input_size, cache, cache_dir):
    """A function from rows (int64 tensor) to uint8 photos (tensor), out of the chosen cache."""
    import tensorflow as tf

    if cache not in ("memory", "disk", "auto"):
        raise ValueError(f"cache must be 'memory', 'disk' or 'auto', got {cache!r}")
    key, size = _key(frame, input_size), len(frame) * input_size * input_size * 3
    if cache == "auto":
        free = _free_memory()
        cache = "memory" if key in _in_memory or size <= MEMORY_SHARE * free else "disk"
        _log.info("%d photos at %d px go to the %s cache: %d MiB decoded, %d MiB of memory free",
                  len(frame), input_size, cache, size // 2**20, free // 2**20)  # fmt: skip
    if cache == "disk":
        kept = _on_disk(frame, input_size, files.cache_dir(cache_dir) / f"photos-{key}.npy")
        return lambda rows: tf.numpy_function(lambda chosen: kept[chosen], [rows], tf.uint8, stateful=False)
    # a tensor and not a NumPy function: TensorFlow never lets go of what a NumPy function refers to
    images = _in_memory.get(key)
    if images is None:
        raw = np.empty(size + 64, np.uint8)  # TensorFlow takes over without a copy what is aligned to 64 bytes
        start = -raw.ctypes.data % 64
        raw = raw[start : start + size].reshape(len(frame), input_size, input_size, 3)
        images = _in_memory[key] = tf.constant(load_images(frame, input_size, raw))
    return lambda rows: tf.gather(images, rows)


def _on_disk(frame, input_size, path):
    shape = (len(frame), input_size, input_size, 3)
    try:
        images = np.load(path, mmap_mode="r")
        if images.shape == shape and images.dtype == np.uint8:
            return images
    except (OSError, ValueError, EOFError):
        pass
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    # written, not mapped: writing to a mapped file on a full disk kills the process
    with files.atomic_path(path) as part, part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(frame), _CHUNK):
            file.write(load_images(frame.iloc[start : start + _CHUNK], input_size))
    return np.load(path, mmap_mode="r")


def _key(frame, input_size):
    """Names the decoded photos by content: bytes (by SHA-256, else size and time), copies, size, order."""
    digest = hashlib.sha256(f"{_DECODED_VERSION} {input_size}".encode())
    known = frame.assign(**{name: value for name, value in (("sha256", ""), ("copy", 0)) if name not in frame})
    for path, sha, copy in known[["path", "sha256", "copy"]].itertuples(index=False, name=None):
        path = pathlib.Path(path)
        if not sha:
            try:
                status = path.stat()
            except FileNotFoundError:
                raise FileNotFoundError(f"there is no photo {path}; check the path") from None
            sha = f"{path} {status.st_size} {status.st_mtime_ns}"
        digest.update(f"{sha} {path.name if copy else ''} {copy}\n".encode())
    return digest.hexdigest()[:24]


def _free_memory():
    """Bytes of memory that are free now; half of all memory, or 2 GiB, where the system does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return int((describe()["memory_gib"] or 4) / 2 * 2**30)
