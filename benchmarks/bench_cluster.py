"""What a training on a cluster costs beside the training: bytes out and back, a task's round trip, a process' start.

python -m benchmarks.bench_cluster [--record]        (needs distributed; --record writes results/cluster.json)
"""

import argparse
import json
import os
import pathlib
import pickle
import statistics
import sys
import tempfile
import time

from study import cluster, recipes, records
from utils import datasets, files, models, training

ROWS = ("a-baseline", "b-mobilenet-fine", "b-lite0-fine", "a-b0-fine")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write results/cluster.json")
    options = parser.parse_args(arguments)
    try:
        metrics = measure()
    except LookupError as error:
        print(f"not measured: {error}")
        return 0
    if options.record:
        records.write("cluster", {}, metrics, "sketches", records.RESULTS)
    print(json.dumps(metrics))
    return 0


def measure():
    load1 = os.getloadavg()[0]
    folder = pathlib.Path(tempfile.mkdtemp())
    load = {"name": "sketches", "per_class": 12, "size": 32, "root": str(folder)}
    dataset, metrics = datasets.load(**load), {"load_average": load1, "cores": os.cpu_count()}
    tiny = {"model": "baseline_cnn", "mode": "scratch", "input_size": 32, "batch_size": 32, "epochs": 2}
    os.environ["CLOTHING_RUNS_DIR"] = str(folder / "worker")
    started = time.perf_counter()
    with cluster.connect("local:1") as client:
        metrics["connect_s"] = time.perf_counter() - started
        trips = []
        for number in range(50):
            started = time.perf_counter()
            client.submit(int, number, pure=False).result()
            trips.append(1000 * (time.perf_counter() - started))
        metrics["round_trip_ms"] = statistics.median(trips)
        beside = []
        for seed in range(3):
            config = training.RunConfig(name="tiny", seed=seed, **tiny)
            started = time.perf_counter()
            (run,) = cluster.train(client, [(config, dataset, load)], folder / "caller")
            beside.append(time.perf_counter() - started - run.duration_s)
        metrics["beside_training_s"] = statistics.median(beside)
    row = recipes.rows()["b-lite0-fine"]
    task = cluster.work, row.run.to_dict(), {"name": row.dataset, "split": row.split}, "0" * 12, "0" * 64
    metrics["task_bytes"], metrics["runs"] = len(pickle.dumps(task)), []
    for row in (recipes.rows()[name] for name in ROWS):  # the size does not depend on what the weights have learned
        labels, size = [str(number) for number in range(17 if row.study == "A" else 10)], row.run.input_size
        if row.run.model == training.BASELINE:
            model = models.baseline_cnn(labels, size)
        else:
            model = models.transfer(row.run.model, labels, size, weights=None)
        entry = files.write_arrays(folder / "weights.npz", {str(i): w.numpy() for i, w in enumerate(model.weights)})
        metrics["runs"].append({"row": row.id, "title": row.title, "bytes": entry["size_bytes"]})
    return metrics


if __name__ == "__main__":
    sys.exit(main())
