"""A Keras 3 model, or a saved one, to a small .tflite file in a named scheme.

A model is converted once to a float32 .tflite at a batch of 1. Every other scheme is a rewrite of that file by
ai-edge-quantizer (fast, adjustable range by range and layer by layer), or by TensorFlow's converter (slow).
"""

import dataclasses
import re

import numpy as np

from utils.classify import TFLiteModel, open_interpreter, read_model
from utils.environment import quiet

from . import calibration
from .inputs import as_keras_model, as_representative, collect, is_tflite, reason, traceable, wanted_range

TOOLS = ("quantizer", "converter")
MAX_VERIFY_DIFFERENCE = 1e-3  # probabilities of the Keras model and of its float32 file


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One way to store and compute a network in fewer bits."""

    name: str  # key of SCHEMES
    title: str  # for tables
    weights: str
    activations: str
    calibrated: bool = False  # needs representative photos
    tools: tuple = TOOLS  # which can make it, the one that serves first


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "float32", "float32", "float32", tools=("converter",)),
        Scheme("float16", "float16 weights", "float16", "float32"),
        Scheme("dynamic_range", "dynamic range", "int8", "int8 on the fly"),
        Scheme("int8", "int8, float in and out", "int8", "int8", True),
        Scheme("int8_io", "int8 throughout", "int8", "int8", True),
        Scheme("int16x8", "int16 activations", "int8", "int16", True),
        Scheme("weight_int8", "int8 weights only", "int8", "float32", tools=("quantizer",)),
        Scheme("weight_int4", "4-bit weights only", "int4 (depthwise int8)", "float32", tools=("quantizer",)),
    )
}


def convert(
    model, scheme, representative=None, *, tool=None, calibrate="min-max", io="int8", keep_float=(), statistics=None,
    lift_biases=True, input_range=None,
):  # fmt: skip
    """A model in one of `SCHEMES`, as the bytes of a .tflite file.

    Args:
        model: keras.Model with one image input and one output; path of a .keras file; or a float32 .tflite, as path or
            bytes (then ai-edge-quantizer serves every scheme).
        scheme: key of `SCHEMES`.
        representative: training photos for the calibrated schemes, (n, height, width, channels) in 0..255 or in
            `input_range`; also a list, a `tf.data.Dataset`, a generator, or a function that makes one. See
            `quantization.representative_photos`.
        tool: "quantizer" (ai-edge-quantizer) or "converter" (TensorFlow's); None: the one that serves the scheme.
        calibrate: one of `calibration.METHODS`; the converter knows "min-max" only.
        io: input and output of "int8_io": "int8" (the quantizer's, a photo's bytes minus 128) or "uint8" (the
            converter's, a photo's bytes as they are, for one more operator at either end).
        keep_float: names of layers that stay in float32 (a mixed scheme), as `quantization.error` reports them;
            quantizer only.
        statistics: a `calibration.Statistics` of the same model instead of `representative`, to convert many times.
        lift_biases: False leaves biases that pass 32 bits to the tool, to measure what that does (see :func:`lift`);
            quantizer only.
        input_range: (low, high) that the model takes where pixels are scaled outside it, as (0, 1) or (-1, 1). Pass it
            to `save` too: callers of the file go on passing pixels. None: what a .tflite, or the JSON beside it, says,
            else (0, 255).

    Returns:
        bytes.

    Raises:
        ValueError: unknown scheme, tool, calibration or layer; no or unfit representative photos; a model with
            operators that TensorFlow Lite lacks, or of another shape; a damaged file.
        TypeError, FileNotFoundError: something else than a model; no such file.

    Example:
        >>> import keras
        >>> image = keras.Input((8, 8, 3))
        >>> output = keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(image))
        >>> small = convert(keras.Model(image, output), "float16")
        >>> TFLiteModel(small)(np.zeros((3, 8, 8, 3))).shape
        (3, 2)
    """
    scheme = find_scheme(scheme)
    tool = _tool(scheme, "converter" if io == "uint8" and tool is None else tool, is_tflite(model))
    if calibrate not in calibration.METHODS:
        raise ValueError(f"calibrate must be one of {', '.join(calibration.METHODS)}, got {calibrate!r}")
    if io not in ("int8", "uint8"):
        raise ValueError(f"io must be int8 or uint8, got {io!r}")
    if io == "uint8" and (scheme.name != "int8_io" or tool != "converter"):
        raise ValueError("io='uint8' works with scheme int8_io and tool='converter' only; use io='int8'")
    keep_float = [keep_float] if isinstance(keep_float, str) else list(keep_float)
    if tool == "converter" and (keep_float or calibrate != "min-max"):
        raise ValueError("the converter keeps no layer in float and calibrates by min-max; use tool='quantizer'")
    photos, input_range = collect(representative), wanted_range(model, input_range)
    model = model if is_tflite(model) else as_keras_model(model, photos)
    if scheme.calibrated and not (statistics is not None and tool == "quantizer"):
        photos = as_representative(photos, scheme, input_shape(model), input_range)
    if tool == "converter" and scheme.name != "float32":
        return _converted(model, scheme, photos, io)
    source = float_tflite(model)
    if scheme.calibrated and statistics is None:
        statistics = _calibrated(source, photos, input_range)
    return _quantized(source, scheme, statistics, calibrate, io, keep_float, lift_biases)


def convert_all(model, schemes=tuple(SCHEMES), representative=None, input_range=None):
    """A model in several schemes: traced once, calibrated once.

    Args:
        model, representative, input_range: as for :func:`convert`.
        schemes: keys of `SCHEMES`.

    Returns:
        dict, scheme name -> bytes, in the order given.

    Raises:
        as :func:`convert`.
    """
    chosen, statistics = [find_scheme(name) for name in ([schemes] if isinstance(schemes, str) else schemes)], None
    photos, input_range = collect(representative), wanted_range(model, input_range)
    model = model if is_tflite(model) else as_keras_model(model, photos)
    calibrated = [scheme for scheme in chosen if scheme.calibrated]
    if calibrated:  # refused before the minute that tracing takes
        photos = as_representative(photos, calibrated[0], input_shape(model), input_range)
    source = float_tflite(model)
    if calibrated:
        statistics = _calibrated(source, photos, input_range)
    return {scheme.name: _quantized(source, scheme, statistics) for scheme in chosen}


def float_tflite(model):
    """A model as a float32 .tflite of batch 1, which every other scheme starts from; a float .tflite as it is.

    Raises:
        as :func:`convert`; RuntimeError: the file computes something else than the Keras model.
    """
    if is_tflite(model):
        opened = TFLiteModel(model, num_threads=1)
        file = open_file(opened.content)
        halves = any(tensor.dtype == "FLOAT16" and file.data(at).size for at, tensor in enumerate(file.tensors))
        scaled = any(tensor.quantization and (tensor.quantization.scale is not None) for tensor in file.graph.tensors)
        if opened.input_dtype != np.float32 or halves or scaled:
            raise ValueError(f"{opened.name} is quantized already; start from the float32 .tflite or the Keras model")
        return opened.content
    model = as_keras_model(model)
    content = _run_converter(model)
    _verify(model, content)
    return content


# --- ai-edge-quantizer ------------------------------------------------------------------------------------------------


LOOP = (
    "static int8 cannot be calibrated through the loop of a recurrent layer; use scheme='dynamic_range' or "
    "'weight_int8', which need no calibration, or unroll=True"
)


def _calibrated(source, photos, input_range):
    if len(open_file(source).model.subgraphs) > 1:
        raise ValueError(LOOP)
    return calibration.measure(source, photos, input_range)


def _quantized(source, scheme, statistics, method="min-max", io="int8", keep_float=(), lift_biases=True):
    if scheme.name == "float32":
        return source
    with quiet():
        from ai_edge_quantizer import quantizer

    ranges, kept = None, tensors_of(source, keep_float)
    if scheme.calibrated:
        tensors = {tensor.name for tensor in open_file(source).tensors}
        if not (isinstance(statistics, calibration.Statistics) and tensors.issuperset(statistics.names)):
            raise ValueError(
                f"expected statistics of this model's activations, got {statistics!r:.80}; "
                "pass calibration.measure(float_tflite(model), photos)"
            )
        found = statistics.ranges(method)
        if scheme.name == "int16x8":
            # An ADD whose three scales are powers of two (pixels scaled to -1..1 have them) is taken for another
            # kernel, which then refuses to run; a hundredth of a range is nothing to 16 bits.
            found = {name: (low * 1.01, high * 1.01) for name, (low, high) in found.items()}
        if lift_biases:
            source, _ = lift(source, found, 16 if scheme.name == "int16x8" else 8)
        ranges = calibration.quantizer_statistics(found, statistics.ranks)
    with quiet():
        work = quantizer.Quantizer(source)
        _recipe(work, scheme.name)
        excluded = [(f"^{re.escape(tensor)};?$", "ALL_SUPPORTED") for tensor in kept]
        if scheme.name != "int8_io":
            excluded += [(".*", "INPUT"), (".*", "OUTPUT")]
        for pattern, operation in excluded:
            _exclude(work, pattern, operation)
        result = work.quantize(ranges, enable_progress_report=False, enable_progress_bar=False)
    data = _whole_halves(bytes(result.quantized_model))
    try:
        open_interpreter(data, name=f"the {scheme.name} model")
    except ValueError as error:
        raise ValueError(f"{error}; or use scheme='dynamic_range', or tool='converter'") from error
    return data


def _whole_halves(content):
    """The file, unless float16 could not hold its weights: the quantizer makes them infinite, the converter 65,504."""
    file = open_file(content)
    for at, tensor in enumerate(file.tensors):
        if tensor.dtype == "FLOAT16" and (np.abs(file.data(at).view(np.float16)) >= np.finfo(np.float16).max).any():
            raise ValueError(
                f"float16 holds weights up to 65,504, got larger ones in {tensor.name!r}; use another scheme, or scale "
                "the layer down"
            )
    return content


def _recipe(work, name):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    op, whole = qtyping.TFLOperationName, qtyping.QuantGranularity.TENSORWISE
    if name == "float16":
        work.add_weight_only_config(".*", op.ALL_SUPPORTED, 16, whole, AlgorithmName.FLOAT_CASTING)
    elif name == "dynamic_range":
        # XNNPACK has no depthwise convolution with 8-bit activations made on the fly: these keep float arithmetic with
        # 8-bit weights, so that the whole network stays in one delegate.
        work.add_weight_only_config(".*", op.DEPTHWISE_CONV_2D, 8)
        work.add_dynamic_config(".*", op.CONV_2D, 8)
        work.add_dynamic_config(".*", op.FULLY_CONNECTED, 8)
    elif name in ("int8", "int8_io", "int16x8"):
        work.add_static_config(".*", op.ALL_SUPPORTED, 16 if name == "int16x8" else 8, 8)
    elif name == "weight_int8":
        work.add_weight_only_config(".*", op.ALL_SUPPORTED, 8)
    else:  # 4-bit depthwise kernels are not on offer
        work.add_weight_only_config(".*", op.DEPTHWISE_CONV_2D, 8)
        work.add_weight_only_config(".*", op.CONV_2D, 4)
        work.add_weight_only_config(".*", op.FULLY_CONNECTED, 4)


def _exclude(work, regex, operation):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    work.update_quantization_recipe(regex, qtyping.TFLOperationName[operation], algorithm_key=AlgorithmName.NO_QUANTIZE)


def tensors_of(source, layers):
    """Computed activations of the named layers."""
    if not layers:
        return []
    known = tensor_layers(source)
    for layer in layers:
        if layer not in known.values():
            raise ValueError(f"the model has no layer {layer!r}; take names from quantization.error.by_layer")
    return [tensor for tensor, layer in known.items() if layer in layers]


# --- what a float file holds ------------------------------------------------------------------------------------------
_STAYED = {"CONV_2D": "convolution", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "MatMul"}


def open_file(content):
    """The reader of .tflite files, as path or bytes; `utils.flops` imports Keras, so only here."""
    with quiet():
        from utils.flops import tflite
    return tflite.File(read_model(content)[1])


def computed(file):
    """(tensor name, layer name, operator) of every operator's output, in order, without what only converts numbers."""
    return [
        (file.tensors[at].name, layer_name(file.tensors[at].name, operator.type), operator.type)
        for operator in file.operators if operator.type not in ("QUANTIZE", "DEQUANTIZE")
        for at in operator.outputs
    ]  # fmt: skip


def tensor_layers(content):
    """The Keras layer of each computed activation of a .tflite: dict, tensor name -> layer name, in order."""
    return {tensor: layer for tensor, layer, _ in computed(open_file(content))}


def layer_name(tensor, operator):
    """The Keras layer behind a tensor's name.

    Converters join the scopes of everything that they fused with ";" and number repeated names. The scope whose
    operation stayed in the file names the layer.

    Example:
        >>> layer_name("net_1/act_1/Relu6;net_1/bn_1/add_1;net_1/block1a_dwconv_1/depthwise", "DEPTHWISE_CONV_2D")
        'block1a_dwconv'
    """
    scopes = [scope.split("/") for scope in tensor.split(";")]
    chosen = scopes[0]
    if len(scopes) == 1 and len(chosen) == 1:  # the output: named by the signature, not by a layer
        return operator.lower()
    for scope in scopes:
        if len(scope) > 1 and re.sub(r"\d+$", "", scope[-1]) == _STAYED.get(operator):
            chosen = scope
    return re.sub(r"_1$", "", chosen[-2] if len(chosen) > 1 else chosen[0])


# Position of the kernel and of the bias among an operator's inputs, and the kernel's axis of output channels.
_BIASED = {"CONV_2D": (1, 2, 0), "FULLY_CONNECTED": (1, 2, 0), "DEPTHWISE_CONV_2D": (1, 2, 3)}
_LARGEST = 2**30  # half of what int32 holds: ranges measured on other photos may be narrower
_LEVELS, _SYMMETRIC_LEVELS, _KERNEL_LEVELS = 255, 32767, 127


def lift(content, ranges, bits=8):
    """Raise one weight of each channel whose bias would not fit into 32 bits, just enough for it to fit.

    A quantized layer adds its bias to sums of products, in their unit: scale of the input times scale of the kernel. A
    kernel of zeros has the smallest scale there is, in whose unit a bias of 4 is far above 2^31. ai-edge-quantizer 0.10
    stores it without an error as -2^31, whatever its sign, and the layer answers about 0. (TensorFlow's converter
    widens the scale of such a kernel until the bias is below 2^30, as is done here.) Zero kernels are common: pruned
    channels, dead ones, squeeze-and-excitation that starts neutral (EfficientNetB0's warm start).

    With s = (high - low) / 255 of the input, a bias b fits where max|w| >= 127 |b| / (s 2^30). The raised weight adds
    at most 127 * 255 / 2^30 = 3e-5 of the bias to the channel's output, far below one step of 8 bits. (With 16 bits
    s is max(high, -low) / 32767, and that is up to 4e-3: biases are stored in 64 bits, but clipped to 32 before.)

    Args:
        content: bytes of a float32 .tflite.
        ranges: tensor name -> (low, high) of its values, as `calibration.Statistics.ranges` returns them.
        bits: of the activations, 8 or 16.

    Returns:
        (bytes, dict tensor name of the kernel -> number of channels raised); the bytes as given where none had to be.
    """
    data, raised = bytearray(content), {}
    file = open_file(data)
    for operator in file.operators:
        kernel_at, bias_at, axis = _BIASED.get(operator.type, (0, 0, 0))
        if not bias_at or len(operator.inputs) <= bias_at or operator.inputs[bias_at] is None:
            continue
        source, kernel, bias = (operator.inputs[at] for at in (0, kernel_at, bias_at))
        low, high = ranges.get(file.tensors[source].name, (0.0, 0.0))
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / _LEVELS if bits == 8 else max(-low, high) / _SYMMETRIC_LEVELS
        weights, biases = file.floats(kernel), file.floats(bias)
        if weights is None or biases is None or step <= 0:
            continue
        channels = np.moveaxis(weights, axis, 0)
        needed = _KERNEL_LEVELS * np.abs(biases) / (step * _LARGEST)
        short = np.abs(channels).reshape(len(channels), -1).max(1) < needed
        first = (slice(None), *(0,) * (channels.ndim - 1))
        channels[first] = np.where(short, needed, channels[first])  # a view: this writes into `data`
        if short.any():
            raised[file.tensors[kernel].name] = int(short.sum())
    return (bytes(data) if raised else content), raised


# --- TensorFlow's converter -------------------------------------------------------------------------------------------


def _converted(model, scheme, representative, io):
    def configure(converter, tf):
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

    return _whole_halves(_run_converter(model, configure, scheme.calibrated))


def _run_converter(model, configure=None, calibrated=False):
    """TensorFlow's converter on a Keras model at a batch of 1, its variables frozen into constants first.

    That is twice as fast as over a SavedModel; a bare `from_concrete_functions` loses variables without an error.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    shape = (1, *model.inputs[0].shape[1:])
    try:
        with quiet(), traceable(model):
            traced = tf.function(lambda image: tf.cast(keras.tree.flatten(model(image, training=False))[0], tf.float32))
            traced = traced.get_concrete_function(tf.TensorSpec(shape, tf.float32, name="image"))
            graph = traced.graph.as_graph_def()
            nodes = [graph.node, *(function.node_def for function in graph.library.function)]
            if not (calibrated and any(node.op.endswith("While") for part in nodes for node in part)):
                converter = tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(traced)])
                if configure is not None:
                    configure(converter, tf)
                return converter.convert()
    except Exception as error:  # the converter raises a class of its own, RuntimeError, ValueError …
        raise ValueError(
            f"TensorFlow Lite cannot express {model.name!r} ({_reason(error)}); replace those layers by supported ones"
        ) from error
    raise ValueError(LOOP)  # which the converter's calibration would end the process on


def _reason(error):
    missing = re.search(r"(?:Flex|custom|TF) ops?:\s*([^\n]+)", str(error))
    return f"it has no operator {missing.group(1).strip()[:120]}" if missing else reason(error)


def _verify(model, content):
    import keras

    photo = np.random.default_rng(0).integers(0, 256, (1, *model.inputs[0].shape[1:])).astype(np.float32)
    with traceable(model):
        expected = np.asarray(keras.tree.flatten(model(photo, training=False))[0])
    if not np.isfinite(expected).all():
        raise ValueError(f"{model.name!r} answers a photo with NaN or infinity, before conversion; train it again")
    difference = float(np.abs(TFLiteModel(content, num_threads=1)(photo) - expected).max())
    if not difference <= MAX_VERIFY_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(
            f"the converted {model.name!r} differs from the Keras model by {difference:.3g} on the same photo; "
            "look for layers that act differently at a batch of 1"
        )


# --- checks -----------------------------------------------------------------------------------------------------------


def find_scheme(name):
    """The Scheme of that name."""
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {name!r}")
    return SCHEMES[name]


def _tool(scheme, tool, from_tflite):
    if tool is not None and tool not in TOOLS:
        raise ValueError(f"tool must be one of {', '.join(TOOLS)}, got {tool!r}")
    if from_tflite:
        if tool == "converter":
            raise ValueError("the converter starts from a Keras model, not from a .tflite; use tool='quantizer'")
        return "quantizer"
    tool = tool or scheme.tools[0]
    if tool not in scheme.tools:
        raise ValueError(f"the {tool} cannot make {scheme.name}; use tool={scheme.tools[0]!r}")
    return tool


def input_shape(model):
    """(height, width, channels) of the photos that a model takes."""
    if not is_tflite(model):
        return tuple(model.inputs[0].shape[1:])
    opened = TFLiteModel(model, num_threads=1)
    return (*opened.input_size, opened.channels)
