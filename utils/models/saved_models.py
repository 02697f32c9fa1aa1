"""Saving and loading whole models, safely both ways: a file is whole or not there, and loading runs no code of it."""

import io
import json
import pathlib
import zipfile

import h5py
import keras

from utils.files import atomic_path

MAX_BYTES = 1 << 30
MAX_NUMBER = 1 << 20  # channels, units, pixels: the models here stay under fifty thousand
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
# What a convolutional classifier is made of. Lambda, TFSMLayer and their like carry code and are not among them;
# nor is anything that is not Keras' own.
_LAYERS = {
    "InputLayer", "Rescaling", "Normalization", "Resizing", "CenterCrop", "Conv2D", "DepthwiseConv2D",
    "SeparableConv2D", "Dense", "BatchNormalization", "LayerNormalization", "Activation", "ReLU", "LeakyReLU",
    "PReLU", "ELU", "Softmax", "Dropout", "SpatialDropout2D", "GaussianNoise", "MaxPooling2D",
    "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Flatten", "Reshape", "Permute",
    "ZeroPadding2D", "Cropping2D", "UpSampling2D", "Add", "Subtract", "Multiply", "Average", "Maximum",
    "Concatenate", "Identity",
}  # fmt: skip
_MODELS = {("keras.src.models.functional", "Functional"), ("keras", "Sequential"), ("keras", "Functional")}
_HARMLESS_MODULES = {"keras.initializers", "keras.regularizers", "keras.constraints"}


def save(model, path):
    """Write a model as one ``.keras`` file, whole or not at all; optimizer state is left out.

    Args:
        model: a functional model.
        path: ends in ``.keras``; missing folders are made.

    Returns:
        pathlib.Path of the file.

    Raises:
        ValueError: another suffix.
        OSError: the folder cannot be written to, or the disk is full; an older file at `path` stays as it was.

    Example:
        >>> import tempfile; from utils import models
        >>> path = save(models.baseline_cnn(3, 32), pathlib.Path(tempfile.mkdtemp()) / "baseline.keras")
        >>> load(path).output.shape
        (None, 3)
    """
    path = _keras_path(path)
    # The same layers in a model that was never compiled: a third of the bytes, and nothing but the network in it.
    plain = keras.Model(model.input, model.output, name=model.name)
    with atomic_path(path) as part:
        plain.save(part)
    return path


def load(path):
    """Read a ``.keras`` file that :func:`save` (or Keras) wrote, without running any code that it may carry.

    Args:
        path: ends in ``.keras``.

    Returns:
        keras.Model, uncompiled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole Keras model, holds a layer that is not on the list of plain layers, or is
            absurdly large; names the file.
    """
    path = _keras_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run the step that saves it, or give another path")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive)
            config = json.loads(archive.read("config.json"))
            config.pop("compile_config", None)  # optimizer and loss are not loaded
            _check_config(config)
            _check_weights(archive.read("model.weights.h5"))
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Refused as error:
        raise ValueError(f"{path} is refused: {error}; load models from sources you trust only") from error
    except Exception as error:  # Keras raises nearly every kind of error on a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"{path} is not a whole Keras model ({reason}); save or fetch it again") from error


class Refused(ValueError):
    """A model file holds something that a plain network does not."""


def _keras_path(path):
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"{path} does not end in .keras; models are saved in Keras' own format only")
    return path


def _check_members(archive):
    members = archive.infolist()
    names = [member.filename for member in members]
    if set(names) != _MEMBERS or len(names) != len(_MEMBERS):
        raise Refused(f"it holds {', '.join(names[:5]) or 'nothing'} where a model holds {', '.join(sorted(_MEMBERS))}")
    size = sum(member.file_size for member in members)
    if size > MAX_BYTES:
        raise Refused(f"it unpacks to {size:,} bytes, more than {MAX_BYTES:,}")


def _check_config(value):
    """Refuse every object in a model's configuration that is not a plain layer or a part of one."""
    waiting = [value]
    while waiting:  # not recursive: a configuration nested a million deep is an attack too
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                _check_class(value)
            # Keras numbers shared objects by their address in memory
            waiting.extend(item for key, item in value.items() if key != "shared_object_id")
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise Refused(f"a layer of it asks for a size of {value}")


def _check_class(value):
    module, name = value.get("module"), value["class_name"]
    plain = isinstance(name, str) and isinstance(module, str | None) and (
        (module == "keras.layers" and name in _LAYERS)
        or module in _HARMLESS_MODULES
        or (module, name) in _MODELS | {("keras", "DTypePolicy"), (None, "__keras_tensor__")}
    )  # fmt: skip
    if not plain or value.get("registered_name") not in (None, name):
        raise Refused(f"it holds {module}.{name}, which is not one of the plain layers that are loaded here")


def _check_weights(data):
    """Refuse weights that point outside their file or claim more numbers than the file could hold."""
    with h5py.File(io.BytesIO(data)) as stored:
        groups, claimed = [stored], 0
        while groups:
            group = groups.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise Refused(f"its weights hold a link, {name}")
                item = group[name]
                if isinstance(item, h5py.Group):
                    groups.append(item)
                    continue
                if item.external or item.is_virtual:
                    raise Refused(f"its weights {name} lie in another file")
                claimed += item.nbytes
                if claimed > MAX_BYTES:
                    raise Refused(f"its weights claim more than {MAX_BYTES:,} bytes")
