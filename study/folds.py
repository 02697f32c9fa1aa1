"""Sender-grouped cross-validation of a whole training recipe: one run per fold, resumable.

What the folds predicted is small: it ships in ``models/``, and a reader can recompute every number without training.
"""

import dataclasses
import hashlib
import io
import zipfile

import numpy as np
import pandas as pd

from utils import evaluation, files, training
from utils.datasets import pipeline, splits
from utils.evaluation.grouped_cv import grouped_cv
from utils.training import SHIPPED, RunConfig

RECORD, PREDICTIONS = "cross_validation.json", "predictions.npz"
SCHEMA = 1
KINDS = ("plain", "flip")
TIE = ("sha256",)  # of the folds of ten classes; new ones tie twin pictures too


@dataclasses.dataclass(frozen=True, eq=False)
class FoldDataset:
    """The photos of one fold, for ``training.train``: all but the fold's senders train, none validate."""

    frame: object
    classes: tuple
    fingerprint: str
    name: str


def recipe_of(config):
    """The RunConfig as a fold trains it: nothing to choose an epoch by, so the last epoch is kept."""
    return dataclasses.replace(config, monitor="none", patience=None, allow_leaks=())


def cv_id(config, fingerprint, k=5, seed=0, tie=TIE):
    """Name of a cross-validation: readable, and another one for another recipe, dataset, k, seed or tie."""
    ties = "" if tie == ("sha256",) else f"-tie-{'-'.join(tie)}"  # published ones keep their names
    return f"{recipe_of(config).run_id_for(f'{fingerprint}-{k}-folds-seed-{seed}{ties}')}-{k}fold"


def photos_of_fold(dataset, test):
    """The FoldDataset whose test set is `test`, rows of the dataset's frame."""
    frame = dataset.frame.assign(split="train")
    frame.loc[test.index, "split"] = "test"
    number = hashlib.sha256(",".join(sorted(map(str, test["id"]))).encode()).hexdigest()[:12]
    return FoldDataset(frame, dataset.classes, f"{dataset.fingerprint}-{number}", dataset.name)


def fold_of(dataset, number, k, seed, tie):
    """The FoldDataset of one fold, 0 .. k-1: what a worker of a cluster trains on."""
    _, rows = splits.grouped_folds(dataset.frame, k=k, seed=seed, tie=tie)[number]
    return photos_of_fold(dataset, dataset.frame.iloc[rows])


def cross_validate(config, dataset, k=5, seed=0, folder=None, verbose=1, shipped=True, tie=TIE, elsewhere=None):
    """Train the recipe once per fold and judge each photo by the model that has seen nobody of its sender.

    All photos of the Dataset take part, whatever their split, and the RunConfig's validation choices do not apply.

    Args:
        k, seed, tie: of ``splits.grouped_folds``; folder, verbose: as in ``training.train``.
        shipped: False trains the folds, though their predictions ship in ``models/``.
        elsewhere: function that trains a list of (RunConfig, FoldDataset, arguments of :func:`fold_of`) into `folder`
            beforehand, on the machines of a cluster.

    Returns:
        dict, "plain" and "flip" (each photo averaged with its mirror image) -> GroupedCV.
    """
    name = cv_id(config, dataset.fingerprint, k, seed, tie)
    for home in (files.runs_dir(folder), *([SHIPPED] if shipped else [])):
        if (home / name / RECORD).exists():
            return load(home / name, dataset)
    recipe, found = recipe_of(config), {}
    if elsewhere:
        folds = [{"number": number, "k": k, "seed": seed, "tie": list(tie)} for number in range(k)]
        elsewhere([(recipe, fold_of(dataset, **fold), fold) for fold in folds])

    def fit_predict(train, test):
        run = training.train(recipe, photos_of_fold(dataset, test), folder=folder, verbose=verbose)
        plain = run.predict(test)
        flip = run.predict(test, tta="flip")
        found.update(zip(test.index, zip(plain, flip, strict=True), strict=True))
        return plain

    judged = grouped_cv(fit_predict, dataset.frame, dataset.classes, k=k, seed=seed, name=config.name, tie=tie)
    arrays = {kind: np.stack([found[i][place] for i in dataset.frame.index]) for place, kind in enumerate(KINDS)}
    _write(files.runs_dir(folder) / name, arrays, judged.fold, recipe, dataset, k, seed, tie)
    return load(files.runs_dir(folder) / name, dataset)


def compare(rows, dataset, numbers=(0,), k=5, seed=1, folder=None, verbose=1):
    """Lines of `results/fold_trials.json`: what recipes give on the same folds, trained or taken from what ships.

    `numbers` says which of the `k` folds of `seed`; those that are reported have seed 0. In the line of each
    recipes.Row `paired` compares it with the first row (``evaluation.compare``); the first has None.
    """
    first, lines = None, []
    for row in rows:
        parts = [fold_of(dataset, number, k, seed, row.tie) for number in numbers]
        tests = [photos.frame[photos.frame["split"] == "test"] for photos in parts]
        shipped = SHIPPED / cv_id(row.run, dataset.fingerprint, k, seed, row.tie)
        if (shipped / RECORD).exists():
            runs, kept = [], load(shipped, dataset)["plain"].evaluation.probabilities
            found = kept[dataset.frame.index.get_indexer(pd.concat(tests).index)]
        else:
            runs = [training.train(recipe_of(row.run), photos, folder=folder, verbose=verbose) for photos in parts]
            found = np.concatenate([run.predict(test) for run, test in zip(runs, tests, strict=True)])
        judged = evaluation.evaluate(found, pd.concat(tests), dataset.classes, name=row.id)
        lines.append(_line(row, row.note, judged, first, numbers, seed, runs))
        first = first or judged
    return lines


def _line(row, note, judged, first, numbers, seed, runs):
    return {
        "recipe": judged.name, "note": note, "config": row.run.to_dict(), "folds": list(numbers), "seed": seed,
        "n": judged.n, "n_senders": judged.n_senders, "accuracy": judged.accuracy,
        "accuracy_low": judged.sender_low, "accuracy_high": judged.sender_high,
        "macro_recall": judged.macro_recall, "run_ids": [run.run_id for run in runs],
        "paired": evaluation.compare(first, judged).to_dict() if first else None,
    }  # fmt: skip


def soup(row, dataset, k=5, verbose=1):
    """Lines as of :func:`compare`: two further seeds of a row on one fold, then what the three make together.

    A soup is one network whose weights are the mean of theirs (Wortsman et al. 2022, arXiv:2203.05482). The mean of
    their answers takes three passes, six with mirror images: a bound for what a soup or a student of them can give.
    """
    photos = fold_of(dataset, 0, k, 1, row.tie)
    test = photos.frame[photos.frame["split"] == "test"]
    configs = [recipe_of(dataclasses.replace(row.run, seed=one)) for one in range(3)]
    runs = [training.train(config, photos, verbose=verbose) for config in configs]
    answers = [run.predict(test) for run in runs]
    together = {"the mean of three seeds' answers, each photo mirrored too: six passes": np.mean(
        [run.predict(test, tta=True) for run in runs], axis=0
    )}  # fmt: skip
    networks = [run.model() for run in runs]
    weights = zip(*(network.get_weights() for network in networks), strict=True)
    networks[0].set_weights([np.mean(each, axis=0) for each in weights])
    images = pipeline.load_images(test, row.run.input_size).astype("float32")
    together = {"a soup: the mean of three seeds' weights": networks[0].predict(images, verbose=0)} | together
    seeds = {f"{row.note}, seed {one}": found for one, found in enumerate(answers) if one}
    first, lines = evaluation.evaluate(answers[0], test, dataset.classes, name=row.id), []
    for note, found in (seeds | together).items():
        used = [runs[int(note[-1])]] if note in seeds else runs
        judged = evaluation.evaluate(found, test, dataset.classes, name=f"{row.id}, {note}")
        lines.append(_line(row, note, judged, first, [0], 1, used))
    return lines


def among_shared_classes(wide_row, wide, row, dataset):
    """Lines as of :func:`compare`, on the photos of both sets: `row`, then `wide_row` among the shared classes alone.

    Does a network of all 17 classes, asked among ten of them, do as well as one that learned the ten? Both were judged
    by their own sender-grouped folds; nothing is trained.
    """
    shared = dataset.frame[dataset.frame["sha256"].isin(wide.frame["sha256"])]
    places = pd.Index(wide.frame["sha256"]).get_indexer(shared["sha256"])
    names = [name.lower() for name in wide.classes]
    columns = [names.index(name.lower()) for name in dataset.classes]
    narrow = judge(row, dataset).evaluation.probabilities[dataset.frame.index.get_indexer(shared.index)]
    answers = judge(wide_row, wide).evaluation.probabilities[places][:, columns]
    answers = answers / answers.sum(axis=1, keepdims=True)
    first, lines = None, []
    for one, note, found in (
        (row, row.note, narrow),
        (wide_row, f"trained on {len(wide.classes)} classes, asked among these {len(dataset.classes)}", answers),
    ):
        judged = evaluation.evaluate(found, shared, dataset.classes, name=one.id)
        lines.append(_line(one, note, judged, first, range(5), 0, []))
        first = first or judged
    return lines


def judge(row, dataset, retrain=False):
    """The GroupedCV of a row of :func:`recipes.folds`: loaded where it ships, unless `retrain`."""
    return cross_validate(row.run, dataset, shipped=not retrain, tie=row.tie)["plain"]


def load(folder, dataset):
    """The judgements that a folder holds: dict "plain", "flip" -> GroupedCV; ValueError where it is damaged."""
    try:
        record = files.read_json(folder / RECORD)
        data = (folder / PREDICTIONS).read_bytes()
        if record["schema"] != SCHEMA or hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise ValueError("its predictions are not what its record names")
        if record["fingerprint"] != dataset.fingerprint:
            raise ValueError(f"it belongs to photos {record['fingerprint']}, not {dataset.fingerprint}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            rows = dict(zip(arrays["id"].tolist(), range(len(arrays["id"])), strict=True))
            order = np.array([rows[str(one)] for one in dataset.frame["id"]])
            kept = {kind: arrays[kind][order].astype(np.float64) for kind in KINDS}
        name, k, seed = RunConfig.from_dict(record["config"]).name, int(record["k"]), int(record["seed"])
        tie = tuple(record.get("tie", TIE))
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder} cannot be used: {error}; delete it and train again") from error
    places = {index: place for place, index in enumerate(dataset.frame.index)}
    judged = {}
    for kind, found in kept.items():
        found = found / found.sum(axis=1, keepdims=True)  # stored in half precision

        def look_up(_, test, found=found):
            return found[[places[index] for index in test.index]]

        title = name if kind == "plain" else f"{name}, mirrored too"
        judged[kind] = grouped_cv(look_up, dataset.frame, dataset.classes, k=k, seed=seed, name=title, tie=tie)
    return judged


def export(config, dataset, k=5, folder=None, tie=TIE):
    """Copy a finished cross-validation into the repository's ``models/``; returns the folder."""
    name = cv_id(config, dataset.fingerprint, k, tie=tie)
    source = files.runs_dir(folder) / name
    if not (source / RECORD).exists():
        raise FileNotFoundError(f"{source} is not there; train the folds first")
    load(source, dataset)
    for part in (PREDICTIONS, RECORD):
        files.write_bytes(SHIPPED / name / part, (source / part).read_bytes())
    return SHIPPED / name


def _write(folder, arrays, fold, recipe, dataset, k, seed, tie):
    ids = np.array([str(one) for one in dataset.frame["id"]])
    halves = {kind: array.astype(np.float16) for kind, array in arrays.items()}
    entry = files.write_arrays(folder / PREDICTIONS, {"id": ids, "fold": fold, **halves})
    # The record comes last and names the hash: predictions without it count as not there.
    record = {
        "schema": SCHEMA, "config": recipe.to_dict(), "fingerprint": dataset.fingerprint, "k": k, "seed": seed,
        "tie": list(tie), "classes": list(dataset.classes), "sha256": entry["sha256"],
    }  # fmt: skip
    files.write_json(folder / RECORD, record)
