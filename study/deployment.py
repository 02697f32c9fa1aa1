"""What each trained model becomes as a file: bytes, agreement and time, in float and in both kinds of int8.

    python -m study.deployment                  # every finished row into results/deployment.json; on a quiet machine
    python -m study.deployment b-lite0-fine     # these rows; lines of others stay as they are
    python -m study.deployment --causes b-b0-frozen     # what int8 loses it by, into results/int8_causes.json

Notebook 3 follows one model through every scheme; this asks every model the two questions that decide which one to
ship. All files are timed in the same interleaved rounds, so that their ratios hold among models too. Times of another
processor stay beside the new ones: a scheme that pays on one does not have to pay on the next.
"""

import argparse
import dataclasses
import pathlib
import sys

from study import recipes as study
from study import results
from utils import environment, files, latency, quantization
from utils.classify import TFLiteModel
from utils.datasets import pipeline
from utils.evaluation.intervals import wilson
from utils.quantization import calibration, runtimes
from utils.training.run import find_finished

CAUSES = "int8_causes"
NAME, SCHEMES = "deployment", ("float32", "dynamic_range", "int8")
PROJECT = pathlib.Path(__file__).resolve().parent.parent
CALIBRATION_PHOTOS, ROUNDS = 200, 20


def convert_and_judge(row, run, dataset, photos=CALIBRATION_PHOTOS, seed=0):
    """A row's files and what they are worth on its test part.

    Args:
        row: study.Row.
        run: its Run, with weights.
        dataset: its Dataset.
        photos: training photos that the ranges of int8 come from, the same number of each class.
        seed: of their drawing.

    Returns:
        (files {scheme: bytes}, line for the record: row, title, classes, n, and per scheme accuracy with its interval,
        agreement with float32, size_bytes, gzip_bytes, macs).
    """
    side, test = run.config.input_size, dataset.part("test")
    calibration = quantization.representative_photos(dataset.frame, photos, side, seed=seed)
    made = quantization.convert_all(run.model(), SCHEMES, calibration)
    labels = test["label"].map(dataset.classes.index).to_numpy()
    judged = quantization.evaluate_schemes(made, pipeline.load_images(test, side), labels)
    kept = ("accuracy", "accuracy_low", "accuracy_high", "agreement", "size_bytes", "gzip_bytes")
    line = {
        "row": row.id, "title": row.title, "classes": len(dataset.classes), "input_size": side, "n": len(test),
        "dataset": dataset.name, "split": dataset.split, "run_id": run.run_id, "weights": run.weights_source,
        "schemes": {
            name: {key: found[key] for key in kept} | {"macs": round(found["macs_m"] * 1e6)}
            for name, found in judged.iterrows()
        },
    }  # fmt: skip
    return made, line


def time_files(made, photo, rounds=ROUNDS):
    """Time every file side by side, one thread, one photo.

    Args:
        made: row id -> {scheme: bytes}.
        photo: row id -> (1, side, side, 3) in 0..255.
        rounds: interleaved rounds.

    Returns:
        (list of lines: row, scheme, median_ms, lower_quartile_ms, upper_quartile_ms, and the ratio to the row's own
        float32 file with its 95 % interval over rounds; the sentence that belongs beside them).
    """
    ways = {}
    for name, schemes in made.items():
        listed = {f"{name} {scheme}": content for scheme, content in schemes.items()}
        ways |= runtimes.litert_candidates(listed, photo[name], threads=1, more_threads=(), detailed=())
    timings = latency.measure(ways, rounds=rounds, budget_s=120)
    milliseconds, lines = timings.absolute(), []
    for name in made:
        reference = f"LiteRT {name} {SCHEMES[0]}"
        ratios = dataclasses.replace(timings, baseline=reference).ratios()
        for scheme in made[name]:
            key = f"LiteRT {name} {scheme}"
            lines.append(
                {"row": name, "scheme": scheme, **milliseconds.loc[key].to_dict(), **ratios.loc[key].to_dict()}
            )
    # Each ratio refers to its own row's file, not to the one that the sitting was measured against.
    return lines, dataclasses.replace(timings, baseline="float32 file of the same model").caption()


def causes(row, run, dataset, photos=CALIBRATION_PHOTOS, seed=0):
    """Static int8 with and without each of its two known weaknesses, on the validation part.

    Biases that pass 32 bits (`utils.quantization.convert.lift`) are left or mended; the range of each activation
    reaches from the least to the largest value seen (min-max), or holds the central 99.98 % (percentile).

    Args:
        row, run, dataset, photos, seed: as for :func:`convert_and_judge`.

    Returns:
        list of lines: row, title, classes, n, biases_mended, ranges, agreement with float32 and its 95 % interval.
    """
    side, part = run.config.input_size, dataset.part("validation")
    source = quantization.convert_all(run.model(), ("float32",))["float32"]
    representative = quantization.representative_photos(dataset.frame, photos, side, seed=seed)
    statistics = calibration.measure(source, representative)
    images = pipeline.load_images(part, side)
    exact = TFLiteModel(source)(images).argmax(1)
    lines = []
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
    """The metrics of the record with new lines in place of old ones of the same row (and the same processor).

    Args:
        known: metrics of the record so far, or {}.
        lines: of :func:`convert_and_judge`.
        times: of :func:`time_files`.
        machine: the sentence beside these times.
        cpu: the processor's name.

    Returns:
        dict models, times, machines.
    """
    fresh = {line["row"] for line in lines}
    kept = [line for line in known.get("models", []) if line["row"] not in fresh]
    places = list(study.rows("full"))
    older = [line for line in known.get("times", []) if line["cpu"] != cpu or line["row"] not in fresh]
    return {
        "models": sorted(kept + lines, key=lambda line: places.index(line["row"])),
        "times": older + [{**line, "cpu": cpu} for line in times],
        "machines": {**known.get("machines", {}), cpu: machine},
    }


def main(argv=None):
    """Command line: convert, judge and time finished rows; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study.deployment", description=__doc__.split("\n")[0])
    parser.add_argument("ids", nargs="*", help="row ids; none: all that are finished and have their weights here")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--causes", action="store_true", help="what int8 loses a model by; no row is timed")
    options = parser.parse_args(argv)
    rows = study.rows("full")
    unknown = [name for name in options.ids if name not in rows]
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(rows)}")
    from utils import datasets

    data = {name: datasets.load(name) for name in sorted({row.dataset for row in rows.values()})}
    made, lines, photo = {}, [], {}
    for name in options.ids or rows:
        row = rows[name]
        dataset = data[row.dataset]
        run = find_finished(row.run.run_id_for(dataset.fingerprint), files.runs_dir())
        if run is None or run.recorded:
            print(f"{name}: left out, {'it is not trained' if run is None else 'its weights are not'} here", flush=True)
            continue
        if options.causes:
            lines += causes(row, run, dataset)
            continue
        made[name], line = convert_and_judge(row, run, dataset)
        photo[name] = pipeline.load_images(dataset.part("test").head(1), row.run.input_size)
        lines.append(line)
        found = line["schemes"]
        print(
            f"{name}: float32 {found['float32']['accuracy']:.1%}, int8 {found['int8']['accuracy']:.1%}, agreement "
            f"{found['int8']['agreement']:.1%} (n = {line['n']})", flush=True,
        )  # fmt: skip
    if not lines:
        print("no row is finished here: python -m study ROW trains one")
        return 1
    if options.causes:
        folder = PROJECT / "results"
        known = results.read(CAUSES, folder)["metrics"]["causes"] if (folder / f"{CAUSES}.json").exists() else []
        lines = [line for line in known if line["row"] not in {new["row"] for new in lines}] + lines
        print(f"wrote {results.write(CAUSES, {}, {'causes': lines}, 'full', 'clothing-10, clothing-17', folder).name}")
        return 0
    times, machine = time_files(made, photo, options.rounds)
    folder = PROJECT / "results"
    known = results.read(NAME, folder)["metrics"] if (folder / f"{NAME}.json").exists() else {}
    metrics = merge(known, lines, times, machine, environment.describe()["cpu"])
    path = results.write(NAME, {"rounds": options.rounds}, metrics, "full", "clothing-10, clothing-17", folder)
    print(f"{machine}\nwrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
