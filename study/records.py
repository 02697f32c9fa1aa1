"""The ledger: what notebooks and commands measured, one JSON file each.

A record holds `schema_version`, `name`, `created` (UTC), `data` (name of the dataset; "sketches" marks synthetic
drawings), `environment` (machine and versions), `parameters` and `metrics`. Numbers are plain: accuracies and shares
0..1, `_ms`, `_bytes`, counts; what was not measured is null or absent. The committed records lie in `results/`, and
everything is read there; whatever a reader runs writes under `build/` (see :func:`output_dir`).
"""

import datetime
import math
import os
import pathlib

import numpy as np

from utils import environment, files

SCHEMA_VERSION = 1
NOTEBOOKS = ("01_data_and_training", "02_receptive_field_and_flops", "03_quantization")
COMMANDS = ("growth", "seeds", "splits", "deployment", "int8_causes", "trials", "pruning", "old_runtimes", "claims",
            "elsewhere", "cluster", "hub", "fold_rates", "fold_trials", "further")  # fmt: skip
NAMES = (*NOTEBOOKS, *COMMANDS)
RESULTS = files.PROJECT / "results"
PHOTOS = "clothing-10, clothing-17"
FIELDS = {"schema_version": int, "name": str, "data": str, "environment": dict, "parameters": dict, "metrics": dict}


def output_dir(name):
    """Where a run writes its `results`, `models` or `repo_images`: under build/, or the tree itself while it renders.

    ``python -m study notebooks --render`` sets CLOTHING_OUTPUT_DIR to the project's root; nothing else does.
    """
    return pathlib.Path(os.environ.get("CLOTHING_OUTPUT_DIR") or files.PROJECT / "build") / name


def write(name, parameters, metrics, data, folder=None):
    """Write down what was measured, whole or not at all, into `folder`, else `output_dir("results")`; returns the path.

    `parameters` are those of the notebook's parameters cell, or options of the command; `data` names the dataset.
    """
    path = _path(name, folder or output_dir("results"))
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": str(data),
        "environment": environment.describe(),
        "parameters": plain(parameters, "parameters"),
        "metrics": plain(metrics, "metrics"),
    }
    files.write_json(path, record)
    return path


def read(name, folder=None):
    """A record of `results/` (or `folder`); FileNotFoundError or ValueError name the file and say what to do."""
    path = _path(name, folder or RESULTS)
    again = f"restore it (git checkout {path.name}) or measure again (python -m study --help)"
    if not path.is_file():
        raise FileNotFoundError(f"expected the record {path}, which is missing; {again}")
    record = files.read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"expected a record in {path}, got a {type(record).__name__}; {again}")
    for field, kind in FIELDS.items():
        if not isinstance(record.get(field), kind) or isinstance(record.get(field), bool):
            raise ValueError(f"{path} lacks the field {field} ({kind.__name__}); {again}")
    if record["schema_version"] != SCHEMA_VERSION or record["name"] != name:
        raise ValueError(f"expected {name} in schema version {SCHEMA_VERSION} in {path}; update this repository")
    try:
        plain(record["metrics"], "metrics")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; {again}") from error
    return record


def read_all(folder=None):
    """The committed records by name, those that are there; raises what :func:`read` raises."""
    return {name: read(name, folder) for name in NAMES if _path(name, folder or RESULTS).exists()}


def plain(value, where="value"):
    """`value` as plain JSON data: numpy scalars and arrays, tuples, sets and paths converted, NaN as None.

    Infinity is a ValueError, and what has no place in JSON a TypeError; both say where it stands.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{where} is infinite, which JSON cannot hold; leave it out or write down why")
        return None if math.isnan(value) else value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value).__name__ == "NAType":
        return None
    if isinstance(value, dict):
        return {str(plain(key, where)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item, where) for item in value)
    if isinstance(value, pathlib.PurePath):
        return value.as_posix()
    raise TypeError(f"{where} is of type {type(value).__name__}; JSON holds numbers, text, lists and dictionaries")


def _path(name, folder):
    if name not in NAMES:
        raise ValueError(f"expected one of the records {', '.join(NAMES)}, got {name!r}")
    return pathlib.Path(folder) / f"{name}.json"


# Records that grow line by line: a line that is measured again takes the place of the old one.


def replace_lines(name, key, fresh, same, folder=None, order=None):
    """Write `fresh` lines into a record; older lines stay unless `same(old)` is among the fresh ones' keys."""
    folder = pathlib.Path(folder or RESULTS)
    old = read(name, folder)["metrics"][key] if _path(name, folder).exists() else []
    replaced = {same(line) for line in fresh}
    lines = [line for line in old if same(line) not in replaced] + fresh
    return write(name, {}, {key: sorted(lines, key=order) if order else lines}, PHOTOS, folder)


def validation_accuracy(run):
    """Accuracy on the validation set at the epoch that was kept."""
    return float(run.history.set_index("epoch").loc[run.best_epoch, "val_accuracy"])


def record_trials(found, folder=None):
    """Write to `results/trials.json` what recipes gave on validation: trial id -> (Dataset, Run); others stay."""
    from utils import evaluation

    lines = []
    for name, (dataset, run) in found.items():
        part, accuracy = dataset.part("validation"), validation_accuracy(run)
        n = len(part)
        low, high = evaluation.wilson(round(accuracy * n), n)
        recall = evaluation.evaluate(run.predict, part, dataset.classes).macro_recall
        lines.append({
            "recipe": name, "photos": dataset.name, "split": dataset.split, "epochs": len(run.history),
            "best_epoch": run.best_epoch, "n": n, "validation_accuracy": accuracy, "low": low, "high": high,
            "validation_macro_recall": recall,
            "minutes": run.duration_s / 60, "cpu": run.environment.get("cpu"), "seed": run.config.seed,
            "run_id": run.run_id, "config": run.config.to_dict(),
        })  # fmt: skip
    return replace_lines("trials", "trials", lines, lambda line: line["recipe"], folder)


def _judged(row, dataset, run):
    """(Evaluation on the test set, what every line about it holds)."""
    from utils import evaluation

    judged = evaluation.evaluate(run.predict, dataset.part("test"), dataset.classes, name=row.title)
    return judged, {
        "row": row.id, "title": row.title, "dataset": dataset.name, "split": dataset.split, "n": judged.n,
        "accuracy": judged.accuracy, "macro_recall": judged.macro_recall, "seed": run.config.seed, "run_id": run.run_id,
    }  # fmt: skip


def record_seeds(row, dataset, runs, folder=None):
    """Write to `results/seeds.json` what a row gave with several seeds, on the test set; other rows' lines stay."""
    lines = [_judged(row, dataset, run)[1] | {"validation_accuracy": validation_accuracy(run)} for run in runs]
    return replace_lines("seeds", "seeds", lines, lambda line: line["row"], folder)


def record_split(row, dataset, run, folder=None):
    """Write to `results/splits.json` what a row gave on one kind of split; other lines stay, in the study's order."""
    from study import recipes

    (judged, line), places = _judged(row, dataset, run), list(recipes.rows())
    known = set(dataset.part("train")["sender"])
    line |= {
        "from_known_senders": int(dataset.part("test")["sender"].isin(known).sum()),
        "accuracy_low": judged.accuracy_low, "accuracy_high": judged.accuracy_high, "epochs": len(run.history),
        "best_epoch": int(run.best_epoch), "conditions": row.note,
        "recall": judged.per_class["recall"].to_dict(),  # for comparisons at equal class mix
    }  # fmt: skip
    return replace_lines(
        "splits", "splits", [line], lambda line: (line["row"], line["split"]), folder,
        lambda line: (places.index(line["row"]), line["split"]),
    )  # fmt: skip
