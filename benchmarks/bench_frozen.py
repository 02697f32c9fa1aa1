"""Study B's way of training a head (every photo through the frozen network in every epoch) against cached features.

    python benchmarks/bench_frozen.py                          # MobileNetV2, clothing-10, 200 epochs
    python benchmarks/bench_frozen.py --per-class 4 --epochs 4 --online-epochs 1 --size 96      # a quick try

Both train the same head on the same photos on this machine in this one run. Study B's time is its measured time per
epoch (median after a warm-up epoch) times its number of epochs; the other time is all there is: extraction with an
empty cache, and the training of the head. The accuracy of study B's way is taken after its measured epochs, or after
all of them (hours) with ``--online-epochs`` equal to ``--epochs``; the study's own 85.48 % stands beside it. Prints a
table and one JSON line.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="clothing-10")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=224, help="input side, pixels")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of study B")
    parser.add_argument("--online-epochs", type=int, default=3, help="epochs of study B's way that are run")
    parser.add_argument("--views", type=int, default=0, help="augmented views a photo for the cached way")
    parser.add_argument("--per-class", type=int, default=None, help="photos a class and part; default all")
    options = parser.parse_args(argv)

    from utils import datasets, environment, training
    from utils.evaluation import evaluate
    from utils.training.config import RunConfig

    data = datasets.load(options.dataset)
    if options.per_class:
        frame = data.frame.groupby(["split", "label"], group_keys=False).head(options.per_class)
        data = dataclasses.replace(data, frame=frame.reset_index(drop=True))
    common = {
        "model": options.backbone, "input_size": options.size, "batch_size": 32, "dropout": 0.2,
        "allow_leaks": data.allowed_leaks,
    }  # fmt: skip
    # Study B: Adam 1e-4, flip and rotation, best checkpoint.
    online = RunConfig(
        name="online", mode="frozen_online", epochs=options.epochs, learning_rate=1e-4, augment="study_b", **common
    )
    # The same number of epochs; they cost so little that nothing is saved by fewer.
    views = {"views": options.views, "augment": "light"} if options.views else {}
    cached = RunConfig(name="cached", mode="frozen", epochs=options.epochs, learning_rate=1e-3, **views, **common)

    rows, test = {}, data.part("test")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLOTHING_CACHE_DIR"] = str(pathlib.Path(folder) / "cache")
        started = time.perf_counter()
        run = training.train(cached, data, folder=folder, verbose=0)
        total_s = time.perf_counter() - started
        judged = evaluate(run.predict, test, data.classes)
        rows["cached features"] = {"epochs": len(run.history), "total_s": total_s, "test_accuracy": judged.accuracy}

        few = dataclasses.replace(online, epochs=max(options.online_epochs, 1))
        run = training.train(few, data, folder=folder, verbose=0)
        seconds = list(run.history["seconds"])
        # The first epoch compiles and decodes; where it is the only one, it stands for all.
        epoch_s = statistics.median(seconds[1:] or seconds)
        judged = evaluate(run.predict, test, data.classes)
        rows["study B"] = {
            "epochs": options.epochs, "measured_epochs": len(seconds), "epoch_s": epoch_s,
            "total_s": epoch_s * options.epochs, "test_accuracy": judged.accuracy,
        }  # fmt: skip
    times = rows["study B"]["total_s"] / rows["cached features"]["total_s"]
    for name, row in rows.items():
        print(f"{name:16} {row['total_s']:10.1f} s   test accuracy {row['test_accuracy']:.3f}   {row['epochs']} epochs")
    print(f"cached features take {times:.0f} times less; study B published 0.8548 on the official test of clothing-10")
    print(json.dumps({"rows": rows, "times": times, "options": vars(options), "environment": environment.describe()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
