"""A training step of the baseline, with TensorFlow's one kernel for batch normalization and with Keras 3's sums.

    python benchmarks/bench_baseline.py                     # 16 photos at 224 pixels, about two minutes on two cores
    python benchmarks/bench_baseline.py --size 64 --rounds 3

Both networks take turns on the same batch; the ratio of each round has nothing to do with the others.
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
import numpy as np

from utils import environment, models
from utils.training import loop


def network(size, fused):
    """The compiled baseline, its batch normalization as training uses it or as Keras does."""
    model = models.baseline_cnn(17, size)
    if fused:
        loop.fuse_batch_norm(model)
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", jit_compile=False)
    return model


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the photos")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args(arguments)
    photos = np.random.default_rng(0).uniform(0, 255, (options.batch, options.size, options.size, 3)).astype("float32")
    targets = np.eye(17, dtype="float32")[np.arange(options.batch) % 17]
    networks, times = [network(options.size, fused) for fused in (False, True)], [[], []]
    for number in range(options.rounds + 2):
        for model, seconds in zip(networks, times, strict=True):
            start = time.perf_counter()
            model.train_on_batch(photos, targets)
            if number >= 2:
                seconds.append(time.perf_counter() - start)
    ratios = sorted(plain / fused for plain, fused in zip(*times, strict=True))
    print(f"{environment.sentence()}; {options.batch} photos at {options.size} pixels, {options.rounds} rounds")
    for name, seconds in zip(("Keras 3's sums", "one kernel"), times, strict=True):
        print(f"{name:16} {1000 * statistics.median(seconds):8.0f} ms a step")
    print(f"{statistics.median(ratios):.2f} times faster (rounds from {ratios[0]:.2f} to {ratios[-1]:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
