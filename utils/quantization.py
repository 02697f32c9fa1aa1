"""A Keras 3 model, or a saved one, to a small .tflite file in a named scheme.

A model is converted once to a float32 .tflite at a batch of 1; every other scheme is a rewrite of that file. Two tools can
do the rewriting: TensorFlow's converter, from the Keras model (slow: it traces and lowers the network again), and
ai-edge-quantizer, from the float file (fast, range by range and layer by layer adjustable). :func:`compare_tools` measures
both; `SCHEMES` names the one that serves.

TensorFlow is imported only when a Keras model is converted.
"""

import dataclasses
import gzip
import os
import pathlib
import re
import tempfile

import numpy as np

from utils import calibration, files
from utils.tflite_model import TFLiteModel, description_path, open_interpreter, quiet

__all__ = [
    "SCHEMES", "Scheme", "TFLiteModel", "compare_tools", "convert", "convert_all", "float_tflite", "gzip_bytes",
    "representative_photos", "save",
]  # fmt: skip

PREPROCESSING = "RGB 0..255; scaling is inside the model"
TOOLS = ("quantizer", "converter")
MAX_VERIFY_DIFFERENCE = 1e-3  # probabilities of the Keras model and of its float32 file


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One way to store and compute a network in fewer bits.

    Attributes:
        name: key of `SCHEMES`.
        title: for tables.
        weights, activations: how they are stored and computed.
        calibrated: needs representative photos.
        tools: which of `TOOLS` can make it, the one that serves first.
    """

    name: str
    title: str
    weights: str
    activations: str
    calibrated: bool
    tools: tuple

    @property
    def tool(self):
        """The tool that serves, by the measurement of :func:`compare_tools`."""
        return self.tools[0]


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "float32", "float32", "float32", False, ("converter",)),
        Scheme("float16", "float16 weights", "float16", "float32", False, ("quantizer", "converter")),
        Scheme("dynamic_range", "dynamic range", "int8", "int8 on the fly", False, ("quantizer", "converter")),
        Scheme("int8", "int8, float in and out", "int8", "int8", True, ("quantizer", "converter")),
        Scheme("int8_io", "int8 throughout", "int8", "int8", True, ("quantizer", "converter")),
        Scheme("int16x8", "int16 activations", "int8", "int16", True, ("quantizer", "converter")),
        Scheme("weight_int8", "int8 weights only", "int8", "float32", False, ("quantizer",)),
        Scheme("weight_int4", "4-bit weights only", "int4", "float32", False, ("quantizer",)),
    )
}


def convert(
    model, scheme, representative=None, *, tool=None, calibrate="min-max", io="int8", keep_float=(), statistics=None
):
    """A model in one of `SCHEMES`, as the bytes of a .tflite file.

    Args:
        model: keras.Model with one image input and one output; path of a .keras file; or a float32 .tflite, as path or
            bytes (then ai-edge-quantizer serves every scheme).
        scheme: key of `SCHEMES`.
        representative: (n, height, width, 3) training photos in 0..255, for the calibrated schemes;
            see :func:`representative_photos`.
        tool: "quantizer" (ai-edge-quantizer) or "converter" (TensorFlow's); None: the one that serves the scheme.
        calibrate: one of `calibration.METHODS`; the converter knows "min-max" only.
        io: input and output of "int8_io": "int8" (the quantizer's, a photo's bytes minus 128) or "uint8" (the
            converter's, a photo's bytes as they are, for one more operator at either end).
        keep_float: names of layers that stay in float32 (a mixed scheme), as `quantization_error` reports them;
            quantizer only.
        statistics: a `calibration.Statistics` of the same model instead of `representative`, to convert many times.

    Returns:
        bytes.

    Raises:
        ValueError: unknown scheme, tool, calibration or layer; no or unfit representative photos; a model with operators that
            TensorFlow Lite lacks, or of another shape; a damaged file.
        TypeError: something else than a model.
        FileNotFoundError: no such file.

    Example:
        >>> import keras
        >>> image = keras.Input((8, 8, 3))
        >>> output = keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(image))
        >>> small = convert(keras.Model(image, output), "float16")
        >>> TFLiteModel(small)(np.zeros((3, 8, 8, 3))).shape
        (3, 2)
    """
    scheme = _scheme(scheme)
    tool = _tool(scheme, "converter" if io == "uint8" and tool is None else tool, model)
    if calibrate not in calibration.METHODS:
        raise ValueError(f"calibration {calibrate!r} is unknown; choose one of {', '.join(calibration.METHODS)}")
    if io not in ("int8", "uint8"):
        raise ValueError(f"io {io!r} is unknown; choose int8 or uint8")
    if io == "uint8" and (scheme.name != "int8_io" or tool != "converter"):
        raise ValueError("uint8 input and output is for int8_io by the converter; give io='int8', or tool='converter'")
    size = _model_size(model)
    if scheme.calibrated and not (statistics is not None and tool == "quantizer"):
        representative = _checked_representative(representative, scheme, size)
    if tool == "converter":
        if keep_float or calibrate != "min-max":
            raise ValueError("the converter keeps no layer in float and calibrates by min-max; use tool='quantizer'")
        return _converted(model, scheme, representative, io)
    return _quantized(float_tflite(model), scheme, representative, calibrate, io, keep_float, statistics)


def convert_all(model, schemes=tuple(SCHEMES), representative=None, **options):
    """A model in several schemes: traced once, calibrated once.

    Args:
        model, representative, options: as for :func:`convert`.
        schemes: keys of `SCHEMES`.

    Returns:
        dict, scheme name -> bytes, in the order given.

    Raises:
        as :func:`convert`.
    """
    chosen = [_scheme(name) for name in schemes]
    size, statistics = _model_size(model), None
    for scheme in chosen:
        if scheme.calibrated:
            representative = _checked_representative(representative, scheme, size)
    source = float_tflite(model)
    if any(scheme.calibrated and _tool(scheme, None, source) == "quantizer" for scheme in chosen):
        statistics = calibration.measure(source, representative)
    return {scheme.name: convert(source, scheme.name, statistics=statistics, **options) for scheme in chosen}


def float_tflite(model):
    """A model as a float32 .tflite of batch 1: what every other scheme starts from.

    Args:
        model: as for :func:`convert`; a .tflite comes back as it is, once it is known to be a float model.

    Returns:
        bytes.

    Raises:
        as :func:`convert`; RuntimeError: the file computes something else than the Keras model.
    """
    if _is_tflite(model):
        opened = TFLiteModel(model, num_threads=1)
        if opened.input_dtype != np.float32 or _has_quantized_tensors(opened.content):
            raise ValueError(f"{opened.name} is quantized already; start from the float32 .tflite or the Keras model")
        return opened.content
    model = _keras_model(model)
    content = _run_converter(model, lambda converter, tf: None)
    _verify(model, content)
    return content


def representative_photos(frame, count=100, input_size=224, seed=0):
    """Calibration photos: from the training part only, as many of each class, in an order whose beginnings are balanced.

    Args:
        frame: a `Dataset.frame` (columns path, label, split).
        count: number of photos; at most as many as the training part holds.
        input_size: side in pixels.
        seed: which photos.

    Returns:
        uint8 (count, input_size, input_size, 3), classes taking turns.

    Raises:
        ValueError: no training photos, or fewer than `count`.
    """
    from utils.photo import read_photo

    train = frame[frame["split"] == "train"]
    if not 1 <= count <= len(train):
        raise ValueError(f"{count} calibration photos are wanted and the training part holds {len(train)}; ask for fewer")
    shuffled = train.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("label").cumcount()
    chosen = shuffled.assign(_turn=turn).sort_values(["_turn", "label"], kind="stable").head(count)
    return np.stack([read_photo(path, input_size) for path in chosen["path"]])


def save(path, data, labels=None, scheme=None, source=None, **facts):
    """Write a .tflite file and, beside it, the JSON that says how to use it; each whole or not at all.

    Args:
        path: of the file; ".tflite" at its end.
        data: bytes from :func:`convert`.
        labels: class names in the order of the output.
        scheme: its key of `SCHEMES`.
        source: one phrase: which model, which weights, trained on what.
        facts: anything else worth keeping that JSON can hold (accuracy, low_confidence=0.45, …).

    Returns:
        pathlib.Path of the .tflite file.

    Raises:
        ValueError: another ending, damaged data, an unknown scheme, or labels that do not fit. Nothing is written then.

    Example:
        >>> save("models/mine.tflite", data, labels=["dress", "hat"], scheme="int8")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"{path} does not end in .tflite; name the file so that runtimes know it")
    labels = list(labels) if labels is not None else None
    model = TFLiteModel(data, num_threads=1, labels=labels)
    height, width = model.input_size
    description = {
        "labels": labels,
        "input_size": [height, width],
        "input": str(model.input_dtype),
        "output": str(model.output_dtype),
        "preprocessing": PREPROCESSING,
        "scheme": _scheme(scheme).name if scheme is not None else None,
        "source": source,
        **facts,
    }
    files.write_json(description_path(path), description)
    files.write_bytes(path, data)
    return path


def gzip_bytes(data):
    """Bytes that a download takes: the size of `data` after gzip at its highest level."""
    return len(gzip.compress(data, 9, mtime=0))


def compare_tools(model, representative, images, labels=None, schemes=None, num_threads=None):
    """Both tools on every scheme that both can make, measured on the same photos.

    Args:
        model: keras.Model or path of a .keras file.
        representative: calibration photos, (n, height, width, 3).
        images: photos to compare on, (m, height, width, 3), not those of the calibration.
        labels: (m,) class indices; None leaves the accuracy out.
        schemes: keys of `SCHEMES`; None: all that both tools make.
        num_threads: threads of the interpreter.

    Returns:
        DataFrame, a row a scheme and tool: "scheme", "tool", "serves" (this project uses it), "accuracy", "agreement with
        float", "mean probability change", "largest probability change", "size (bytes)", "gzip (bytes)",
        "time (float32 = 1)" (median of interleaved runs of one photo), "conversion (s)".
    """
    import time

    import pandas as pd

    both = schemes or [name for name, scheme in SCHEMES.items() if len(scheme.tools) > 1]
    model = _keras_model(model)
    source = float_tflite(model)
    built = {("float32", "converter"): (source, 0.0)}
    for name in both:
        for tool in _scheme(name).tools:
            start = time.perf_counter()
            data = convert(source if tool == "quantizer" else model, name, representative, tool=tool)
            built[name, tool] = (data, time.perf_counter() - start)
    opened = {key: TFLiteModel(data, num_threads) for key, (data, _) in built.items()}
    times = _interleaved(opened, images[:1])
    reference, rows = opened["float32", "converter"](images), []
    for (name, tool), (data, seconds) in built.items():
        probabilities = opened[name, tool](images) if name != "float32" else reference
        change = np.abs(probabilities - reference)
        rows.append({
            "scheme": name,
            "tool": tool,
            "serves": tool == SCHEMES[name].tool,
            "accuracy": np.nan if labels is None else np.mean(probabilities.argmax(1) == np.asarray(labels)),
            "agreement with float": np.mean(probabilities.argmax(1) == reference.argmax(1)),
            "mean probability change": change.mean(),
            "largest probability change": change.max(),
            "size (bytes)": len(data),
            "gzip (bytes)": gzip_bytes(data),
            "time (float32 = 1)": times[name, tool] / times["float32", "converter"],
            "conversion (s)": round(seconds, 2),
        })  # fmt: skip
    return pd.DataFrame(rows)


# --- ai-edge-quantizer ------------------------------------------------------------------------------------------------


def _quantized(source, scheme, representative, method, io, keep_float, statistics):
    if scheme.name == "float32":
        return source
    with quiet():
        from ai_edge_quantizer import quantizer

    with quiet():
        work = quantizer.Quantizer(source)
        _recipe(work, scheme.name)
        if scheme.name != "int8_io":
            _exclude(work, ".*", ("INPUT", "OUTPUT"))
        for tensor in _tensors_of(source, keep_float):
            _exclude(work, f"^{re.escape(tensor)};?$", ("ALL_SUPPORTED",))
        ranges = None
        if scheme.calibrated:
            statistics = statistics if statistics is not None else calibration.measure(source, representative)
            ranges = calibration.quantizer_statistics(statistics.ranges(method), statistics.ranks)
        result = work.quantize(ranges, enable_progress_report=False, enable_progress_bar=False)
    data = bytes(result.quantized_model)
    open_interpreter(data, name=f"the {scheme.name} model")
    return data


def _recipe(work, name):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    op = qtyping.TFLOperationName
    if name == "float16":
        work.add_weight_only_config(
            ".*", op.ALL_SUPPORTED, 16, qtyping.QuantGranularity.TENSORWISE, AlgorithmName.FLOAT_CASTING
        )
    elif name == "dynamic_range":
        # XNNPACK computes convolutions and dense layers with 8-bit activations made on the fly, and no depthwise ones:
        # these keep float arithmetic with 8-bit weights, so that the whole network stays in one delegate.
        work.add_weight_only_config(".*", op.DEPTHWISE_CONV_2D, 8)
        work.add_dynamic_config(".*", op.CONV_2D, 8)
        work.add_dynamic_config(".*", op.FULLY_CONNECTED, 8)
    elif name in ("int8", "int8_io", "int16x8"):
        work.add_static_config(".*", op.ALL_SUPPORTED, 16 if name == "int16x8" else 8, 8)
    else:
        work.add_weight_only_config(".*", op.ALL_SUPPORTED, 4 if name == "weight_int4" else 8)


def _exclude(work, regex, operations):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    for operation in operations:
        work.update_quantization_recipe(
            regex, qtyping.TFLOperationName[operation], algorithm_key=AlgorithmName.NO_QUANTIZE
        )


def _tensors_of(source, layers):
    from utils.quantization_error import tensor_layers

    if not layers:
        return []
    known = tensor_layers(source)
    unknown = set(layers) - set(known.values())
    if unknown:
        raise ValueError(f"the model has no layer {sorted(unknown)[0]!r}; take names from quantization_error.by_layer")
    return [tensor for tensor, layer in known.items() if layer in set(layers)]


# --- TensorFlow's converter -------------------------------------------------------------------------------------------


def _converted(model, scheme, representative, io):
    def configure(converter, tf):
        if scheme.name == "float32":
            return
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if scheme.name == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if scheme.calibrated:
            ops = tf.lite.OpsSet
            converter.representative_dataset = lambda: ([photo[None].astype(np.float32)] for photo in representative)
            converter.target_spec.supported_ops = [
                ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                if scheme.name == "int16x8" else ops.TFLITE_BUILTINS_INT8
            ]  # fmt: skip
        if scheme.name == "int8_io":
            converter.inference_input_type = converter.inference_output_type = getattr(tf, io)

    if scheme.name == "float32":
        return float_tflite(model)
    return _run_converter(_keras_model(model), configure)


def _run_converter(model, configure):
    """TensorFlow's converter on a Keras model at a batch of 1.

    The traced function's variables are frozen into constants first: twice as fast as a detour over a SavedModel, and
    (unlike a bare `from_concrete_functions`, whose variables get lost without an error) nothing is left to lose.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    shape = (1, *model.inputs[0].shape[1:])
    try:
        with quiet():
            traced = tf.function(lambda image: model(image, training=False))
            traced = traced.get_concrete_function(tf.TensorSpec(shape, tf.float32, name="image"))
            converter = tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(traced)])
            configure(converter, tf)
            return converter.convert()
    except Exception as error:  # the converter raises a class of its own, RuntimeError, ValueError …
        raise ValueError(
            f"TensorFlow Lite cannot express {model.name!r} ({_reason(error)}); replace those layers by supported ones"
        ) from error


def _reason(error):
    text = str(error)
    missing = re.search(r"(?:Flex|custom|TF) ops?:\s*([^\n]+)", text)
    if missing:
        return f"it has no operator {missing.group(1).strip()[:120]}"
    return " ".join(text.split())[:160] or type(error).__name__


def _verify(model, content):
    height, width = model.inputs[0].shape[1:3]
    photo = np.random.default_rng(0).integers(0, 256, (1, height, width, 3)).astype(np.float32)
    expected = np.asarray(model(photo, training=False))
    difference = float(np.abs(TFLiteModel(content, num_threads=1)(photo) - expected).max())
    if not difference <= MAX_VERIFY_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(
            f"the converted {model.name!r} differs from the Keras model by {difference:.3g} on the same photo; "
            "look for layers that act differently at a batch of 1"
        )


# --- checks -----------------------------------------------------------------------------------------------------------


def _scheme(name):
    if isinstance(name, Scheme):
        return name
    if name not in SCHEMES:
        raise ValueError(f"scheme {name!r} is unknown; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def _tool(scheme, tool, model):
    if tool is not None and tool not in TOOLS:
        raise ValueError(f"tool {tool!r} is unknown; choose one of {', '.join(TOOLS)}")
    if _is_tflite(model):  # the converter starts from Keras
        if tool == "converter":
            raise ValueError("the converter starts from a Keras model, not from a .tflite; use tool='quantizer'")
        return "quantizer"
    tool = tool or scheme.tool
    if tool not in scheme.tools:
        raise ValueError(f"the {tool} does not make {scheme.name}; use tool={scheme.tool!r}")
    return tool


def _is_tflite(model):
    if isinstance(model, bytes | bytearray | memoryview):
        return True
    return isinstance(model, str | os.PathLike) and pathlib.Path(model).suffix == ".tflite"


def _keras_model(model):
    import keras

    if isinstance(model, str | os.PathLike):
        path = pathlib.Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"there is no model {path}; check the path")
        try:
            return keras.models.load_model(path, compile=False)
        except Exception as error:
            raise ValueError(f"{path} cannot be read as a Keras model ({_reason(error)}); save it again") from error
    if not isinstance(model, keras.Model):
        raise TypeError(f"a Keras model, a .keras file or a .tflite is wanted, not {type(model).__name__}")
    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    fits = len(model.inputs) == 1 and len(model.outputs) == 1 and len(shapes[0]) == 4 and len(shapes[1]) == 2
    if not fits or None in shapes[0][1:]:
        raise ValueError(
            f"{model.name!r} has inputs and outputs of shapes {shapes}; a photo classifier has one input "
            "(None, height, width, 3), all known, and one output (None, classes)"
        )
    return model


def _model_size(model):
    if _is_tflite(model):
        return TFLiteModel(model, num_threads=1).input_size
    return tuple(_keras_model(model).inputs[0].shape[1:3])


def _checked_representative(photos, scheme, size):
    if photos is None or len(photos) == 0:
        raise ValueError(
            f"{scheme.name} needs representative photos to measure the range of its activations; "
            "pass some from the training part (quantization.representative_photos)"
        )
    photos = np.asarray(photos)
    if photos.shape[1:] != (*size, 3):
        raise ValueError(
            f"representative photos have shape {photos.shape}; the model takes (n, {size[0]}, {size[1]}, 3), RGB in 0..255"
        )
    low, high = float(photos.min()), float(photos.max())
    if not (low >= 0 and 2 < high <= 255):
        raise ValueError(
            f"representative photos lie in {low:.3g}..{high:.3g}; give pixels in 0..255, the model scales them itself"
        )
    return photos


def _has_quantized_tensors(content):
    details = open_interpreter(content, kernels="builtin").get_tensor_details()
    return any(detail["dtype"] in (np.int8, np.uint8, np.int16, np.float16) for detail in details)


def _interleaved(models, image, rounds=15):
    """Median seconds of one photo, each model once a round, so that a busy moment hits all of them."""
    import time

    seconds = {key: [] for key in models}
    for turn in range(rounds + 2):
        for key, model in models.items():
            start = time.perf_counter()
            model(image)
            if turn >= 2:
                seconds[key].append(time.perf_counter() - start)
    return {key: float(np.median(values)) for key, values in seconds.items()}
