"""Biases that 32 bits can hold: what int8 conversion needs of a channel whose kernel is all but zero.

A quantized layer adds its bias to sums of products, so that the bias is stored in their unit: scale of the input times
scale of the kernel. A channel whose kernel is zero has the smallest kernel scale there is (1e-9 / 127 in
ai-edge-quantizer 0.10), in whose unit a bias of 4 is some 10^13: it passes the 32 bits that it is stored in, becomes
-2^31, and the layer answers 0 in place of 4. No error says so. Zero kernels are common: pruned channels, dead ones, and
squeeze-and-excitation that starts neutral (EfficientNetB0's warm start: every gate at sigmoid(0) = 1/2 for 0.98).
"""

import numpy as np

# Position of the kernel and of the bias among an operator's inputs, and the kernel's axis of output channels.
_LAYERS = {"CONV_2D": (1, 2, 0), "FULLY_CONNECTED": (1, 2, 0), "DEPTHWISE_CONV_2D": (1, 2, 3)}
_LARGEST = 2**30  # half of what int32 holds: ranges measured on other photos may be narrower
_LEVELS, _KERNEL_LEVELS = 255, 127


def lift(content, ranges):
    """Raise one weight of each channel whose bias would not fit into 32 bits, just enough for it to fit.

    With s = (high - low) / 255 of the input, a bias b fits where max|w| >= 127 |b| / (s 2^30). The raised weight adds
    at most 127 * 255 / 2^30 = 3e-5 of the bias to the channel's output, far below one step of 8 bits.

    Args:
        content: bytes of a float32 .tflite.
        ranges: tensor name -> (low, high) of its values, as `calibration.Statistics.ranges` gives them.

    Returns:
        (bytes, dict tensor name of the kernel -> number of channels raised); the bytes are those given where no channel
        had to be raised.

    Example:
        >>> import keras
        >>> from utils import tflite_convert
        >>> image = keras.Input((8, 8, 3))
        >>> layer = keras.layers.Conv2D(2, 1, kernel_initializer="zeros", bias_initializer="ones")
        >>> model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(layer(image)))
        >>> content = tflite_convert.float_tflite(model)
        >>> name = next(iter(_inputs(content)))
        >>> sum(lift(content, {name: (0.0, 255.0)})[1].values())
        2
    """
    data, raised = bytearray(content), {}
    graph, buffers = _graph(data)
    for kind, inputs in _operators(data):
        if kind not in _LAYERS:
            continue
        kernel_at, bias_at, axis = _LAYERS[kind]
        if len(inputs) <= bias_at or inputs[bias_at] < 0:
            continue
        source, kernel, bias = (graph.Tensors(inputs[at]) for at in (0, kernel_at, bias_at))
        low, high = ranges.get(_name(source), (0.0, 0.0))
        step = (max(high, 0.0) - min(low, 0.0)) / _LEVELS
        weights, biases = _values(kernel, buffers), _values(bias, buffers)
        if weights is None or biases is None or step <= 0:
            continue
        channels = np.moveaxis(weights, axis, 0)
        needed = _KERNEL_LEVELS * np.abs(biases) / (step * _LARGEST)
        short = np.abs(channels).reshape(len(channels), -1).max(1) < needed
        first = (slice(None), *(0,) * (channels.ndim - 1))
        channels[first] = np.where(short, needed, channels[first])  # a view: this writes into `data`
        if short.any():
            raised[_name(kernel)] = int(short.sum())
    return (bytes(data) if raised else content), raised


def _graph(data):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    return model.Subgraphs(0), model.Buffers


def _operators(data):
    """(kind, positions of the input tensors) of each operator of the main graph."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    graph = model.Subgraphs(0)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        yield kind, [operator.Inputs(at) for at in range(operator.InputsLength())]


def _inputs(content):
    """Names of the main graph's input tensors."""
    graph, _ = _graph(bytearray(content))
    return [_name(graph.Tensors(graph.Inputs(at))) for at in range(graph.InputsLength())]


def _name(tensor):
    return (tensor.Name() or b"").decode("utf-8", errors="replace")


def _values(tensor, buffers):
    """A float32 constant as an array that shares its memory with the file's bytes, or None."""
    from ai_edge_litert import schema_py_generated as schema

    raw = buffers(tensor.Buffer()).DataAsNumpy()
    if tensor.Type() != schema.TensorType.FLOAT32 or isinstance(raw, int) or raw.size == 0:
        return None
    return raw.view(np.float32).reshape([tensor.Shape(at) for at in range(tensor.ShapeLength())])
