"""Where quantization changes what a network computes: layer by layer, on the same photos.

:func:`by_layer` says how far the quantized network has drifted by the time it reaches a layer, :func:`alone` which
layer is to blame (one layer quantized in an otherwise float network). :func:`mixed` keeps the worst ones in float and
says what that buys.
"""

import numpy as np
import pandas as pd

from utils.classify import TFLiteModel, open_interpreter
from utils.environment import default_threads, quiet

from . import calibration
from .convert import SCHEMES, computed, convert, input_shape, open_file, tensor_layers, tensors_of
from .inputs import as_representative, collect, wanted_range
from .measure import difference, time_ratios

QUIET_SIGNAL = 1e-12  # mean square below which an activation is called silent


def by_layer(float_content, quantized_content, images, input_range=None):
    """Signal-to-quantization-noise ratio of every activation that both files compute.

    SQNR = 10 log10( sum(x^2) / sum((x - x_q)^2) ), x the float activation, x_q the dequantized one, over all photos.

    Args:
        float_content: bytes of the float32 .tflite.
        quantized_content: bytes of the same network, quantized.
        images: (n, height, width, channels) photos in 0..255; eight or more.
        input_range: (low, high) that the pixels are scaled to, as given to `convert`; None: what the quantized file
            says.

    Returns:
        DataFrame in the order of computation: "layer", "operator", "bits" (of the stored activation), "SQNR (dB)",
        "lost (dB)" (the SQNR of the layer's noisiest input minus its own: what this layer made worse; negative where
        it averages noise away).

    Raises:
        ValueError: no photos, photos of another shape, or two files that share no activation.
    """
    if len(images) == 0:
        raise ValueError("images must hold at least one photo, got none; pass some that calibration has not seen")
    quantized = _Run(quantized_content, input_range)
    runs, file = (_Run(float_content, quantized.feed.input_range), quantized), open_file(float_content)
    common = [row for row in computed(file) if row[0] in runs[1].index]
    if not common:
        raise ValueError("the two files share no activation; quantize the very file that they are compared with")
    signal, noise = np.zeros(len(common)), np.zeros(len(common))
    for image in images:
        for run in runs:
            run(image)
        for row, (tensor, _, _) in enumerate(common):
            exact, coarse = runs[0].value(tensor), runs[1].value(tensor)
            signal[row] += np.sum(np.square(exact, dtype=np.float64))
            noise[row] += np.sum(np.square(exact - coarse, dtype=np.float64))
    ratio = 10 * np.log10(np.maximum(signal, QUIET_SIGNAL) / np.maximum(noise, QUIET_SIGNAL))
    measured = dict(zip((tensor for tensor, _, _ in common), ratio, strict=True))
    names = [tensor.name for tensor in file.tensors]
    inputs = {names[at]: [names[i] for i in op.inputs if i is not None] for op in file.operators for at in op.outputs}
    rows = []
    for (tensor, layer, operator), own in zip(common, ratio, strict=True):
        before = [measured[name] for name in inputs[tensor] if name in measured]
        rows.append({
            "layer": layer,
            "operator": operator,
            "bits": 8 * runs[1].details[runs[1].index[tensor]]["dtype"]().itemsize,
            "SQNR (dB)": own,
            "lost (dB)": min(before) - own if before else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def alone(float_content, statistics, images, layers=None):
    """Quantize one layer at a time, leave the rest in float: the damage that each does by itself.

    Args:
        float_content: bytes of the float32 .tflite.
        statistics: `calibration.Statistics` of that file, or representative photos in 0..255.
        images: (n, height, width, channels) photos in 0..255.
        layers: names; None: every layer of the file.

    Returns:
        DataFrame, worst first: "layer", "mean_change", "largest_change", "changed_answers"
        (share of photos whose first class changes).
    """
    statistics = _statistics(float_content, statistics)
    every = list(dict.fromkeys(tensor_layers(float_content).values()))
    layers = every if layers is None else [layers] if isinstance(layers, str) else list(layers)
    tensors_of(float_content, layers)  # refuses unknown ones
    reference, rows = TFLiteModel(float_content, input_range=statistics.input_range)(images), []
    for layer in layers:
        others = [name for name in every if name != layer]
        content = convert(float_content, "int8", statistics=statistics, keep_float=others)
        change = difference(TFLiteModel(content, input_range=statistics.input_range)(images), reference)
        chosen = {key: change[key] for key in ("mean_change", "largest_change")}
        rows.append({"layer": layer, **chosen, "changed_answers": 1 - change["agreement"]})
    frame = pd.DataFrame(rows, columns=["layer", "mean_change", "largest_change", "changed_answers"])
    return frame.sort_values("mean_change", ascending=False, ignore_index=True)


def mixed(float_content, statistics, worst, images, counts=(0, 1, 2, 4, 8), labels=None):
    """Keep the worst layers in float32, the rest in int8, and see what that buys and costs.

    Args:
        float_content: bytes of the float32 .tflite.
        statistics: `calibration.Statistics` of that file, or representative photos in 0..255.
        worst: layer names, worst first (from :func:`alone`).
        images: (n, height, width, 3) photos in 0..255.
        counts: how many of `worst` to keep in float; those above its length are left out, all of `worst` comes last.
        labels: (n,) class indices, to add the accuracy.

    Returns:
        DataFrame, a row a count: "layers_in_float", "accuracy", "agreement", "mean_change",
        "largest_change", "size_bytes", "time_ratio" (median of interleaved runs of one photo).
    """
    statistics = _statistics(float_content, statistics)
    worst = [worst] if isinstance(worst, str) else list(worst)
    if min(counts, default=0) < 0:
        raise ValueError(f"counts must be numbers of layers from 0 on, got {counts}")
    counts = list(dict.fromkeys(min(count, len(worst)) for count in counts))
    reference = TFLiteModel(float_content, input_range=statistics.input_range)(images)
    files = {
        count: convert(float_content, "int8", statistics=statistics, keep_float=worst[:count])
        for count in dict.fromkeys((0, *counts))
    }
    opened = {count: TFLiteModel(data, input_range=statistics.input_range) for count, data in files.items()}
    times = time_ratios(opened, images[:1], baseline=0)
    rows = []
    for count in counts:
        change = difference(opened[count](images), reference, labels)
        rows.append({"layers_in_float": count, **change, "size_bytes": len(files[count]), "time_ratio": times[count]})
    return pd.DataFrame(rows)


class _Run:
    """A network whose every activation can be read after a photo went through it."""

    def __init__(self, content, input_range):
        with quiet():  # the interpreter warns that keeping tensors is for debugging
            self.interpreter = open_interpreter(content, default_threads(), keep_tensors=True)
        self.feed = TFLiteModel(content, num_threads=1, input_range=input_range)
        self.details = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}
        computed = {int(index) for op in self.interpreter._get_ops_details() for index in op["outputs"]}
        self.index = {self.details[index]["name"]: index for index in computed if index in self.details}

    def __call__(self, image):
        (source,) = self.interpreter.get_input_details()
        self.interpreter.set_tensor(source["index"], self.feed.to_input(self.feed.checked(image[None])))
        self.interpreter.invoke()

    def value(self, tensor):
        index = self.index[tensor]
        values, parameters = self.interpreter.get_tensor(index), self.details[index]["quantization_parameters"]
        if not len(parameters["scales"]):
            return values
        return (values.astype(np.float32) - parameters["zero_points"][0]) * parameters["scales"][0]


def _statistics(float_content, given):
    if isinstance(given, calibration.Statistics):
        return given
    input_range = wanted_range(float_content, None)
    photos = as_representative(collect(given), SCHEMES["int8"], input_shape(float_content), input_range)
    return calibration.measure(float_content, photos, input_range)
