"""Ranges of activations for static quantization: measured once on representative photos, read in several ways.

An int8 activation has 256 steps between a lowest and a highest value. Wide ranges lose resolution, narrow ones clip.
Call :func:`measure`, then :meth:`Statistics.ranges` for any number of photos and any rule.
"""

import dataclasses

import numpy as np

from utils.classify import open_interpreter
from utils.environment import default_threads, quiet

METHODS = ("min-max", "moving average", "percentile", "mse")
SAMPLE = 2048  # values kept of each activation and photo
PERCENTILE = 99.99
SMOOTHING = 0.95  # ai-edge-quantizer's default
PIXELS = (0.0, 255.0)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a float model's activations did on representative photos.

    Attributes:
        names: of the n_tensors float activations, the model's input first.
        ranks: number of dimensions of each.
        lows, highs: (n_photos, n_tensors) extremes of each activation on each photo.
        samples: (n_photos, n_tensors) object array of float32 arrays: up to 2,048 evenly spaced values each.
        input_range: of the model's input, whatever the photos show.
    """

    names: tuple
    ranks: tuple
    lows: np.ndarray
    highs: np.ndarray
    samples: np.ndarray
    input_range: tuple = PIXELS

    def __len__(self):
        return len(self.lows)

    def __repr__(self):
        return f"Statistics({len(self.names)} activations on {len(self)} photos)"

    def first(self, count):
        """The statistics of the first `count` photos."""
        if not 1 <= count <= len(self):
            raise ValueError(f"count must be between 1 and the {len(self)} photos that were measured, got {count}")
        parts = {name: getattr(self, name)[:count] for name in ("lows", "highs", "samples")}
        return dataclasses.replace(self, **parts)

    def ranges(self, method="min-max"):
        """The range of each activation by one of `METHODS`.

        "min-max": the extremes over all photos (the TFLite converter's rule). "moving average": low and high follow
        the photos' extremes with weight 0.05 (ai-edge-quantizer's rule). "percentile": the central 99.98 % of
        the values. "mse": the range, narrowed step by step from min-max, whose 256 levels reproduce the sampled values
        with the least mean squared error.

        Args:
            method: one of `METHODS`.

        Returns:
            dict, activation name -> (low, high), floats. The input has its `input_range`, whatever was seen.

        Raises:
            ValueError: unknown method.
        """
        if method not in METHODS:
            raise ValueError(f"calibrate must be one of {', '.join(METHODS)}, got {method!r}")
        lows, highs = self.lows, self.highs
        if method == "moving average":
            low, high = _moving_average(lows), _moving_average(highs)
        else:
            low, high = lows.min(axis=0), highs.max(axis=0)
        if method in ("percentile", "mse"):
            for index in range(len(self.names)):
                values = np.concatenate(list(self.samples[:, index]))
                if method == "percentile":
                    low[index], high[index] = np.percentile(values, [100 - PERCENTILE, PERCENTILE])
                else:
                    low[index], high[index] = _least_error(values, low[index], high[index])
        found = {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.names)}
        found[self.names[0]] = self.input_range
        return found


def measure(float_tflite, representative, input_range=PIXELS):
    """Run a float model on representative photos and note what each activation does.

    Args:
        float_tflite: bytes of a float32 .tflite model.
        representative: (n, height, width, channels) photos as the model takes them, in an order whose beginnings are
            balanced too.
        input_range: (low, high) of the model's input.

    Returns:
        Statistics.
    """
    try:
        return _measured(float_tflite, representative, input_range, "xnnpack")
    except ValueError:  # "Tensor data is null": XNNPACK keeps nothing of what it computes once, as unrolled steps do
        return _measured(float_tflite, representative, input_range, "builtin")


def _measured(float_tflite, representative, input_range, kernels):
    with quiet():  # the interpreter warns that keeping tensors is for debugging
        interpreter = open_interpreter(float_tflite, default_threads(), kernels, keep_tensors=True)
    (source,) = interpreter.get_input_details()
    representative, wanted = np.asarray(representative), tuple(map(int, source["shape"][1:]))
    if len(representative) == 0 or representative.shape[1:] != wanted:
        expected = ", ".join(map(str, wanted))
        raise ValueError(f"representative photos must have shape (n, {expected}), got {representative.shape}")
    computed = {int(index) for op in interpreter._get_ops_details() for index in op["outputs"]}
    details = {
        detail["index"]: detail for detail in interpreter.get_tensor_details()
        if detail["index"] in computed and detail["dtype"] == np.float32 and detail["name"]
    }  # fmt: skip
    details = {source["index"]: source, **details}
    shape = (len(representative), len(details))
    lows, highs, samples = np.empty(shape), np.empty(shape), np.empty(shape, dtype=object)
    for row, photo in enumerate(representative):
        interpreter.set_tensor(source["index"], np.asarray(photo, np.float32)[None])
        interpreter.invoke()
        for column, index in enumerate(details):
            values = interpreter.get_tensor(index).ravel()
            lows[row, column], highs[row, column] = values.min(), values.max()
            samples[row, column] = values[:: max(1, values.size // SAMPLE)][:SAMPLE].copy()
    names, ranks = zip(*((detail["name"], len(detail["shape"])) for detail in details.values()), strict=True)
    return Statistics(names, ranks, lows, highs, samples, tuple(input_range))


def quantizer_statistics(ranges, ranks):
    """Ranges as ai-edge-quantizer takes them."""
    return {
        name: {"min": np.full((1,) * rank, low, np.float32), "max": np.full((1,) * rank, high, np.float32)}
        for (name, (low, high)), rank in zip(ranges.items(), ranks, strict=True)
    }


def _moving_average(values):
    average = values[0].copy()
    for row in values[1:]:
        average = SMOOTHING * average + (1 - SMOOTHING) * row
    return average


def _least_error(values, low, high, levels=256, steps=40):
    values = values[:: max(1, len(values) // 20_000)]
    best = (np.inf, low, high)
    for share in np.linspace(1, 0.2, steps):
        a, b = min(low * share, 0), max(high * share, 0)
        scale = (b - a) / (levels - 1) or 1.0
        error = np.mean((np.clip(np.rint((values - a) / scale), 0, levels - 1) * scale + a - values) ** 2)
        if error < best[0]:
            best = (error, a, b)
    return best[1:]
