"""The table nobody shows: one photo (and a batch) through every runtime, for the three backbones.

    python benchmarks/bench_latency.py                     # all three, about a quarter of an hour on two cores
    python benchmarks/bench_latency.py --models efficientnet_lite0 --rounds 10 --operators
    python benchmarks/bench_latency.py --size 64 --rounds 5 --budget 5    # does it run?

Run it on a quiet machine: it warns when other processes were busy. It checks what the project claims: LiteRT at least
6 times faster than Keras' predict, within 10 % of onnxruntime at equal threads, and a wrapper that costs under 3 %.
"""

import argparse
import os
import pathlib
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from utils import latency, models, plots, quantization
from utils.quantization import operators as operator_times
from utils.quantization import runtimes

SCHEMES = ("float32", "float16", "dynamic_range", "int8", "int8_io", "int16x8", "weight_int8")


def network(name, size, photos):
    """The model and its files. Time does not depend on what the weights are, as long as they are no denormals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.transfer(name, 10, size)
        if models.needs_batch_norm(name):
            models.reestimate_batch_norm(model, photos)
    files = {}
    for scheme in SCHEMES:
        try:
            files[scheme] = quantization.convert(model, scheme, photos)
        except (ValueError, RuntimeError) as error:
            print(f"{name}: no {scheme}: {error}")
    return model, files


def claims(frame):
    """What the issue asks for, as (sentence, number, holds)."""
    ratio = frame.set_index("name")["ratio"]
    rows = [
        ("Keras predict / LiteRT float32, at least 6", ratio["Keras predict"], ratio["Keras predict"] >= 6),
        ("TFLiteModel / bare interpreter, at most 1.03", ratio["LiteRT float32, TFLiteModel"],
         ratio["LiteRT float32, TFLiteModel"] <= 1.03),
    ]  # fmt: skip
    if np.isfinite(ratio[runtimes.ONNX]):
        rows.append(
            ("LiteRT float32 / onnxruntime, at most 1.10", 1 / ratio[runtimes.ONNX], ratio[runtimes.ONNX] > 1 / 1.1)
        )
    return pd.DataFrame(rows, columns=["claim", "measured", "holds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(models.BACKBONES), choices=list(models.BACKBONES))
    parser.add_argument("--size", type=int, default=224, help="side of the photo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="photos of the batch table; 1 for none")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--budget", type=float, default=120, help="seconds of timing for a table, approximately")
    parser.add_argument("--operators", action="store_true", help="also time by operator")
    parser.add_argument("--figures", type=pathlib.Path, help="folder for the figures")
    arguments = parser.parse_args()
    pd.set_option("display.width", 200, "display.max_columns", 20)
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (max(16, arguments.batch), arguments.size, arguments.size, 3), dtype=np.uint8)
    print(latency.machine())
    for name in arguments.models:
        model, files = network(name, arguments.size, photos[:16])
        for count in sorted({1, arguments.batch}):
            timings = runtimes.price_list(
                model, files, photos[:count], arguments.threads, rounds=arguments.rounds, budget_s=arguments.budget,
                detailed=("float32", "int8"),
            )  # fmt: skip
            print(f"\n{models.BACKBONES[name].title}, {count} photo(s) a call\n{timings}")
            if count == 1:
                print(claims(timings.to_frame()).to_string(index=False))
            save(arguments.figures, f"latency-{name}-{count}", plots.latency_bars(timings.to_frame()))
        if arguments.operators:
            for scheme in ("float32", "int8"):
                times = operator_times.per_operator_times(files[scheme], arguments.threads, rounds=arguments.rounds)
                print(f"\n{name} {scheme}: {times}\n{times.by_operator()}\n{times.slow_for_arithmetic()}")
                columns = {"operator": "kind", "name": "path", "time_ms": "median_ms"}
                points = times.frame[times.frame["macs"] > 0].rename(columns=columns)
                save(arguments.figures, f"operators-{name}-{scheme}", plots.macs_against_time(points))


def save(folder, name, figure):
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png")


if __name__ == "__main__":
    main()
