"""How cost grows: 1 to 16 times the photos, 10 to 1,000 layers, 64 to 320 pixels.

    python -m benchmarks.bench_growth                          # about five minutes on two cores
    python -m benchmarks.bench_growth --photos 10 --most 2     # a quick try
    python -m benchmarks.bench_growth --record                 # also results/growth.json and repo_images/growth.png

Every measurement of photos is a process of its own: seconds, and the peak of its anonymous memory (pages of mapped
files can be dropped at any time and are not in it). The photos are drawn garments, for the kind of photo does not
matter here. Layers and input sizes are timed in this process, the median of several calls. Prints tables and one JSON
line.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

STAGES = ("index", "cache on disk", "cache in memory", "features", "training")
SIDE = 224


def anonymous_mib():
    """This process' anonymous memory now."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Peak:
    """The highest anonymous memory while it runs, looked at every 5 ms, above what it was at the start."""

    def __enter__(self):
        self.before = self.highest = anonymous_mib()
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self):
        while not self.over.wait(0.005):
            self.highest = max(self.highest, anonymous_mib())

    def __exit__(self, *_):
        self.over.set()
        self.watcher.join()
        self.mib = max(self.highest, anonymous_mib()) - self.before


def one_stage(stage, root, per_class, cache):
    """Do one stage on drawings that are there already; returns seconds and MiB."""
    import tensorflow as tf

    from utils import datasets
    from utils.datasets import pipeline
    from utils.training import features

    def photos():
        return datasets.load("sketches", root=root, per_class=per_class)

    def read(kept, frame, classes):
        return pipeline.batches(frame, classes, SIDE, 32, training=True, cache=kept, cache_dir=cache)

    def train(data):
        network = tf.keras.Sequential(
            [tf.keras.Input((SIDE, SIDE, 3)), tf.keras.layers.Conv2D(8, 3, strides=4),
             tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(len(data.classes), "softmax")]
        )  # fmt: skip
        network.compile("sgd", "categorical_crossentropy")
        network.fit(read("disk", data.frame, data.classes), epochs=1, verbose=0)

    def consume(batches):
        for _ in batches:
            pass

    data = None if stage == "index" else photos()
    work = {
        "index": photos,
        "cache on disk": lambda: consume(read("disk", data.frame, data.classes)),
        "cache in memory": lambda: consume(read("memory", data.frame, data.classes)),
        "features": lambda: features.extract("efficientnet_lite0", data.frame, SIDE, cache_dir=cache),
        "training": lambda: train(data),
    }[stage]
    if stage == "features":
        features.extract("efficientnet_lite0", data.frame.head(8), SIDE, cache_dir=False)  # the network is built here
    if stage == "training":
        consume(read("disk", data.frame, data.classes))  # decoded here: what is timed is an epoch from the cache
    with Peak() as peak:
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_mib": peak.mib}


def photos_grow(per_class, most):
    """Rows of stage, times, photos, seconds, peak_mib."""
    from utils import datasets

    rows = []
    for times in [2**power for power in range(most.bit_length())]:
        with tempfile.TemporaryDirectory() as folder:
            total = len(datasets.load("sketches", root=folder, per_class=per_class * times).frame)
            for stage in STAGES:
                command = [sys.executable, __file__, "--stage", stage, folder, str(per_class * times)]
                with tempfile.TemporaryDirectory() as cache:
                    done = subprocess.run([*command, cache], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{stage} with {total} photos failed:\n{done.stderr[-2000:]}")
                told = json.loads(done.stdout.splitlines()[-1])
                rows.append({"stage": stage, "times": times, "photos": total, **told})
                print(rows[-1], file=sys.stderr)
    return rows


def median_s(work, rounds=7):
    """Median seconds of a call, after one that is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def layers_grow(counts=(10, 30, 100, 300, 1000)):
    """Rows of layers, count_ms and receptive_field_ms for chains of convolutions with skip connections."""
    import keras

    from utils import flops, receptive_field

    rows = []
    for count in counts:
        image = x = keras.Input((64, 64, 4))
        for number in range(count // 2):
            x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same", name=f"conv{number}")(x)])
        model = keras.Model(image, x)
        rows.append(
            {
                "layers": count,
                "count_ms": 1e3 * median_s(lambda model=model: flops.count(model)),
                "receptive_field_ms": 1e3 * median_s(
                    lambda model=model, last=model.layers[-1].name: receptive_field.receptive_field(model, last)
                ),
            }
        )  # fmt: skip
    return rows


def sides_grow(sides=(64, 96, 128, 160, 192, 224, 256, 320)):
    """Rows of side, macs, count_ms and photo_ms (one photo, EfficientNet-Lite0 as float32 .tflite, one thread)."""
    import numpy as np

    from utils import flops, models, quantization

    rows = []
    for side in sides:
        model = models.transfer("efficientnet_lite0", 10, side, weights=None)
        network = quantization.TFLiteModel(quantization.convert(model, "float32"), num_threads=1)
        photo = np.zeros((1, side, side, 3), "float32")
        rows.append(
            {
                "side": side,
                "macs": flops.count(model).total_macs,
                "count_ms": 1e3 * median_s(lambda model=model: flops.count(model)),
                "photo_ms": 1e3 * median_s(lambda network=network, photo=photo: network(photo), 15),
            }
        )
    return rows


def exponent(x, y):
    """Slope of log y over log x by least squares: 1 is linear growth, 0 none."""
    import numpy as np

    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def exponents(grown):
    """What grows how: name -> slope in log-log coordinates."""
    photos, layers, sides = (grown[name] for name in ("photos", "layers", "sides"))
    found = {}
    for stage in STAGES:
        rows = [row for row in photos if row["stage"] == stage]
        found[f"{stage}: time over photos"] = exponent([r["photos"] for r in rows], [r["seconds"] for r in rows])
    for key in ("count_ms", "receptive_field_ms"):
        found[f"{key[:-3]}: time over layers"] = exponent([r["layers"] for r in layers], [r[key] for r in layers])
    found["count: time over pixels"] = exponent([r["side"] ** 2 for r in sides], [r["count_ms"] for r in sides])
    found["one photo: time over MACs"] = exponent([r["macs"] for r in sides], [r["photo_ms"] for r in sides])
    return found


def figure(grown):
    """Time and memory over photos, time over layers, time over MACs."""
    from utils.plots import style

    page, axes = style.figure(11, 7.4, 2, 2)
    (times, memory), (layers, sides) = axes
    for colour, marker, stage in zip(style.COLOURS, style.MARKERS, STAGES, strict=False):
        rows = [row for row in grown["photos"] if row["stage"] == stage]
        photos = [row["photos"] for row in rows]
        times.plot(photos, [row["seconds"] for row in rows], marker=marker, color=colour, label=stage)
        memory.plot(photos, [row["peak_mib"] for row in rows], marker=marker, color=colour, label=stage)
    for colour, marker, key in zip(style.COLOURS, style.MARKERS, ("count_ms", "receptive_field_ms"), strict=False):
        counts = [row["layers"] for row in grown["layers"]]
        layers.plot(counts, [row[key] for row in grown["layers"]], marker=marker, color=colour, label=key[:-3])
    macs, spent = ([row[key] for row in grown["sides"]] for key in ("macs", "photo_ms"))
    sides.plot([value / 1e6 for value in macs], spent, "o-", color=style.GREY)
    for row in grown["sides"]:
        sides.annotate(f"{row['side']} px", (row["macs"] / 1e6, row["photo_ms"]), xytext=(6, -12),
                       textcoords="offset points", fontsize=style.TEXT - 1)  # fmt: skip
    for axis in (times, layers):
        axis.set(xscale="log", yscale="log")
    memory.set_xscale("log")
    counts = sorted({row["photos"] for row in grown["photos"]})
    for axis in (times, memory):
        axis.set_xticks(counts, [f"{count:,}" for count in counts])
        axis.set_xticks([], minor=True)
    sides.set_ylim(bottom=-1.5)  # room for the first label
    memory.set_ylim(bottom=0)
    style.labels(times, "photos", "seconds", "Time over photos")
    style.labels(memory, "photos", "MiB above the start", "Peak memory over photos")
    style.labels(layers, "layers", "milliseconds", "Counting over layers")
    style.labels(sides, "MACs of one photo (millions)", "milliseconds, one thread", "EfficientNet-Lite0 over input")
    handles = times.get_legend_handles_labels()
    page.legend(*handles, loc="outside upper center", ncols=len(STAGES), frameon=False, fontsize=style.TEXT)
    layers.legend(frameon=False, fontsize=style.TEXT - 1)
    return page


def draw(grown):
    """Write repo_images/growth.png."""
    from utils import files

    with files.atomic_path(ROOT / "repo_images" / "growth.png") as part:
        figure(grown).savefig(part, format="png", dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=12, help="drawings per class at 1x")
    parser.add_argument("--most", type=int, default=16, help="times the photos at most, a power of two")
    parser.add_argument("--record", action="store_true", help="write results/growth.json and repo_images/growth.png")
    parser.add_argument("--draw", action="store_true", help="measure nothing: the figure from results/growth.json")
    parser.add_argument("--stage", nargs=4, metavar=("STAGE", "ROOT", "PER_CLASS", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.stage:
        stage, root, per_class, cache = options.stage
        print(json.dumps(one_stage(stage, root, int(per_class), cache)))
        return 0

    import pandas as pd

    from study import records
    from utils import environment

    if options.draw:
        draw(records.read("growth")["metrics"])
        return 0
    print(environment.sentence())
    grown = {"photos": photos_grow(options.photos, options.most), "layers": layers_grow(), "sides": sides_grow()}
    grown["exponents"] = exponents(grown)
    table = pd.DataFrame(grown["photos"])
    for value in ("seconds", "peak_mib"):
        print(f"\n{value}\n{table.pivot_table(value, 'stage', 'photos').reindex(STAGES).round(2)}")
    print(f"\n{pd.DataFrame(grown['layers']).round(2)}\n\n{pd.DataFrame(grown['sides']).round(2)}\n")
    for name, slope in grown["exponents"].items():
        print(f"{name}: exponent {slope:.2f}")
    if options.record:
        parameters = {"photos": options.photos, "most": options.most}
        records.write("growth", parameters, grown, "sketches", records.RESULTS)
        draw(grown)
    print(json.dumps(grown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
