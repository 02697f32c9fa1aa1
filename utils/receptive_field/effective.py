"""The effective receptive field: how much each pixel really moves a feature, measured by gradients over real images.

The theoretical receptive field says which pixels can matter; most of them hardly do. Luo, Li, Urtasun, Zemel,
"Understanding the effective receptive field in deep convolutional neural networks", NeurIPS 2016 (arXiv:1701.04128)
backpropagate from the central feature and find a Gaussian that takes up only a fraction of the theoretical square.
"""

import dataclasses

import keras
import numpy as np
import pandas as pd

from .._checks import whole
from ..layer_calls import keras_graph
from .field import result_of
from .walk import Walk

# A pixel counts where it moves the feature by more than this share of the strongest pixel: what a Gaussian has left at
# two standard deviations' worth of mass (1 - 0.9545), as in Luo et al., section 3.
THRESHOLD = 0.0455


@dataclasses.dataclass(frozen=True, repr=False)
class EffectiveField:
    """The measured receptive field of a layer's central feature; tuples are (y, x), lengths in pixels of the input.

    Attributes:
        layer: path of the layer.
        feature: the feature that was looked at.
        map: (height, width) float32, root mean square of the gradient over images and channels, its maximum 1.
        center: centre of the fitted Gaussian.
        sigma: its standard deviation, fitted to the map's column and row means.
        gaussian_size: 4 * sigma, which holds 95.45 % of a Gaussian.
        area_size: side of a square with as many pixels as those above 4.55 % of the maximum.
        theoretical: the ReceptiveField of the same layer.
        share_inside: share of the squared gradient that lies in the theoretical region: below 1 only where something
            sees the whole image.
        images: number of images.
    """

    layer: str
    feature: tuple
    map: np.ndarray
    center: tuple
    sigma: tuple
    gaussian_size: tuple
    area_size: float
    theoretical: object
    share_inside: float
    images: int

    def to_frame(self):
        """One row: theoretical and effective sizes in pixels, and the part of the theoretical area that is used."""
        theoretical = self.theoretical.size
        return pd.DataFrame(
            [
                {
                    "layer": self.layer,
                    "theoretical_y_px": theoretical[0],
                    "theoretical_x_px": theoretical[1],
                    "gaussian_y_px": round(self.gaussian_size[0], 1),
                    "gaussian_x_px": round(self.gaussian_size[1], 1),
                    "area_size_px": round(self.area_size, 1),
                    "area_share": round(self.area_size**2 / (theoretical[0] * theoretical[1]), 4),
                    "images": self.images,
                }
            ]
        )

    def __repr__(self):
        gaussian = ", ".join(f"{size:.1f}" for size in self.gaussian_size)
        return (
            f"EffectiveField(layer={self.layer!r}, gaussian_size=({gaussian}), area_size={self.area_size:.1f}, "
            f"theoretical={self.theoretical.size}, images={self.images})"
        )

    def _repr_html_(self):
        return self.to_frame().to_html(index=False)


def effective(model, images, layer=None, *, feature=None, batch_size=8, seed=0):
    """Measure the effective receptive field of one layer over real images.

    For each image the gradient of the central feature with respect to the pixels is taken, its channels weighted with
    random normal numbers: the mean square over such weights is the sum of the squared gradients of all channels,
    without the cancellation that a plain sum over channels has (Hutchinson's estimator).

    Args:
        model: a Keras 3 model with one image input, on the TensorFlow backend: Functional, Sequential, nested,
            subclassed.
        images: (n, height, width, channels) array in the range that the model takes and in its own layout (channels
            second where its input has them so); of any type of number.
        layer: name or path of a layer with a grid of features, or the layer; None: the last one that has a grid.
        feature: (y, x) of the feature to look at; None: the central one.
        batch_size: images at a time.
        seed: of the channel weights.

    Returns:
        EffectiveField.

    Raises:
        ValueError: images that do not fit, a layer without a grid, an operation inside a layer of your own, a feature
            that no image moves.
        RuntimeError: Keras runs on another backend.

    Example:
        >>> model = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(4, 3)])
        >>> field = effective(model, np.ones((1, 9, 9, 1), "float32"))
        >>> field.theoretical.size, field.share_inside
        ((5, 5), 1.0)

    Source: Luo et al. 2016, arXiv:1701.04128; the size above the threshold and the Gaussian are theirs.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"effective takes gradients with TensorFlow and Keras runs on {keras.backend.backend()}; "
            "set KERAS_BACKEND=tensorflow"
        )
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (n, height, width, channels) with n at least 1, got {images.shape}")
    if images.dtype.kind not in "buif":
        raise ValueError(f"images must hold numbers, got {images.dtype}")
    batch_size = whole("batch_size", batch_size)
    walk, call, theoretical = _theoretical(model, layer, images)
    grid = theoretical.grid
    feature = tuple(count // 2 for count in grid) if feature is None else feature
    two = np.ndim(feature) == 1 and len(feature) == 2 and all(hasattr(u, "__index__") for u in feature)
    if not two or any(not 0 <= u < count for u, count in zip(feature, grid, strict=True)):
        raise ValueError(f"layer {theoretical.layer!r} has {grid} features and none at {feature}; count from 0")
    feature, forward = tuple(feature), _forward(walk, call, images)
    energy = _gradient_energy(forward, images, walk.channels, theoretical.places, feature, batch_size, seed)
    if not energy.max() > 0:
        raise ValueError(
            f"no image moves feature {feature} of {theoretical.layer!r} (dead or saturated); "
            "pass other images or another feature"
        )
    amplitude = np.sqrt(energy / energy.max()).astype("float32")
    fits = [
        _gaussian(amplitude.mean(axis=1 - axis), feature_center)
        for axis, feature_center in enumerate(theoretical.center(*feature))
    ]
    region = theoretical.region(*feature, clip=True)
    return EffectiveField(
        layer=theoretical.layer,
        feature=feature,
        map=amplitude,
        center=tuple(center for center, _ in fits),
        sigma=tuple(sigma for _, sigma in fits),
        gaussian_size=tuple(4 * sigma for _, sigma in fits),
        area_size=float(np.sqrt((amplitude > THRESHOLD).sum())),
        theoretical=theoretical,
        share_inside=float(energy[region.slices].sum() / energy.sum()),
        images=len(images),
    )


def _theoretical(model, layer, images):
    """(walk, call, ReceptiveField) of the layer that is asked for, at the size of the images."""
    built = getattr(model, "inputs", None) or ()
    if len(built) > 1:
        raise ValueError(f"{model.name!r} has {len(built)} inputs; effective needs a model with one image input")
    for reference in built:
        shape = tuple(reference.shape)
        if len(shape) != 4 or any(a not in (None, b) for a, b in zip(shape[1:], images.shape[1:], strict=True)):
            raise ValueError(
                f"images must have the shape {shape} that {model.name!r} was built for, got {images.shape}"
            )
    walk = Walk(model, None, None, None, "ignore", shape=(None, *images.shape[1:]))
    if layer is not None:
        call, number = walk.find(layer)
        found = result_of(walk, call, number)
        if found is None or found.lost is not None or len(found.grid) != 2 or None in found.grid:
            why = found.lost if found is not None and found.lost else "name a layer before the pooling"
            raise ValueError(f"layer {call.path!r} has no grid of features any more; {why}")
        return walk, call, found
    for call in reversed(walk.calls):
        found = result_of(walk, call, walk.shown(call))
        inside = not isinstance(call.layer, keras.Layer) and "/" in call.path
        if found is not None and found.lost is None and found.grid and None not in found.grid and not inside:
            return walk, call, found
    raise ValueError(f"{model.name!r} has no layer with a grid of features")


def _forward(walk, call, images):
    """A function from a batch to what one call of a layer gives for it."""
    model = walk.model
    graph = model.inputs if getattr(model, "inputs", None) else None
    # A bare Function does not convert its inputs: a model of uint8 images is differentiable like any other.
    run = keras.Function(graph[0], model.outputs) if graph else lambda batch: model(batch, training=False)
    if not graph:
        try:
            with keras_graph.raw_errors():
                run(images[:1].astype("float32"))
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{model.name!r} cannot be called with the images alone: {reason}; pass a model with that one input"
            ) from error
    turn = [one.index for one in walk.calls if one.layer is call.layer].index(call.index)
    number = walk.shown(call)

    def forward(batch):
        if call.type == "InputLayer":
            return batch
        seen = []
        original = call.layer.call

        def watched(*args, **kwargs):
            outputs = original(*args, **kwargs)
            seen.append(keras.tree.flatten(outputs)[number])
            return outputs

        object.__setattr__(call.layer, "call", watched)
        try:
            run(batch)
        finally:
            object.__delattr__(call.layer, "call")
        if len(seen) <= turn:
            raise ValueError(
                f"{call.path!r} is an operation inside a layer of your own, where nothing can be measured; name a layer"
            )
        return seen[turn]

    forward.shape = call.output_shapes[number]
    return forward


def _gradient_energy(forward, images, channels, places, feature, batch_size, seed):
    """Sum over images and input channels of the squared gradient, (height, width) float64."""
    import tensorflow as tf  # only here: the rest of this module needs no backend

    rng = np.random.default_rng(seed)

    @tf.function(reduce_retracing=True)
    def gradient(batch, seeds):
        with tf.GradientTape() as tape:
            tape.watch(batch)
            output = forward(batch)
            for place, u in sorted(zip(places, feature, strict=True), reverse=True):
                output = tf.gather(output, u, axis=place)
            output = tf.reshape(tf.cast(output, "float32"), (tf.shape(batch)[0], -1))
            moved = tf.reduce_sum(output * seeds)
        return tf.reduce_sum(tf.square(tape.gradient(moved, batch, unconnected_gradients="zero")), axis=(0, channels))

    sides = [side for at, side in enumerate(images.shape) if at not in (0, channels)]
    energy = np.zeros(sides)
    count = int(np.prod([side for at, side in enumerate(forward.shape) if at and at not in places]))
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].astype("float32")
        weights = rng.standard_normal((len(batch), count)).astype("float32")
        energy += gradient(tf.constant(batch), tf.constant(weights)).numpy()
    return energy


def _gaussian(profile, center):
    """Centre and standard deviation of the Gaussian nearest to a profile, by least squares."""
    from scipy.optimize import curve_fit  # only here: importing this module stays quick

    positions = np.arange(len(profile), dtype="float64")

    def bell(position, height, middle, sigma):
        return height * np.exp(-((position - middle) ** 2) / (2 * sigma**2))

    spread = np.sqrt(np.average((positions - center) ** 2, weights=profile))
    start = (profile.max(), np.clip(center, 0, len(profile) - 1), max(spread, 0.5))
    try:
        with np.errstate(all="ignore"):  # the covariance, which is not used, may overflow
            (_, middle, sigma), _ = curve_fit(bell, positions, profile, start, maxfev=5000)
    except RuntimeError:  # nothing like a bell: its moments describe it as well as anything
        return float(center), float(spread)
    return float(middle), float(abs(sigma))
