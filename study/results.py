"""The ledger: what each notebook measured, as one JSON file a notebook, and the tables of README made from it.

    python -m study.results            # fill the tables of README and models/README from results/
    python -m study.results --check    # exit 1 and a diff where README says something else

A file is one record: `schema_version`, `name`, `created` (UTC), `profile` ("quick" or "full"), `data` (name of the
dataset; "sketches" marks drawn garments), `environment` (machine and versions), `parameters` (the notebook's
literals), `metrics`. Numbers are plain: accuracies and shares 0..1, `_ms`, `_bytes`, counts. A number that is not there
is null or absent, and then `status` is "not run" and `reason` says why.

Layout of `metrics` (more keys are welcome everywhere; the tables use these):

``01_data_and_training``
    rows: list, one a model and dataset. id, title, study ("A", "B"), dataset, split ("official", "grouped", "random"),
        protocol (words), model (key of models.BACKBONES or "baseline_cnn"), classes (names or their number),
        input_size, status ("measured", "not run"), reason, conditions (words), weights (words), published_accuracy;
        with `Evaluation.to_dict()` flat inside: n, accuracy, accuracy_low, accuracy_high, sender_low, sender_high,
        n_senders, macro_recall, macro_f1, cross_entropy, ece, per_class, confusion ...; params, macs. Optional:
        grouped = {accuracy, accuracy_low, accuracy_high, n, k, macro_recall} (or `GroupedCV.to_dict()`) from
        sender-grouped cross-validation of the same recipe; grouped_reason (why there is none); headline (true: show it
        in the headline table; without any flag all transfer models are shown); seeds = [accuracy, ...].
    senders: list, photos (dataset), folds ("random", "grouped"), n, accuracy, low, high, "macro recall".
    protocols: list, protocol (words), n, accuracy, accuracy_low, accuracy_high, macro_recall, shared_photos.
    datasets: list, name, photos, classes, senders, split, parts, fingerprint, stand_in.
    best_ten: id of the row chosen on validation.
``02_receptive_field_and_flops``
    models: title -> params, macs, flops, elementwise_ops, weight_bytes, receptive_field_px, receptive_field_stride_px,
        receptive_field_padding_px, whole_image; classes, input_size where they are not 17 and 224.
    published_baseline_over_exact: study A's FLOPs of the baseline over the exact ones.
``03_quantization``
    schemes: list, model (title), row (id of the row of notebook 1), scheme (key of quantization.SCHEMES), title,
        classes, n (else that of the row), accuracy, accuracy_low, accuracy_high, macro_f1, agreement (0..1),
        largest_change, size_bytes, gzip_bytes, arena_bytes, macs (or macs_m, millions), latency_ms (median),
        latency_ratio (to float32), conditions, status, reason.
    machine: one sentence for beside every millisecond: which machine, how many threads and rounds.
    latency: title of a model -> way of calling it -> time as a ratio to LiteRT float32.
    b0: keras_macs, int8_macs, mean_ops of EfficientNetB0 with 17 classes.
    pruning: list, kind ("weights", "channels", ...), removed (share), accuracy, accuracy_low, accuracy_high, macs_m,
        file_mb, gzip_mb.
``deployment``
    models: list, row (id), title, classes, n, schemes = {"float32", "dynamic_range", "int8" -> accuracy, accuracy_low,
        accuracy_high, agreement, size_bytes, gzip_bytes, macs}.
    times: list, row, scheme, cpu, median_ms, ratio (to the row's float32 file), ratio_low, ratio_high.
    machines: cpu -> one sentence for beside every millisecond.
``trials``
    trials: list, recipe, photos (dataset), split, n (validation photos), validation_accuracy, low, high, best_epoch,
        epochs, minutes, cpu, seed, run_id, config (RunConfig.to_dict).
any of them
    answers: id of a question (see `results_tables.QUESTIONS`) -> one sentence with its numbers.
"""

import argparse
import datetime
import difflib
import math
import os
import pathlib
import re
import sys

import numpy as np

from study import results_tables
from utils import environment, files

SCHEMA_VERSION = 1
NOTEBOOKS = ("01_data_and_training", "02_receptive_field_and_flops", "03_quantization")
COMMANDS = (
    "growth",
    "seeds",
    "splits",
    "deployment",
    "int8_causes",
    "trials",
)  # records that commands write; their tables name them
RECORDS = (*NOTEBOOKS, *COMMANDS)
PROFILES = ("quick", "full")
PROJECT = pathlib.Path(__file__).resolve().parent.parent
MAX_BYTES = 20_000_000
_FIELDS = {
    "schema_version": int, "name": str, "created": str, "profile": str, "data": str, "environment": dict,
    "parameters": dict, "metrics": dict,
}  # fmt: skip
_MARKER = re.compile(r"<!-- (/?)table:([\w-]+) -->")


def results_dir(folder=None):
    """The folder of the ledger: `folder`, else the environment variable CLOTHING_RESULTS_DIR, else `results/`."""
    return pathlib.Path(folder or os.environ.get("CLOTHING_RESULTS_DIR") or PROJECT / "results")


def write(name, parameters, metrics, profile, data, folder=None):
    """Write down what a notebook measured, whole or not at all.

    Args:
        name: of the notebook, such as "01_data_and_training".
        parameters: name -> literal of its parameters cell.
        metrics: dictionary in the layout above; numpy numbers and arrays, tuples and paths become plain JSON, NaN
            becomes null.
        profile: "quick" or "full".
        data: name of the dataset behind the numbers; "sketches" marks the stand-in.
        folder: see :func:`results_dir`.

    Returns:
        pathlib.Path of the file.

    Raises:
        ValueError: a bad name, an unknown profile, or infinity among the numbers.
        TypeError: something that has no place in JSON; names where it stands.
        OSError: the folder cannot be written to; names the file, and the old one is untouched.

    Example:
        >>> import tempfile; folder = tempfile.mkdtemp()
        >>> path = write("01_data_and_training", {"SEED": 0}, {"rows": []}, "quick", "sketches", folder)
        >>> read("01_data_and_training", folder)["parameters"]
        {'SEED': 0}
    """
    path = _path(name, folder)
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is unknown; choose one of {', '.join(PROFILES)}")
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "profile": profile,
        "data": str(data),
        "environment": environment.describe(),
        "parameters": plain(parameters, "parameters"),
        "metrics": plain(metrics, "metrics"),
    }
    files.write_json(path, record)
    return path


def read(name, folder=None):
    """Read what a notebook wrote down.

    Returns:
        dict, the record (see the module).

    Raises:
        FileNotFoundError: it has not been run; the message says which notebook to run first.
        ValueError: the file is no record of this version: not JSON, too large, a missing or wrong field, a number that
            is not finite. The message names the file and says what to do.
    """
    path = _path(name, folder)
    number = int(name[:2]) if name[:2].isdigit() else name
    again = f"run notebook {number} again: make run"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; run notebook {number} first: make run")
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is no file of at most {MAX_BYTES // 10**6} MB; delete it and {again}")
    try:
        record = files.read_json(path)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} is damaged ({error}); {again}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no record but a {type(record).__name__}; delete it and {again}")
    version = record.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version}, newer than {SCHEMA_VERSION}; update this repository")
    for field, kind in _FIELDS.items():
        if not isinstance(record.get(field), kind) or isinstance(record.get(field), bool):
            raise ValueError(f"{path} has no {field} ({kind.__name__}); delete it and {again}")
    if version != SCHEMA_VERSION or record["name"] != name or record["profile"] not in PROFILES:
        raise ValueError(f"{path} is not a record of {name} in schema version {SCHEMA_VERSION}; delete it and {again}")
    _check_finite(record, path, again)
    for key in ("rows", "senders", "protocols", "schemes", "photos", "layers", "sides", "seeds", "splits"):
        rows = record["metrics"].get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} holds {key} that are no list of rows; delete it and {again}")
    return record


def read_all(folder=None):
    """Records by name, of those notebooks and commands that have been run."""
    found = {}
    for name in RECORDS:
        if _path(name, folder).exists():
            found[name] = read(name, folder)
    return found


def fill(text, records):
    """`text` with every table between its markers made anew from `records`.

    Raises:
        ValueError: a marker that is not closed, closes another one, or names no table.

    Example:
        >>> fill("<!-- table:schemes -->old<!-- /table:schemes -->", {}).splitlines()[2]
        '*Not run yet: notebook 3 writes this table (`make full`).*'
    """
    parts, place, opened = [], 0, None
    for marker in _MARKER.finditer(text):
        closing, name = marker.groups()
        if not closing:
            if opened:
                raise ValueError(
                    f"table {opened} has no closing marker before table {name}; add <!-- /table:{opened} -->"
                )
            if name not in results_tables.TABLES:
                known = ", ".join(results_tables.TABLES)
                raise ValueError(f"no table is called {name!r}; there are {known}")
            opened = name
            parts += [text[place : marker.end()], "\n\n", _build(name, records), "\n\n"]
        else:
            if opened != name:
                raise ValueError(f"the marker /table:{name} closes nothing; put <!-- table:{name} --> before it")
            opened, place = None, marker.start()
            continue
        place = marker.end()
    if opened:
        raise ValueError(f"table {opened} has no closing marker; add <!-- /table:{opened} -->")
    return "".join(parts) + text[place:]


def text_summary(folder=None):
    """The results of a run as plain text for a terminal, with what they rest on."""
    records = read_all(folder)
    if not records:
        return "No results yet: run the notebooks first (make run)."
    return results_tables.text_summary(records)


def plain(value, where="value"):
    """`value` as plain JSON data: numpy scalars and arrays, tuples, sets and paths converted, NaN as None.

    Raises:
        ValueError: infinity. TypeError: something else; both name where it stands.

    Example:
        >>> plain({"a": np.float32(0.5), "b": (1, float("nan"))})
        {'a': 0.5, 'b': [1, None]}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)) or type(value).__name__ == "NAType":
        return value if isinstance(value, (bool, int, str)) else None
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{where} is infinite, which JSON cannot hold; leave it out or write down why")
        return None if math.isnan(value) else value
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, dict):
        return {str(plain(key, where)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item, where) for item in value)
    if isinstance(value, pathlib.PurePath):
        return value.as_posix()
    raise TypeError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; give numbers, text, lists or dictionaries"
    )


def main(argv=None):
    """Command line; returns the exit code: 0 fine, 1 README differs (--check), 2 something is wrong with the files."""
    parser = argparse.ArgumentParser(prog="python -m study.results", description="README's tables from results/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff where README differs")
    pages = [PROJECT / "README.md", PROJECT / "models" / "README.md"]
    parser.add_argument("--readme", type=pathlib.Path, nargs="+", default=pages, help="the files with the markers")
    parser.add_argument("--folder", type=pathlib.Path, default=PROJECT / "results", help="where the records are")
    options = parser.parse_args(argv)
    try:
        records, differs = read_all(options.folder), False
        for page in options.readme:
            if not page.is_file():
                raise FileNotFoundError(f"{page} is not there; name the file with the table markers by --readme")
            old = page.read_text(encoding="utf-8")
            new = fill(old, records)
            if old == new:
                print(f"{page.name} says what {options.folder.name}/ says")
            elif options.check:
                names = (f"{page.name} as it is", f"{page.name} from {options.folder.name}/")
                sys.stdout.writelines(f"{line}\n" for line in difflib.unified_diff(
                    old.splitlines(), new.splitlines(), *names, lineterm=""))  # fmt: skip
                print(f"{page.name} differs; run python -m study.results", file=sys.stderr)
                differs = True
            else:
                files.write_text(page, new)
                print(f"{page.name} is up to date")
        return int(differs)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _build(name, records):
    """One table; what a builder trips over is a record in another layout than the one above."""
    try:
        return results_tables.TABLES[name](records).strip()
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"table {name} cannot be made from the results ({type(error).__name__}: {error}); "
            "run the notebooks again: make run"
        ) from error


def _path(name, folder):
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"{name!r} is no name of a notebook; use one such as {NOTEBOOKS[0]}")
    return results_dir(folder) / f"{name}.json"


def _check_finite(record, path, again):
    """Python reads NaN and Infinity out of JSON, which no honest record holds; lists, not recursion: it may be deep."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} holds a number that is not finite; delete it and {again}")
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


if __name__ == "__main__":
    sys.exit(main())
