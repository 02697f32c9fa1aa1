"""Random transforms of batches: flip, rotation, zoom, shift, brightness, contrast.

Which transform a photo gets depends on nothing but a seed, the epoch and the photo's number, so that an interrupted
training that goes on sees what an undisturbed one would have seen, whatever the batch size and the order.
"""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augment:
    """How far photos are transformed; each photo draws its own transform, uniformly within these ranges.

    Attributes:
        flip: mirror left and right, every second photo.
        rotation: up to so many degrees either way.
        zoom: size times 1 - zoom to 1 + zoom.
        shift: up to this share of the side, down or up and left or right.
        brightness: pixels times 1 - brightness to 1 + brightness.
        contrast: distance from the photo's mean times 1 - contrast to 1 + contrast.

    What comes in from outside the photo repeats its edge, as in Keras' ImageDataGenerator.

    Raises:
        ValueError: a range that makes no sense.

    Example:
        >>> Augment(flip=True, rotation=15)
        Augment(flip=True, rotation=15, zoom=0.0, shift=0.0, brightness=0.0, contrast=0.0)
    """

    flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self):
        limits = {"rotation": 180, "zoom": 0.9, "shift": 1, "brightness": 1, "contrast": 1}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"{name} is {value}; give a number from 0 to {limit}")

    @classmethod
    def light(cls):
        """What a photo of the same garment could look like: small turns and shifts, a little light."""
        return cls(flip=True, rotation=10.0, zoom=0.1, shift=0.05, brightness=0.1, contrast=0.1)

    @classmethod
    def strong(cls):
        """More of everything, for long training."""
        return cls(flip=True, rotation=25.0, zoom=0.2, shift=0.15, brightness=0.25, contrast=0.25)

    @classmethod
    def named(cls, value):
        """An Augment from "light", "strong", None (no transform: None) or an Augment."""
        if value is None or isinstance(value, cls):
            return value
        if value not in ("light", "strong"):
            raise ValueError(f"there is no augmentation {value!r}; use 'light', 'strong', None or an Augment")
        return getattr(cls, value)()


def random_transforms(augment, keys, side):
    """Draw a transform for each key.

    Args:
        augment: Augment.
        keys: sequence of tuples of non-negative ints, one a photo, e.g. (seed, epoch, photo); the same key draws the
            same transform, in any company.
        side: of the photos, in pixels.

    Returns:
        (n, 8) float32 projective transforms, output (x, y) to input (x, y) as `tf.raw_ops.ImageProjectiveTransformV3`
        takes them, and (n, 2) float32 factors of brightness and contrast.
    """
    draws = np.stack([np.random.default_rng(key).random(7) for key in keys]) if len(keys) else np.zeros((0, 7))
    spread = 2 * draws - 1
    mirror = np.where(augment.flip & (draws[:, 0] < 0.5), -1.0, 1.0)
    angle = np.deg2rad(augment.rotation) * spread[:, 1]
    scale = 1 / (1 + augment.zoom * spread[:, 2])
    # about the centre: first the shift, then turn and zoom, then the mirror
    a, b = mirror * scale * np.cos(angle), -mirror * scale * np.sin(angle)
    c, d = scale * np.sin(angle), scale * np.cos(angle)
    centre = (side - 1) / 2
    x, y = -centre - augment.shift * side * spread[:, 3], -centre - augment.shift * side * spread[:, 4]
    zero = np.zeros_like(a)
    matrices = np.stack([a, b, a * x + b * y + centre, c, d, c * x + d * y + centre, zero, zero], axis=1)
    light = 1 + np.stack([augment.brightness * spread[:, 5], augment.contrast * spread[:, 6]], axis=1)
    return matrices.astype(np.float32), light.astype(np.float32)


def apply_transforms(images, matrices, light):
    """Apply drawn transforms to a batch; works eagerly and inside `tf.function`.

    Args:
        images: (b, s, s, 3), uint8 or float in 0..255.
        matrices, light: as `random_transforms` returns them.

    Returns:
        float32 tensor (b, s, s, 3) in 0..255.
    """
    shape = tf.shape(images)
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,  # uint8 stays uint8 here, which halves the work
        transforms=matrices,
        output_shape=shape[1:3],
        interpolation="BILINEAR",
        fill_mode="NEAREST",
        fill_value=0.0,
    )
    images = tf.cast(images, tf.float32)
    # brightness b, then contrast c about the mean m: m b + (x b - m b) c = x (b c) + m b (1 - c), in fewer passes
    bright, contrast = light[:, None, None, :1], light[:, None, None, 1:]
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return tf.clip_by_value(images * (bright * contrast) + mean * bright * (1 - contrast), 0.0, 255.0)


def augment_batch(images, augment, seed):
    """Transform a batch of photos at random, the same way for the same seed.

    Args:
        images: (b, s, s, 3), array or tensor, 0..255.
        augment: Augment, "light", "strong", or None (photos come back as they are).
        seed: int or tuple of ints; photo i of the batch draws from (*seed, i).

    Returns:
        float32 tensor (b, s, s, 3) in 0..255.

    Raises:
        ValueError: images of another shape, or an unknown augmentation.

    Example:
        >>> photos = np.zeros((2, 8, 8, 3), np.uint8)
        >>> augment_batch(photos, Augment.light(), seed=0).shape
        TensorShape([2, 8, 8, 3])
    """
    augment = Augment.named(augment)
    if len(images.shape) != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images have the shape {tuple(images.shape)}; give (photos, side, side, 3)")
    if augment is None:
        return tf.cast(images, tf.float32)
    start = tuple(seed) if isinstance(seed, (tuple, list)) else (seed,)
    keys = [(*start, i) for i in range(int(images.shape[0]))]
    return apply_transforms(images, *random_transforms(augment, keys, int(images.shape[1])))
