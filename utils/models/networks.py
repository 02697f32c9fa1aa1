"""The baseline network and the transfer models, as single flat graphs that carry their own preprocessing."""

import dataclasses

import keras
import numpy as np

from utils._checks import whole

from . import efficientnet_lite, pretrained
from .parts import CLASSIFIER, POOLED
from .pretrained import WeightsUnavailable

BASELINE = "baseline_cnn"
WARM_START = "warm start from EfficientNet-Lite0"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a backbone is called; all are licensed under Apache-2.0."""

    name: str
    title: str


# Sandler et al. 2018, arXiv:1801.04381; Tan & Le 2019, arXiv:1905.11946; tensorflow/tpu, efficientnet/lite
BACKBONES = {
    "mobilenet_v2": Backbone("mobilenet_v2", "MobileNetV2"),
    "efficientnet_b0": Backbone("efficientnet_b0", "EfficientNetB0"),
    "efficientnet_lite0": Backbone("efficientnet_lite0", "EfficientNet-Lite0"),
}


def baseline_cnn(classes, input_size=224):
    """Study A's network: three blocks of convolution, batch normalization and max-pooling, one dense layer, softmax.

    Convolutions are 3x3, unpadded, ReLU, with 128, 128 and 64 channels; the dense layer has 64 units. Pixels are
    scaled to 0..1 inside the model.

    Args:
        classes: how many, or their names.
        input_size: side of the square image, in pixels, from 22 up.

    Returns:
        keras.Model, uncompiled, from (batch, input_size, input_size, 3) in 0..255 to probabilities (batch, classes).

    Raises:
        ValueError: fewer than two classes, a name given twice, or an input too small.

    Example:
        >>> baseline_cnn(17).count_params()
        2996305
    """
    count, size = _class_count(classes), _input_size(input_size, least=22)
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="preprocess")(image)
    for number, channels in enumerate((128, 128, 64)):
        suffix = f"_{number}" if number else ""
        x = keras.layers.Conv2D(channels, 3, activation="relu", name=f"conv2d{suffix}")(x)
        x = keras.layers.BatchNormalization(name=f"batch_normalization{suffix}")(x)
        x = keras.layers.MaxPooling2D(name=f"max_pooling2d{suffix}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(64, activation="relu", name="dense")(x)
    return keras.Model(image, _classifier(count)(x), name=BASELINE)


def transfer(backbone, classes, input_size=224, dropout=0.2, weights="auto"):
    """A classifier on a pretrained backbone: average pooling, dropout, softmax.

    Args:
        backbone: a key of `BACKBONES`.
        classes: how many, or their names.
        input_size: side of the square image, in pixels, from 32 up.
        dropout: share of pooled features dropped in training, 0 <= dropout < 1.
        weights: "auto": ImageNet weights, and for EfficientNetB0, where they cannot be had, the warm start from
            EfficientNet-Lite0 (with a WarmStartWarning; :func:`weights_source` names it). "imagenet": these or an
            error. "warm_start": EfficientNetB0's warm start by name. None: random initialization, for a model whose
            weights are loaded next. After a warm start :func:`reestimate_batch_norm` has to follow.

    Returns:
        keras.Model, uncompiled, all layers trainable, from (batch, input_size, input_size, 3) in 0..255 to
        probabilities (batch, classes). The graph does not depend on `weights`. Pooling is named "pooled_features",
        the last layer "classifier".

    Raises:
        WeightsUnavailable: the weights are neither on this machine nor to be downloaded; says what to do.
        ValueError: unknown backbone or weights, bad class count, input size or dropout.

    Example:
        >>> model = transfer("efficientnet_lite0", ["dress", "hat", "shoes"])
        >>> model.output.shape, model.get_layer("pooled_features").output.shape
        ((None, 3), (None, 1280))
    """
    count = _class_count(classes)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout!r}")
    image, pooled = _pooled(backbone, input_size, weights)
    x = keras.layers.Dropout(dropout, name="dropout")(pooled)
    return keras.Model(image, _classifier(count)(x), name=backbone)


def feature_extractor(backbone, input_size=224):
    """The backbone alone, in inference mode: images to pooled features.

    Args:
        backbone, input_size: as for :func:`transfer`.

    Returns:
        keras.Model, not trainable, from (batch, input_size, input_size, 3) in 0..255 to (batch, channels).

    Example:
        >>> feature_extractor("efficientnet_lite0", 128).output.shape
        (None, 1280)
    """
    model = keras.Model(*_pooled(backbone, input_size, "auto"), name=f"{backbone}_features")
    model.trainable = False
    return model


def weights_source(backbone, weights="auto", download=True):
    """What the weights of :func:`transfer` with the same arguments are, in one phrase, for every table.

    Args:
        backbone, weights: as for :func:`transfer`; also "baseline_cnn".
        download: False looks on this machine only.

    Returns:
        "ImageNet", "ImageNet (8-bit, dequantized)", "ImageNet (file not verified)",
        "warm start from EfficientNet-Lite0", or "random initialization" (also for "baseline_cnn").

    Raises:
        WeightsUnavailable: as :func:`transfer`, or they are not on this machine and `download` is False.

    Example:
        >>> weights_source("efficientnet_lite0")
        'ImageNet'
    """
    if backbone == BASELINE:
        return "random initialization"
    return _weights(_known(backbone).name, weights, download)[0]


def needs_batch_norm(backbone, weights="auto"):
    """Whether :func:`reestimate_batch_norm` has to follow before the model's features are of use."""
    return weights_source(backbone, weights) == WARM_START


def _pooled(backbone, input_size, weights):
    """(image tensor, pooled feature tensor) of a backbone with its weights."""
    name, size = _known(backbone).name, _input_size(input_size)
    _, fill = _weights(name, weights)
    image = keras.Input((size, size, 3), name="image")
    body = _BODIES[name](image)
    if fill:
        fill(body)
    return image, keras.layers.GlobalAveragePooling2D(name=POOLED)(body.output)


# The three builders put their layers on `image` itself: one flat graph, with the names of keras.applications.


def _mobilenet_v2(image):
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocess")(image)
    return keras.applications.MobileNetV2(include_top=False, weights=None, input_tensor=scaled)


def _efficientnet_b0(image):
    body = keras.applications.EfficientNetB0(include_top=False, weights=None, input_tensor=image)
    for layer in body.layers[1:3]:  # Keras numbers these two through the process; names have to be the same every time
        layer.name = "preprocess" if isinstance(layer, keras.layers.Rescaling) else "normalization"
    return body


def _efficientnet_lite0(image):
    return efficientnet_lite.efficientnet_lite0(efficientnet_lite.preprocess(image))


_BODIES = {
    "mobilenet_v2": _mobilenet_v2,
    "efficientnet_b0": _efficientnet_b0,
    "efficientnet_lite0": _efficientnet_lite0,
}


def _weights(name, weights, download=True):
    """(phrase, function that fills a body or None) for a backbone's weights."""
    choices = ("auto", "imagenet", "warm_start") if name == "efficientnet_b0" else ("auto", "imagenet")
    if weights is None:
        return "random initialization", None
    if weights not in choices:
        raise ValueError(f"weights of {name} must be {', '.join(map(repr, choices))} or None, got {weights!r}")
    if name == "efficientnet_lite0":
        efficientnet_lite.weights_path()
        return "ImageNet", efficientnet_lite.load_imagenet
    if weights == "warm_start":
        return WARM_START, _warm_start
    file = pretrained.MOBILENET_V2 if name == "mobilenet_v2" else pretrained.EFFICIENTNET_B0
    try:
        path = pretrained.find(file, download)
    except WeightsUnavailable as error:
        if name != "efficientnet_b0" or weights != "auto" or not download:
            raise
        pretrained.warn_once(f"EfficientNetB0 starts from EfficientNet-Lite0's weights, because {error}")
        return WARM_START, _warm_start

    def fill(body):
        pretrained.load(body, file, path)
        if name == "efficientnet_b0":
            _square_normalization(body)

    return pretrained.describe(file, path), fill


def _square_normalization(body):
    """Undo a quirk of the official EfficientNetB0 file: its normalization stores the deviation as the variance."""
    # keras.applications rescales by 1 / sqrt(deviation) instead, but with weights="imagenet" only: another graph
    mean, variance, count = body.get_layer("normalization").get_weights()
    deviation = np.array([0.229, 0.224, 0.225], "float32")  # keras/src/applications/efficientnet.py
    _normalize(body, mean, variance * deviation, count)


def _normalize(body, mean, variance, count=0):
    layer = body.get_layer("normalization")
    layer.set_weights([np.asarray(mean, "float32"), np.asarray(variance, "float32"), np.asarray(count)])
    layer.finalize_state()


def _warm_start(body):
    """EfficientNet-Lite0's weights in EfficientNetB0: the same convolutions, with squeeze-and-excitation neutral."""
    efficientnet_lite.load_imagenet(body)
    for layer in body.layers:
        if layer.name.endswith("_se_expand"):  # sigmoid(0 + 4) = 0.98: every channel passes, and can still learn
            kernel, bias = layer.get_weights()
            layer.set_weights([np.zeros_like(kernel), np.full_like(bias, 4.0)])
    mean, scale = efficientnet_lite.PIXEL_MEAN / 255, efficientnet_lite.PIXEL_SCALE / 255
    _normalize(body, [mean] * 3, [scale**2] * 3)


def _classifier(count):
    # float32 whatever the model's policy: probabilities that sum to 1
    return keras.layers.Dense(count, activation="softmax", dtype="float32", name=CLASSIFIER)


def _known(backbone):
    if backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
    return BACKBONES[backbone]


def _class_count(classes):
    names = list(classes) if np.iterable(classes) and not isinstance(classes, str) else []
    if isinstance(classes, str) or len(set(names)) < len(names):
        raise ValueError(f"classes must be a number or a sequence of different names, got {classes!r}")
    return whole("the number of classes", len(names) if np.iterable(classes) else classes, 2)


def _input_size(input_size, least=32):
    return whole("input_size", input_size, least, 1024)
