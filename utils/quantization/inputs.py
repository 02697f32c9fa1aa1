"""What comes in at the door: the model, the photos that calibrate it, and the range that it wants them in."""

import contextlib
import os
import pathlib
import re

import numpy as np

from utils.classify import PIXELS, TFLiteModel, checked_range

MAX_PHOTOS = 1000  # taken from a stream that may have no end


def is_tflite(model):
    """Whether the model is a .tflite, as bytes or path."""
    if isinstance(model, bytes | bytearray | memoryview):
        return True
    path = pathlib.Path(model) if isinstance(model, str | os.PathLike) else None
    if path is None or not path.is_file():
        return path is not None and path.suffix.lower() == ".tflite"
    with path.open("rb") as file:
        return path.suffix.lower() == ".tflite" or file.read(8)[4:] == b"TFL3"


def wanted_range(model, said):
    """The range of pixels that a model takes: as said, else as a .tflite (or the JSON beside it) says, else 0..255."""
    if said is not None:
        return checked_range(said)
    return TFLiteModel(model, num_threads=1).input_range if is_tflite(model) else PIXELS


def reason(error):
    """An error of somebody else's code in one line."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if line.strip()]
    text = lines[-1] if lines and "in user code" in lines[0] else " ".join(lines)  # the end of a traceback
    return " ".join(text.split())[:160] or type(error).__name__


def as_keras_model(model, photos=None):
    """The Keras model that is given or lies in a file, from photos of known shape to one row of numbers.

    A model that was never built, or a subclassed one, gets its input shape from the photos.
    """
    import keras

    if isinstance(model, str | os.PathLike):
        model = _loaded(pathlib.Path(model))
    if not isinstance(model, keras.Model):
        raise TypeError(f"expected a Keras model, a .keras file or a .tflite, got {type(model).__name__}")
    shape = _input_shape(model)
    if shape is None and (photos is None or photos.ndim < 3):
        raise ValueError(
            f"{model.name!r} does not know its input shape; begin it with keras.Input((height, width, channels)), "
            "or wrap it: image = keras.Input(…); keras.Model(image, model(image))"
        )
    if shape is None or len(shape) == 3:  # never built, or grey without an axis for its one channel
        grey = shape is not None or photos.ndim == 3
        image = keras.Input((*(shape or photos.shape)[1:], 1) if grey else photos.shape[1:])
        before = [] if shape is None else [keras.layers.Reshape(shape[1:])]
        try:
            if isinstance(model, keras.Sequential):
                model = keras.Sequential([image, *before, *model.layers], name=model.name)
            else:
                with traceable(model):
                    answer = model(before[0](image) if before else image)
                model = keras.Model(image, answer, name=model.name)
        except Exception as error:
            raise ValueError(f"{model.name!r} cannot be called on {image.shape} ({reason(error)})") from error
    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    if not (len(shapes) == 2 and len(shapes[0]) == 4 and len(shapes[1]) == 2) or None in shapes[0][1:]:
        raise ValueError(
            "expected a photo classifier with one input (None, height, width, channels), all known, and one output "
            f"(None, classes), got {shapes} in {model.name!r}"
        )
    return model


def _loaded(path):
    import keras

    if path.is_dir():
        raise ValueError(f"expected a .keras file, got the folder {path}; save the model with model.save('….keras')")
    if not path.is_file():
        raise FileNotFoundError(f"there is no model {path}; check the path")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a Keras model ({reason(error)}); save it again") from error


def _input_shape(model):
    """Of a model's one input, with the batch; () where there are several, None where nothing tells."""
    try:
        return tuple(model.inputs[0].shape) if len(model.inputs) == 1 else ()
    except (AttributeError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def traceable(model):
    """Inside, layers compute in float32 (LiteRT has no 16-bit kernels) under names that TensorFlow takes for scopes."""
    import keras

    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.layers.InputLayer)]
    before = [(layer, layer.name, layer.dtype_policy) for layer in layers]
    try:
        for layer in layers:
            if not re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", layer.name):
                layer.name = "_".join(re.findall(r"[A-Za-z0-9_.]+", layer.name)).lstrip("_") or "x"
            if layer.compute_dtype in ("float16", "bfloat16", "float64"):
                layer.dtype_policy = "float32"
        yield
    finally:
        for layer, name, policy in before:
            layer.name, layer.dtype_policy = name, policy


def collect(photos):
    """Representative photos as one array, or None.

    Args:
        photos: an array; a list; a `tf.data.Dataset`, `keras.utils.PyDataset` or generator of photos or batches, also
            with labels beside them; or a function without arguments that makes one. Of a stream the first 1,000 photos
            are taken.
    """
    if photos is None or isinstance(photos, np.ndarray):
        return photos
    stream = source = photos() if callable(photos) else photos
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "__iter__"):
        stream = (source[place] for place in range(len(source)))
    if isinstance(stream, str | os.PathLike) or not hasattr(stream, "__iter__"):
        raise TypeError(f"expected representative photos as an array or a stream of them, got {type(stream).__name__}")
    found = []
    for item in stream:
        while isinstance(item, tuple | list | dict) and len(item):
            item = next(iter(item.values() if isinstance(item, dict) else item))
        item = np.asarray(item)
        found += list(item) if item.ndim == 4 else [item]
        if len(found) >= MAX_PHOTOS:
            break
    if len({photo.shape for photo in found}) > 1:
        raise ValueError(f"representative photos must have one shape, got {sorted({p.shape for p in found})[:3]}")
    return np.stack(found[:MAX_PHOTOS]) if found else None


def as_representative(photos, scheme, shape, input_range=PIXELS):
    """Collected photos as the model takes them: float or uint8 (n, height, width, channels), in its input range."""
    if photos is None or len(photos) == 0:
        raise ValueError(
            f"{scheme.name} needs representative photos to measure the range of its activations; "
            "pass some of the training set (quantization.representative_photos)"
        )
    if photos.shape[1:] == shape[:2] and shape[2] == 1:
        photos = photos[..., None]
    if photos.shape[1:] != shape or photos.dtype.kind not in "iuf":
        kind = {1: "grey", 3: "RGB"}.get(shape[2], f"{shape[2]} channels")
        expected, got = ", ".join(map(str, shape)), f"{photos.shape} of {photos.dtype}"
        raise ValueError(f"representative photos must have shape (n, {expected}), {kind} in 0..255, got {got}")
    low, high = float(photos.min()), float(photos.max())
    scaled = photos.dtype.kind == "f"
    if input_range != PIXELS and scaled and input_range[0] - 1e-3 <= low and high <= input_range[1] + 1e-3:
        return photos
    if not (low >= 0 and 2 < high <= 255):
        guess = (0, 1) if low >= 0 and high <= 1 else (-1, 1) if low >= -1 and high <= 1 else "(low, high)"
        advice = f"if the model takes them scaled, pass input_range={guess}"
        if not scaled or not np.isfinite([low, high]).all():  # black, 16 bits, NaN
            advice = "check how they were read"
        raise ValueError(f"representative photos must be pixels in 0..255, got {low:.3g}..{high:.3g}; {advice}")
    if input_range == PIXELS:
        return photos
    return (photos * ((input_range[1] - input_range[0]) / 255) + input_range[0]).astype(np.float32)
