"""One count of a network's FLOPs: this project, keras-flops, and the layer loop of Keras_FLOP_Estimator.

    python benchmarks/bench_flops.py                     # EfficientNetB0 and B7, about a minute on two cores
    python benchmarks/bench_flops.py --rounds 5 --network MobileNetV2 --large MobileNetV2    # does it run?

All in one process, on models that are built already, in alternating order. Run it on a quiet machine. It checks what
the project claims of EfficientNetB0: at least 100 times faster than keras-flops, and at most 1.3 times the time of the
layer loop, which knows far less (no nested or shared layers, no element-wise operations, no bytes, zero for a layer
that it does not know). And of EfficientNetB7: under 50 ms. Prints a table and one JSON line.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import keras
import pandas as pd

from utils import environment, flops

# What a layer's description must say, and must not, to be one of the kinds that Keras_FLOP_Estimator tells apart.
KINDS = {
    "input": (["InputLayer"], []),
    "reshape": (["Reshape"], []),
    "add": (["Add"], []),
    "maximum": (["Maximum"], []),
    "concatenate": (["Concatenate"], []),
    "average": (["Average"], ["pool"]),
    "norm": (["BatchNormalization"], []),
    "activation": (["Activation"], []),
    "pool": (["pool"], ["Global"]),
    "flatten": (["Flatten"], []),
    "dense": (["Dense"], []),
    "padding": (["Padding"], []),
    "global": (["Global"], []),
    "conv": (["Conv2D "], ["DepthwiseConv2D", "SeparableConv2D"]),
    "depthwise": (["DepthwiseConv2D"], ["SeparableConv2D"]),
}


def layer_loop(model):
    """MACs as Keras_FLOP_Estimator goes about it, on Keras 3: a loop over the layers that knows them by the words in
    their descriptions, asked anew for each kind, and counts convolutions at input / stride."""
    total, table = 0, []
    for layer in model.layers:
        kinds = [
            kind
            for kind, (words, others) in KINDS.items()
            if all(word in str(layer) for word in words) and all(word not in str(layer) for word in others)
        ]
        if "input" in kinds:
            continue
        given = layer.input[0].shape if isinstance(layer.input, list) else layer.input.shape
        gives, strides, kernel, count = layer.output.shape, (1, 1), (0, 0), 0
        if "dense" in kinds:
            count = gives[-1] * given[-1]
        if "conv" in kinds or "depthwise" in kinds:
            strides, kernel = layer.strides, layer.kernel_size
            filters = layer.filters if "conv" in kinds else 1
            count = (given[1] // strides[0]) * (given[2] // strides[1]) * kernel[0] * kernel[1] * given[3] * filters
        total += count
        table.append((layer.name, list(given), list(gives), kernel, strides, 2 * count))
    return total


def seconds(function, argument):
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="EfficientNetB0")
    parser.add_argument("--large", default="EfficientNetB7")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds of keras-flops")
    options = parser.parse_args(argv)

    network = getattr(keras.applications, options.network)(weights=None)
    large = getattr(keras.applications, options.large)(weights=None)
    first = seconds(flops.count, network)
    studied = flops.count(network, convention="input_over_stride").total_macs
    assert layer_loop(network) == studied or options.network != "EfficientNetB0"  # it does count
    ours, loop, slow = [], [], []
    for number in range(options.rounds):
        pair = [(ours, flops.count), (loop, layer_loop)]
        for times, function in pair if number % 2 else reversed(pair):
            times.append(seconds(function, network))
    for _ in range(options.slow_rounds):
        slow.append(seconds(flops.keras_flops_total, network))
    larger = [seconds(flops.count, large) for _ in range(options.rounds)]

    median = {name: statistics.median(times) for name, times in
              {"ours": ours, "loop": loop, "slow": slow, "large": larger}.items()}  # fmt: skip
    table = pd.DataFrame(
        [
            ("utils.flops.count", options.network, len(ours), median["ours"] * 1e3, min(ours) * 1e3),
            ("utils.flops.count, first call", options.network, 1, first * 1e3, first * 1e3),
            ("layer loop of Keras_FLOP_Estimator", options.network, len(loop), median["loop"] * 1e3, min(loop) * 1e3),
            ("keras-flops", options.network, len(slow), median["slow"] * 1e3, min(slow) * 1e3),
            ("utils.flops.count", options.large, len(larger), median["large"] * 1e3, min(larger) * 1e3),
        ],
        columns=["counter", "network", "rounds", "median_ms", "fastest_ms"],
    )
    claims = pd.DataFrame(
        [
            (
                "keras-flops / ours, at least 100",
                median["slow"] / median["ours"],
                median["slow"] >= 100 * median["ours"],
            ),
            ("ours / layer loop, at most 1.3", median["ours"] / median["loop"], median["ours"] <= 1.3 * median["loop"]),
            (f"{options.large}, ms, under 50", median["large"] * 1e3, median["large"] < 0.05),
        ],
        columns=["claim", "measured", "holds"],
    )
    print(environment.sentence())
    print(table.to_string(index=False, float_format="{:.2f}".format))
    print(claims.to_string(index=False, float_format="{:.2f}".format))
    record = {"median_ms": {name: round(value * 1e3, 3) for name, value in median.items()}, "first_ms": first * 1e3}
    print(json.dumps({**record, "holds": bool(claims["holds"].all())}))
    return 0 if claims["holds"].all() else 1


if __name__ == "__main__":
    sys.exit(main())
