"""What each trained model becomes as a file: bytes, agreement and time, in float and in both kinds of int8.

All files are timed in the same interleaved rounds, so that their ratios hold among models too. Times of another
processor stay in the record: a scheme that pays on one does not have to pay on the next.
"""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pandas as pd

from study import recipes, records
from utils import environment, evaluation, files, latency, models, quantization
from utils.classify import TFLiteModel
from utils.datasets import pipeline
from utils.evaluation import wilson
from utils.quantization import calibration, runtimes
from utils.training import find_finished
from utils.training.run import build

SCHEMES = ("float32", "dynamic_range", "int8")
CALIBRATION_PHOTOS, ROUNDS, SITTINGS = 200, 20, 3


def _made_and_judged(run, dataset, schemes, photos, seed=0):
    """Files {scheme: bytes}, ranges from so many training photos, and what each is worth on the test set (a frame)."""
    test, side = dataset.part("test"), run.config.input_size
    ranges = quantization.representative_photos(dataset.frame, photos, side, seed=seed)
    made = quantization.convert_all(run.model(), schemes, ranges)
    labels = test["label"].map(dataset.classes.index).to_numpy()
    return made, quantization.evaluate_schemes(made, pipeline.load_images(test, side), labels)


def convert_and_judge(row, run, dataset, photos=CALIBRATION_PHOTOS):
    """A row's files {scheme: bytes}, and the line that says what they are worth on its test set."""
    made, judged = _made_and_judged(run, dataset, SCHEMES, photos)
    kept = ("accuracy", "accuracy_low", "accuracy_high", "agreement", "size_bytes", "gzip_bytes")
    return made, {
        "row": row.id, "title": row.title, "classes": len(dataset.classes), "input_size": run.config.input_size,
        "n": len(dataset.part("test")), "dataset": dataset.name, "split": dataset.split, "run_id": run.run_id,
        "weights": run.weights_source,
        "schemes": {
            name: {key: found[key] for key in kept} | {"macs": round(found["macs_m"] * 1e6)}
            for name, found in judged.iterrows()
        },
    }  # fmt: skip


def time_files(made, photo, rounds=ROUNDS, sittings=SITTINGS):
    """Time every file (row id -> {scheme: bytes}) in several sittings, each a process of its own, on one thread.

    `photo` is row id -> pixels. Returns lines with median_ms and the ratio to the row's own float32 file (medians of
    the sittings; ratio_low and ratio_high: the lowest and the highest), and the sentence that belongs to them.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        running = [pool.submit(_sitting, made, photo, rounds) for _ in range(sittings)]
        times, machines = zip(*(one.result() for one in running), strict=True)
    lines = []
    for (row, scheme), seen in pd.concat(times).groupby(["row", "scheme"], sort=False):
        lines.append({
            "row": row, "scheme": scheme, "median_ms": seen["median_ms"].median(), "ratio": seen["ratio"].median(),
            "ratio_low": seen["ratio"].min(), "ratio_high": seen["ratio"].max(), "sittings": sittings,
        })  # fmt: skip
    return lines, f"{sittings} sittings, from the lowest to the highest; {machines[0]}"


def _sitting(made, photo, rounds):
    ways = {}
    for name, schemes in made.items():
        listed = {f"{name} {scheme}": content for scheme, content in schemes.items()}
        ways |= runtimes.litert_candidates(listed, photo[name], threads=1, more_threads=(), detailed=())
    timings = latency.measure(ways, rounds=rounds, budget_s=120)
    milliseconds, lines = timings.absolute(), []
    for name in made:
        ratios = dataclasses.replace(timings, baseline=f"LiteRT {name} {SCHEMES[0]}").ratios()
        for scheme in made[name]:
            key = f"LiteRT {name} {scheme}"
            times = {"median_ms": milliseconds.loc[key, "median_ms"], "ratio": ratios.loc[key, "ratio"]}
            lines.append({"row": name, "scheme": scheme, **times})
    # Each ratio refers to its own row's file, not to the one that the sitting was measured against.
    machine = dataclasses.replace(timings, baseline="float32 file of the same model").caption()
    return pd.DataFrame(lines), machine.replace(" with its 95% interval over rounds", "")


def causes(row, run, dataset, photos=CALIBRATION_PHOTOS):
    """Static int8 on the validation set: biases beyond 32 bits left or mended, ranges by min-max or percentile."""
    side, part = run.config.input_size, dataset.part("validation")
    source = quantization.convert_all(run.model(), ("float32",))["float32"]
    statistics = calibration.measure(source, quantization.representative_photos(dataset.frame, photos, side, seed=0))
    images = pipeline.load_images(part, side)
    exact, lines = TFLiteModel(source)(images).argmax(1), []
    for mended in (False, True):
        for method in ("min-max", "percentile"):
            content = quantization.convert(source, "int8", statistics=statistics, calibrate=method, lift_biases=mended)
            same = int((TFLiteModel(content)(images).argmax(1) == exact).sum())
            low, high = wilson(same, len(part))
            lines.append({
                "row": row.id, "title": row.title, "classes": len(dataset.classes), "n": len(part),
                "biases_mended": mended, "ranges": method, "agreement": same / len(part),
                "agreement_low": low, "agreement_high": high, "weights": run.weights_source, "run_id": run.run_id,
            })  # fmt: skip
    return lines


def merge(known, lines, times, machine, cpu):
    """The metrics of the record with new lines in place of old ones of the same row (and the same processor)."""
    fresh, timed = ({line["row"] for line in found} for found in (lines, times))
    places = list(recipes.rows())
    kept = [line for line in known.get("models", []) if line["row"] not in fresh]
    older = [line for line in known.get("times", []) if line["cpu"] != cpu or line["row"] not in timed]
    return known | {
        "models": sorted(kept + lines, key=lambda line: places.index(line["row"])),
        "times": older + [{**line, "cpu": cpu} for line in times],
        "machines": {**known.get("machines", {}), cpu: machine},
    }


def record(found, rounds=ROUNDS):
    """Convert, judge and time rows (id -> (Row, Run with weights, Dataset)) into results/deployment.json."""
    made, lines, photo = {}, [], {}
    for name, (row, run, dataset) in found.items():
        made[name], line = convert_and_judge(row, run, dataset)
        photo[name] = pipeline.load_images(dataset.part("test").head(1), row.run.input_size)
        lines.append(line)
        print(f"{name}: int8 agrees with float32 on {line['schemes']['int8']['agreement']:.1%} of {line['n']} photos")
    times, machine = time_files(made, photo, rounds)
    metrics = merge(records.read("deployment")["metrics"], lines, times, machine, environment.describe()["cpu"])
    return records.write("deployment", {"rounds": rounds}, metrics, records.PHOTOS, records.RESULTS)


def record_times(rows, data, rounds=ROUNDS):
    """Time the files of rows (id -> Row; `data`: Row -> Dataset) on this processor; the record keeps all else.

    A network that is not trained here is timed with a new head, and a baseline with random weights: the same
    operations in the same order.
    """
    made, photo = {}, {}
    for name, row in rows.items():
        dataset, side = data(row), row.run.input_size
        run = find_finished(row.run.run_id_for(dataset.fingerprint), files.runs_dir())
        network = build(row.run, dataset.classes) if run is None or run.recorded else run.model()
        ranges = quantization.representative_photos(dataset.frame, CALIBRATION_PHOTOS, side, seed=0)
        made[name] = quantization.convert_all(network, SCHEMES, ranges)
        photo[name] = pipeline.load_images(dataset.part("test").head(1), side)
        print(f"{name} is converted", flush=True)
    times, machine = time_files(made, photo, rounds)
    metrics = merge(records.read("deployment")["metrics"], [], times, machine, environment.describe()["cpu"])
    return records.write("deployment", {"rounds": rounds}, metrics, records.PHOTOS, records.RESULTS)


def record_causes(found):
    """What int8 loses rows by, into results/int8_causes.json; as :func:`record`."""
    fresh = [line for row, run, dataset in found.values() for line in causes(row, run, dataset)]
    return records.replace_lines("int8_causes", "causes", fresh, lambda line: line["row"])


def timing_files(backbone, classes, input_size, photos):
    """A backbone and its files ({scheme: bytes}) as notebook 3 times them; int16x8 is left out where it fails."""
    weights = "auto"
    try:
        model = models.transfer(backbone, classes, input_size)
    except models.WeightsUnavailable as missing:
        print(f"{models.BACKBONES[backbone].title} is timed with random weights: {missing}")
        weights = None
        model = models.transfer(backbone, classes, input_size, weights=None)
    if models.needs_batch_norm(backbone, weights):
        models.reestimate_batch_norm(model, photos, batch_size=32)
    made = quantization.convert_all(model, ("float32", "float16", "dynamic_range", "int8"), photos)
    try:
        made |= quantization.convert_all(model, ("int16x8",), photos)
    except ValueError as error:  # LiteRT refuses some combinations of 16-bit scales
        print(f"{models.BACKBONES[backbone].title}, int16x8: {error}")
    return model, made


def deployment_path(dataset):
    """Where notebook 3 puts its int8 file: `models/` while the committed notebooks are rendered, else build/models."""
    return records.output_dir("models") / f"{dataset.name}-int8.tflite"


def save(content, run, dataset):
    """Write an int8 file with what its validation photos say: its temperature, and below what confidence to doubt.

    Returns the path of the .tflite file, the temperature and the threshold.
    """
    validation = dataset.part("validation")
    numbers = validation["label"].map(dataset.classes.index).to_numpy()
    seen = quantization.TFLiteModel(content)(pipeline.load_images(validation, run.config.input_size))
    temperature = evaluation.fit_temperature(seen, numbers)
    threshold = quantization.confidence_threshold(evaluation.rescale(seen, temperature), numbers)
    path = deployment_path(dataset)
    quantization.save(
        path, content, dataset.classes, scheme="int8", source=f"{run.run_id}: {run.weights_source}",
        temperature=temperature, low_confidence=threshold,
    )  # fmt: skip
    return path, temperature, threshold


def ship(run, dataset, calibration_photos=CALIBRATION_PHOTOS, seed=0):
    """Make a finished run the int8 file that ships: its path, and evaluate_schemes' comparison with float32 on test."""
    made, judged = _made_and_judged(run, dataset, ("float32", "int8"), calibration_photos, seed)
    return save(made["int8"], run, dataset)[0], judged
