"""What notebook 1 writes down: from runs and their evaluations to the rows of `results/` and the closing table."""

import os
import pathlib

import pandas as pd
from IPython.display import Markdown

from study import folds as fold_runs
from study import recipes as study
from study import results
from utils import evaluation, files, flops, models, quantization, training
from utils.datasets import pipeline
from utils.evaluation.intervals import wilson
from utils.training.config import BASELINE, in_words
from utils.training.run import find_finished

# Study B, table of its test results: F1 by class on the same 372 photos.
PUBLISHED_F1 = {
    "dress": 0.73, "hat": 0.82, "longsleeve": 0.81, "outwear": 0.80, "pants": 0.93,
    "shirt": 0.60, "shoes": 0.99, "shorts": 0.85, "skirt": 0.86, "t-shirt": 0.87,
}  # fmt: skip
UNSEEN = "people never seen"
PROJECT = pathlib.Path(__file__).resolve().parent.parent


def banner(profile, dataset):
    """One sentence on top of everything that follows: which profile, which photos."""
    kind = (
        "**Drawn garments stand in for the photos: no number below says anything about clothes.**"
        if dataset.stand_in
        else "Real photos."
    )
    scale = (
        "Quick profile: the baselines see a reduced input and few epochs, which each of their numbers says."
        if profile == "quick"
        else "Full profile."
    )
    return Markdown(f"{kind} {scale}")


def finished_or_trained(rows, name, dataset, profile):
    """The run of a row where it is finished or the profile is full; else None, and a printed sentence says why."""
    if name not in rows:
        print(f"{name} is not part of the {profile} profile with these photos")
        return None
    config = rows[name].run
    if profile != "full" and not find_finished(config.run_id_for(dataset.fingerprint), files.runs_dir()):
        print(f"{rows[name].title} was not run: it belongs to the full profile, and no finished run is at hand")
        return None
    return training.train(config, dataset, verbose=0)


def finished_folds(dataset):
    """Sender-grouped folds of fine-tuning (dict of fold_runs.cross_validate) where they are finished, else None."""
    if dataset.stand_in:
        print("Folds of fine-tuning were not run: fine-tuning drawn garments would teach nothing")
        return None
    found = fold_runs.cross_validate(study.fold_recipe(), dataset, verbose=0, only_finished=True)
    if found is None:
        print(
            "Folds of fine-tuning were not run: five trainings, and none is finished here "
            "(python -m study --folds 5 b-lite0-folds trains them)"
        )
    return found


def timing_files(backbone, classes, input_size, calibration):
    """A backbone and its .tflite files in the schemes that notebook 3 times; int16x8 is left out where it fails.

    Returns:
        (keras.Model, {scheme: bytes}).
    """
    weights = "auto"
    try:
        model = models.transfer(backbone, classes, input_size)
    except models.WeightsUnavailable as missing:
        print(f"{models.BACKBONES[backbone].title} is timed with random weights: {missing}")
        weights = None
        model = models.transfer(backbone, classes, input_size, weights=None)
    if models.needs_batch_norm(backbone, weights):
        models.reestimate_batch_norm(model, calibration, batch_size=32)
    made = quantization.convert_all(model, ("float32", "float16", "dynamic_range", "int8"), calibration)
    try:
        made |= quantization.convert_all(model, ("int16x8",), calibration)
    except ValueError as error:  # LiteRT refuses some combinations of 16-bit scales
        print(f"{models.BACKBONES[backbone].title}, int16x8: {error}")
    return model, made


def record_trials(data, known, folder=None):
    """Write `results/trials.json`: what each finished recipe of ``study.trials`` gave on validation; returns the path.

    The runs themselves stay where they were trained; what was tried is a fact that readers of the notebook need too, so
    lines of recipes that are not at hand stay as they are.

    Args:
        data: name -> Dataset.
        known: trial id -> study.Row, which says whose photos the trial belongs to.
        folder: of the record; default: the project's results/.
    """
    folder = pathlib.Path(folder or PROJECT / "results")
    lines = results.read("trials", folder)["metrics"]["trials"] if (folder / "trials.json").exists() else []
    lines = {line["recipe"]: line for line in lines}
    for name, config in study.trials().items():
        dataset = data[known[name].dataset]
        run = find_finished(config.run_id_for(dataset.fingerprint), files.runs_dir())
        if run is None:
            continue
        n = int((dataset.frame["split"] == "validation").sum())
        accuracy = validation_accuracy(run)
        low, high = wilson(round(accuracy * n), n)
        lines[name] = {
            "recipe": name, "photos": dataset.name, "split": dataset.split, "epochs": len(run.history),
            "best_epoch": run.best_epoch, "n": n, "validation_accuracy": accuracy, "low": low, "high": high,
            "minutes": run.duration_s / 60, "cpu": run.environment.get("cpu"), "seed": config.seed,
            "run_id": run.run_id, "config": config.to_dict(),
        }  # fmt: skip
    return results.write("trials", {}, {"trials": list(lines.values())}, "full", ", ".join(data), folder)


def trials_table(photos):
    """What was tried on some photos, as recorded in `results/trials.json`: one row a recipe, best on validation first.

    Args:
        photos: "clothing-10" or "clothing-17".
    """
    record = results.read("trials", PROJECT / "results")
    table = pd.DataFrame([line for line in record["metrics"]["trials"] if line["photos"] == photos])
    table["choices"] = [in_words(config) for config in table.pop("config")]
    columns = ["recipe", "choices", "n", "validation_accuracy", "low", "high", "best_epoch", "minutes"]
    return table[columns].sort_values("validation_accuracy", ascending=False, ignore_index=True)


def record_seeds(row, dataset, runs, folder=None):
    """Write to `results/seeds.json` what a row gave with several seeds; other rows' lines stay. Returns the path.

    Args:
        row: study.Row.
        dataset: its Dataset.
        runs: its finished Runs, one a seed.
        folder: of the record; default: the project's results/.
    """
    folder = pathlib.Path(folder or PROJECT / "results")
    kept = results.read("seeds", folder)["metrics"]["seeds"] if (folder / "seeds.json").exists() else []
    kept = [line for line in kept if line["row"] != row.id]
    for run in runs:
        verdict = evaluation.evaluate(run.predict, dataset.part("test"), dataset.classes, name=row.title)
        kept.append(
            {
                "row": row.id, "title": row.title, "dataset": dataset.name, "split": dataset.split,
                "seed": run.config.seed, "n": verdict.n, "accuracy": verdict.accuracy,
                "macro_recall": verdict.macro_recall, "validation_accuracy": validation_accuracy(run),
                "run_id": run.run_id,
            }
        )  # fmt: skip
    return results.write("seeds", {}, {"seeds": kept}, "full", "clothing-10, clothing-17", folder)


def seeds_table():
    """Several seeds of the same training, as recorded in `results/seeds.json`: mean and spread over the seeds."""
    record = results.read("seeds", PROJECT / "results")
    groups = pd.DataFrame(record["metrics"]["seeds"]).groupby(["title", "dataset", "n"], sort=False)
    return groups.agg(
        seeds=("seed", "size"),
        accuracy=("accuracy", "mean"),
        standard_deviation=("accuracy", "std"),
        lowest=("accuracy", "min"),
        highest=("accuracy", "max"),
        macro_recall=("macro_recall", "mean"),
    ).reset_index()


def record_split(row, dataset, run, folder=None):
    """Write to `results/splits.json` what a row gave on one kind of split; other lines stay. Returns the path.

    Lines stand in the order of the study's rows.

    Args:
        row: study.Row.
        dataset: its Dataset, split in that way.
        run: its Run, trained on that split.
        folder: of the record; default: the project's results/.
    """
    folder = pathlib.Path(folder or PROJECT / "results")
    kept = results.read("splits", folder)["metrics"]["splits"] if (folder / "splits.json").exists() else []
    kept = [line for line in kept if (line["row"], line["split"]) != (row.id, dataset.split)]
    test = dataset.part("test")
    verdict = evaluation.evaluate(run.predict, test, dataset.classes, name=row.title)
    known = test["sender"].isin(set(dataset.part("train")["sender"]))
    kept.append(
        {
            "row": row.id, "title": row.title, "dataset": dataset.name, "split": dataset.split, "n": verdict.n,
            "from_known_senders": int(known.sum()), "accuracy": verdict.accuracy,
            "accuracy_low": verdict.accuracy_low, "accuracy_high": verdict.accuracy_high,
            "macro_recall": verdict.macro_recall, "epochs": len(run.history), "best_epoch": int(run.best_epoch),
            "seed": run.config.seed, "conditions": row.note, "run_id": run.run_id,
        }
    )  # fmt: skip
    places = list(study.rows("full"))
    kept.sort(key=lambda line: (places.index(line["row"]) if line["row"] in places else len(places), line["split"]))
    return results.write("splits", {}, {"splits": kept}, "full", dataset.name, folder)


def splits_table():
    """The same training on a sender-grouped and on a random split, as recorded in `results/splits.json`."""
    record = results.read("splits", PROJECT / "results")
    columns = ["title", "split", "n", "from_known_senders", "accuracy", "accuracy_low", "accuracy_high", "macro_recall"]
    return pd.DataFrame(record["metrics"]["splits"])[columns]


def cost_points(closing):
    """What an accuracy costs: the measured rows as plots.accuracy_against_cost wants them, one a judgement.

    Bars for people never seen are over senders, as in README's headline table. Baselines of a reduced input are left
    out: their cost is not that of the published network.

    Args:
        closing: of :func:`result_rows`.

    Returns:
        DataFrame: model, group, judged, macs, accuracy, accuracy_low, accuracy_high.
    """
    points = []
    for row in closing:
        if row["status"] != "measured" or (row["model"] == BASELINE and row["input_size"] < 224):
            continue
        classes = row["classes"] if isinstance(row["classes"], int) else len(row["classes"])  # or their names
        common = {"model": row["title"], "group": f"{classes} classes", "macs": row["macs"]}
        stranger = row["split"] == "grouped"
        judged = f"{row['split']} test ({row['n_senders']} people)"
        for where, found in ((UNSEEN if stranger else judged, row), (UNSEEN, row.get("grouped"))):
            if found is None:
                continue
            low, high = found["accuracy_low"], found["accuracy_high"]
            if where == UNSEEN and found.get("sender_low") is not None:
                low, high = found["sender_low"], found["sender_high"]
            interval = {"accuracy": found["accuracy"], "accuracy_low": low, "accuracy_high": high}
            points.append({**common, "judged": where, **interval})
    points = pd.DataFrame(points)
    # The official test first, ten classes first: the order of colours and of groups.
    points = points.sort_values("judged", key=lambda judged: judged == UNSEEN, kind="stable")
    return points.sort_values("group", kind="stable", ignore_index=True)


def validation_accuracy(run):
    """Accuracy on the validation part at the epoch that was kept."""
    return float(run.history.set_index("epoch").loc[run.best_epoch, "val_accuracy"])


def best_by_validation(runs):
    """Name of the run with the highest validation accuracy (the first of equals); nothing is chosen on test."""
    return max(runs, key=lambda name: validation_accuracy(runs[name]))


def result_rows(rows, runs, verdicts, data, grouped=None):
    """The rows of `results/01_data_and_training.json`, measured and not run, in the order of the study.

    Args:
        rows: row id -> study.Row.
        runs: row id -> Run, of those that were run.
        verdicts: row id -> Evaluation on the test part.
        data: study ("A", "B") -> Dataset.
        grouped: (dataset name, model) -> GroupedCV of a frozen backbone with a linear probe, for the frozen rows; and
            row id -> GroupedCV of a fine-tuned one.

    Returns:
        list of dictionaries fit for JSON; the layout is documented in study.results.
    """
    return [
        _row(row, runs.get(name), verdicts.get(name), data[row.study]) | _folds(row, data[row.study], grouped or {})
        for name, row in rows.items()
    ]


def _folds(row, dataset, grouped):
    """Sender-grouped folds of the same recipe or frozen backbone, or why there are none."""
    if dataset.split == "grouped":
        return {"grouped_reason": "its own split is grouped by sender already"}
    conditions = "linear probe on the same frozen features"
    probed = row.run.mode == "frozen" and not row.run.views  # a probe on the plain photos stands for these alone
    found = grouped.get((dataset.name, row.run.model)) if probed else grouped.get(row.id)
    if row.run.mode != "frozen":
        conditions = f"the same recipe shortened to {study.fold_recipe().epochs} epochs a fold, the last one kept"
    if found is None:
        return {"grouped_reason": "no folds of it were run; five trainings more each"}
    return {"grouped": found.to_dict() | {"conditions": conditions}}


def _row(row, run, verdict, dataset):
    common = {
        "id": row.id,
        "title": row.title,
        "study": row.study,
        "dataset": dataset.name,
        "split": dataset.split,
        "protocol": f"{dataset.split} split",
        "classes": len(dataset.classes),
        "input_size": row.run.input_size,
        "model": row.run.model,
        # A baseline at a reduced input has another cost than the published network's.
        "headline": not (row.run.balance_to or row.run.views)
        and (row.run.mode != "scratch" or row.run.input_size == 224),
        "published_accuracy": row.published,
        "conditions": row.note,
    }
    if run is None or verdict is None:
        reason = "fine-tuning belongs to the full profile, and no finished run is at hand"
        if row.run.mode == "scratch":
            reason = f"about an hour of training that has not been done (`python -m study {row.id}`)"
        elif row.run.balance_to:
            reason = f"a training that has not been done (`python -m study {row.id}`)"
        elif row.run.mode == "frozen":
            reason = "the pretrained weights could not be had on this machine"
        return {**common, "status": "not run", "reason": reason}
    cost = flops.count(run.architecture())
    return {
        **common,
        "status": "measured",
        "params": int(cost.total_params),
        "macs": int(cost.total_macs),
        "flops": int(cost.total_flops),
        "n_train": run.n_train,
        "n_validation": run.n_validation,
        "validation_accuracy": validation_accuracy(run),
        "epochs": len(run.history),
        "best_epoch": int(run.best_epoch),
        "seed": row.run.seed,
        "run_id": run.run_id,
        "duration_s": float(run.duration_s),
        "weights": run.weights_source,
        **verdict.to_dict(),
    }


def closing_table(closing):
    """The rows as a table for readers: published beside measured, with n, interval and conditions."""
    table = pd.DataFrame(closing)
    for column in ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_recall", "weights", "reason"):
        if column not in table:
            table[column] = None
    measured = table["status"] == "measured"
    interval = [
        f"{low:.1%}–{high:.1%}" if ok else ""
        for ok, low, high in zip(measured, table.accuracy_low, table.accuracy_high, strict=True)
    ]
    return pd.DataFrame(
        {
            "study": table["study"],
            "model": table["title"],
            "published": [f"{p:.1%}" if pd.notna(p) else "–" for p in table["published_accuracy"]],
            "measured": [f"{a:.1%}" if ok else "not run" for ok, a in zip(measured, table["accuracy"], strict=True)],
            "95 % interval": interval,
            "macro recall": [f"{r:.1%}" if ok else "" for ok, r in zip(measured, table["macro_recall"], strict=True)],
            "n": [int(n) if ok else "" for ok, n in zip(measured, table["n"], strict=True)],
            "conditions": [
                c if ok else r for ok, c, r in zip(measured, table["conditions"], table["reason"], strict=True)
            ],
        }
    )


def dataset_facts(*sets):
    """Name, size, senders, split and fingerprint of each dataset, for the results file."""
    return [
        {
            "name": data.name,
            "photos": len(data.frame),
            "classes": list(data.classes),
            "senders": int(data.frame["sender"].nunique()),
            "split": data.split,
            "parts": {part: int(n) for part, n in data.frame["split"].value_counts().items()},
            "fingerprint": data.fingerprint,
            "stand_in": data.stand_in,
        }
        for data in {data.name: data for data in sets}.values()
    ]


def save_figures(figures, folder=None):
    """Save figures as PNG: into `repo_images/` when the committed notebooks are rendered, else under `build/`.

    Args:
        figures: file name without suffix -> matplotlib Figure.
        folder: default: the environment variable CLOTHING_IMAGES_DIR, else build/repo_images of the project.
    """
    folder = pathlib.Path(folder or os.environ.get("CLOTHING_IMAGES_DIR") or PROJECT / "build" / "repo_images")
    for name, figure in figures.items():
        with files.atomic_path(folder / f"{name}.png") as part:
            figure.savefig(part, dpi=100, bbox_inches="tight")
    return sorted(figures)


def model_to_deploy(rows, dataset, profile):
    """The run that notebook 3 makes small: the fine-tuned one where it is finished, else the frozen one.

    Args:
        rows: row id -> study.Row.
        dataset: the ten-class Dataset.
        profile: "quick" or "full"; full trains what is not finished.

    Returns:
        Run, finished; a sentence that says which is printed.
    """
    run = finished_or_trained(rows, "b-lite0-fine", dataset, profile)
    if run is None:
        print("so the frozen model with a head trained on cached features takes its place")
        run = training.train(rows["b-lite0-frozen"].run, dataset, verbose=0)
    return run


def scratch_folder(name, run, profile):
    """Where a long experiment on `run` keeps its finished points: runs/NAME/RUN-PROFILE, ignored by git."""
    return files.runs_dir() / name / f"{run.run_id}-{profile}"


def deployment_path(dataset):
    """Where notebook 3 puts its int8 file: `models/` while committed notebooks are rendered, else under `build/`.

    The runner names the folder in CLOTHING_MODELS_DIR, so that no other run replaces what ships.
    """
    folder = pathlib.Path(os.environ.get("CLOTHING_MODELS_DIR") or PROJECT / "build" / "models")
    return folder / f"{dataset.name}-int8.tflite"


def ship(run, dataset, calibration_photos=200, seed=0):
    """Make a finished run the int8 file that ships, and judge it beside its float32 file on the test part.

    Args:
        run: Run, finished.
        dataset: the Dataset that it was trained on.
        calibration_photos: training photos that the ranges come from.
        seed: of their drawing.

    Returns:
        (pathlib.Path of the .tflite file, DataFrame of quantization.evaluate_schemes for float32 and int8).
    """
    side = run.config.input_size
    parts = {name: dataset.part(name) for name in ("validation", "test")}
    photos = {name: pipeline.load_images(part, side) for name, part in parts.items()}
    numbers = {name: part["label"].map(dataset.classes.index).to_numpy() for name, part in parts.items()}
    calibration = quantization.representative_photos(dataset.frame, calibration_photos, side, seed=seed)
    made = quantization.convert_all(run.model(), ("float32", "int8"), calibration)
    judged = quantization.evaluate_schemes(made, photos["test"], numbers["test"])
    seen = quantization.TFLiteModel(made["int8"])(photos["validation"])
    low = quantization.confidence_threshold(seen, numbers["validation"])
    source = f"{run.run_id}: {run.weights_source}"
    path = deployment_path(dataset)
    quantization.save(path, made["int8"], dataset.classes, scheme="int8", source=source, low_confidence=low)
    return path, judged


def scheme_rows(table, run, dataset, price):
    """Rows for `results/03_quantization.json`: accuracy, bytes and time of each scheme; layout in study.results.

    Args:
        table: of quantization.evaluate_schemes, indexed by scheme.
        run: the Run that was converted.
        dataset: its Dataset.
        price: of runtimes.price_list(...).to_frame(), or None where this run was not timed.

    Returns:
        list of dictionaries.
    """
    timed = price.set_index("name") if price is not None else pd.DataFrame()
    conditions = f"{dataset.name}, {dataset.split} test part, input {run.config.input_size}; {run.weights_source}"
    rows = []
    for scheme, found in table.iterrows():
        key = f"LiteRT {scheme}"
        time = timed.loc[key] if key in timed.index else {}
        rows.append(
            {
                "model": models.BACKBONES[run.config.model].title,
                "row": run.config.name,
                "scheme": scheme,
                "n": int((dataset.frame["split"] == "test").sum()),
                "classes": len(dataset.classes),
                "latency_ms": time.get("median_ms"),
                "latency_ratio": time.get("ratio"),
                "status": "measured",
                "conditions": conditions,
                **found.to_dict(),
            }
        )
    return rows
