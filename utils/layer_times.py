"""What each layer of a model takes by itself: every layer is converted to a .tflite of its own and timed side by side.

A layer alone is not quite the layer in its model (no fusion with what follows, warm caches), but it is measured in the
runtime that phones use, with the rounds of utils.latency, and it answers the question: do MACs tell milliseconds?
"""

import json

import keras
import numpy as np
import pandas as pd

from utils import latency
from utils.layer_calls import layer_calls

ARITHMETIC = ("Conv2D", "DepthwiseConv2D", "Dense")


def single_layers(model, types=ARITHMETIC):
    """The distinct layers of a model as models of one layer each.

    Layers of the same settings and input shape (block_2_expand and block_3_expand, say) cost the same and are one.

    Args:
        model: a Keras 3 model with known input shapes.
        types: class names of the layers to take out.

    Returns:
        (paths, singles): {path of a call: its key}, {key: keras.Model of that layer, with random weights}; a key is the
        path of the first such call.

    Raises:
        ValueError: the model has no such layer.
    """
    paths, singles, seen = {}, {}, {}
    for call in layer_calls(model):
        if call.type not in types:
            continue
        settings = call.layer.get_config()
        del settings["name"]
        mark = call.type, call.input_shapes[0][1:], json.dumps(settings, sort_keys=True, default=str)
        if mark not in seen:
            seen[mark] = call.path
            image = keras.Input(batch_shape=(1, *call.input_shapes[0][1:]))
            singles[call.path] = keras.Model(image, type(call.layer).from_config({**settings, "name": "single"})(image))
        paths[call.path] = seen[mark]
    if not paths:
        raise ValueError(f"{model.name!r} has no layer of type {', '.join(types)}; name others with types=")
    return paths, singles


def layer_times(model, types=ARITHMETIC, *, rounds=15, num_threads=1, budget_s=30.0):
    """Median milliseconds of each convolution and dense layer of a model, by itself, in float32 on LiteRT.

    Args:
        model: a Keras 3 model with known input shapes.
        types: class names of the layers to time.
        rounds: rounds of `utils.latency.measure`, at least 5.
        num_threads: of the interpreter.
        budget_s: seconds for all rounds together, approximately.

    Returns:
        DataFrame, one row a call in execution order: path, type, median_ms; `attrs["caption"]` says where and how.

    Raises:
        ValueError: no such layer, or fewer than 5 rounds.

    Example:
        >>> net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> list(layer_times(net, rounds=5)["path"])
        ['conv']
    """
    paths, singles = single_layers(model, types)
    candidates = {key: _runner(single, num_threads) for key, single in singles.items()}
    timings = latency.measure(candidates, rounds=rounds, warmup=2, threads=num_threads, budget_s=budget_s)
    median = timings.samples.groupby("name")["time_ms"].median()
    kinds = {call.path: call.type for call in layer_calls(model)}
    frame = pd.DataFrame([(path, kinds[path], median[key]) for path, key in paths.items()])
    frame.columns = ["path", "type", "median_ms"]
    frame.attrs["caption"] = timings.caption()
    return frame


def _runner(model, num_threads):
    """A callable that runs the converted model once on numbers that already lie in its input."""
    import tensorflow as tf  # the converter, which only timing needs

    from utils import tflite_model

    with tflite_model.quiet():
        content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    interpreter = tflite_model.open_interpreter(content, num_threads)
    numbers = np.random.default_rng(0).uniform(size=model.inputs[0].shape).astype("float32")
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], numbers)
    return interpreter.invoke
