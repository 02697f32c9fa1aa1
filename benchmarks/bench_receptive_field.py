"""How long a table of receptive fields takes once the model is built: ``python benchmarks/bench_receptive_field.py``.

Prints the median, fastest and slowest time of each, for models small and large, and whether the promise holds:
EfficientNetB0's whole-model table in under 50 ms.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import keras

from utils import environment
from utils.receptive_field import receptive_field, table

LIMIT_MS = 50


def times_ms(call, repeats):
    """Milliseconds of `repeats` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--models", nargs="+", default=["EfficientNetB0", "MobileNetV2", "DenseNet121", "EfficientNetB7"]
    )
    options = parser.parse_args(arguments)
    print(f"{environment.sentence()}; {options.repeats} calls each, in milliseconds\n")
    print(f"{'model':16} {'what':28} {'median':>8} {'fastest':>8} {'slowest':>8}")
    medians = {}
    for name in options.models:
        model = getattr(keras.applications, name)(weights=None)
        tasks = {
            "table with MACs": lambda model=model: table(model),
            "table without MACs": lambda model=model: table(model, macs=False),
            "one receptive field": lambda model=model: receptive_field(model),
        }
        for what, call in tasks.items():
            times = times_ms(call, options.repeats)
            medians[name, what] = statistics.median(times)
            print(f"{name:16} {what:28} {medians[name, what]:8.1f} {min(times):8.1f} {max(times):8.1f}")
    promised = medians.get(("EfficientNetB0", "table with MACs"))
    if promised is None:
        return 0
    kept = promised < LIMIT_MS
    print(f"\nEfficientNetB0 in under {LIMIT_MS} ms: {'yes' if kept else 'NO'} ({promised:.1f} ms)")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
