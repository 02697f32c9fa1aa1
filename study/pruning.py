"""What pruning buys: a sweep over kinds and levels, each judged as float and as int8; and study A's loop.

Every point starts from the same model and is fine-tuned on the same batches. What is reported of it is read from its
.tflite files: accuracy, bytes, bytes after gzip, MACs, time relative to the unpruned file. The loop (score importance,
remove, fine-tune, repeat) removes the same share of what is left in every round, as Han et al. 2015 prune iteratively
(arXiv:1506.02626). Finished points and rounds are kept on disk, so that an interrupted experiment goes on.
"""

import dataclasses
import hashlib
import json
import pathlib

import keras
import numpy as np
import pandas as pd

from utils import files, flops, latency, quantization
from utils.datasets import pipeline
from utils.evaluation import wilson
from utils.pruning import check_share, find_blocks, fine_tune, gzip_bytes, prune, prune_channels, sparsity_report
from utils.quantization.runtimes import litert_candidates

KINDS = ("weights", "weights, one-shot", "channels")


@dataclasses.dataclass(frozen=True)
class Lessons:
    """The training photos of a fine-tuning. Each point gets a fresh stream, so that all of them see the same batches.

    Attributes:
        frame: DataFrame of photos with path and label.
        classes: class names in order.
        input_size: side in pixels.
        seed: of order and augmentation.
        batch_size: photos per step.
    """

    frame: pd.DataFrame
    classes: tuple
    input_size: int
    seed: int = 0
    batch_size: int = 16

    def stream(self):
        """The batches from the first pass on."""
        return pipeline.batches(
            self.frame, self.classes, self.input_size, self.batch_size, training=True, seed=self.seed
        )

    def key(self):
        """What the outcome of a fine-tuning depends on: content and labels of the photos, order, seed."""
        digest = hashlib.sha256(repr((tuple(self.classes), self.input_size, self.seed, self.batch_size)).encode())
        for path, label in zip(self.frame["path"], self.frame["label"], strict=True):
            digest.update(hashlib.sha256(pathlib.Path(path).read_bytes()).digest() + str(label).encode())
        return digest.hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The points of a sweep.

    Attributes:
        frame: DataFrame, one row per point and scheme: kind ("weights", "channels, int8" ...), removed (share asked
            for), accuracy with accuracy_low and accuracy_high (Wilson, 95%), nonzero_weights, file_mb, gzip_mb, macs_m;
            after :meth:`timed` also ratio, ratio_low, ratio_high.
        files: list of .tflite bytes, one per row.
    """

    frame: pd.DataFrame
    files: list

    def timed(self, photo, threads=1, **settings):
        """The same sweep with each file's time relative to the unpruned float32 file, and the latency.Timings.

        Args:
            photo: (1, height, width, 3) in 0..255.
            threads: of the interpreter.
            settings: rounds, budget_s ... for `latency.measure`.
        """
        places = {content: self.files.index(content) for content in self.files}  # curves share their start
        listed = {str(place): content for content, place in sorted(places.items(), key=lambda pair: pair[1])}
        ways = litert_candidates(listed, photo, threads, more_threads=(), detailed=())
        timings = latency.measure(ways, baseline="LiteRT 0", **settings)
        names = [f"LiteRT {places[content]}" for content in self.files]
        ratios = timings.ratios().loc[names, ["ratio", "ratio_low", "ratio_high"]].reset_index(drop=True)
        return dataclasses.replace(self, frame=pd.concat([self.frame, ratios], axis="columns")), timings


def sweep(
    model, lessons, photos, labels, levels=(0.5, 0.8), channel_levels=(0.25, 0.5), kinds=KINDS, epochs=1,
    learning_rate=1e-4, representative=None, folder=None,
):  # fmt: skip
    """Prune one model to several levels by each kind, fine-tune, convert, and judge every file.

    Args:
        model: a trained Keras 3 classifier; it is copied, not changed.
        lessons: Lessons to fine-tune on.
        photos: uint8 (n, height, width, 3) to judge on.
        labels: int (n,), class numbers.
        levels: shares of weights; channel_levels: shares of expansion channels.
        kinds: of KINDS; "weights" is pruned gradually.
        epochs, learning_rate: of the fine-tuning after each removal.
        representative: calibration photos; with them every point is also converted to int8, and batch-norm statistics
            follow what was removed.
        folder: where finished points are kept and looked for.

    Returns:
        Sweep; the first rows of each kind are the model as it came.

    Raises:
        ValueError: unknown kind, a level outside [0, 1), photos and labels of different number, nothing to prune.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {min(unknown)!r}")
    labels = np.asarray(labels)
    if len(photos) != len(labels) or not len(labels):
        raise ValueError(f"expected one label per photo, got {len(photos)} photos and {len(labels)} labels")
    rows, contents = [], []
    for kind in ("", *kinds):
        for level in (0.0,) if not kind else channel_levels if kind == "channels" else levels:
            plan = {"kind": kind, "level": level, "epochs": epochs, "learning_rate": learning_rate}
            path = _point_path(folder, model, lessons, representative, plan) if kind and folder else None
            if path and path.exists():
                pruned = keras.saving.load_model(path, compile=False)
            else:
                tuning = {"epochs": epochs, "learning_rate": learning_rate, "norm_photos": representative}
                pruned = _point(model, lessons, kind, level, tuning) if kind else model
                _keep(pruned, path)
            schemes = ("float32",) if representative is None else ("float32", "int8")
            for scheme, content in quantization.convert_all(pruned, schemes, representative).items():
                rows.append(_judged(kind, level, scheme, pruned, content, photos, labels))
                contents.append(content)
    frame = _with_starts(pd.DataFrame(rows), kinds)
    return Sweep(frame, [contents[place] for place in frame.pop("file")])


def _point(model, lessons, kind, level, tuning):
    if kind == "channels":
        smaller = prune_channels(model, level).model
        fine_tune(smaller, lessons.stream(), **tuning)
        return smaller
    schedule = "one_shot" if "one-shot" in kind else "gradual"
    return prune(model, lessons.stream(), level, schedule=schedule, **tuning).model


def _judged(kind, level, scheme, model, content, photos, labels):
    right = int((quantization.TFLiteModel(content)(photos).argmax(axis=1) == labels).sum())
    low, high = wilson(right, len(labels))
    return {
        "kind": kind, "scheme": scheme, "removed": level, "accuracy": right / len(labels), "accuracy_low": low,
        "accuracy_high": high, "nonzero_weights": int(sparsity_report(model)["nonzero"].sum()),
        "file_mb": len(content) / 1e6, "gzip_mb": gzip_bytes(content) / 1e6,
        "macs_m": flops.count_tflite(content).total_macs / 1e6,
    }  # fmt: skip


def _with_starts(frame, kinds):
    """Every kind's curve starts at the unpruned model, whose rows are repeated; `file` says which file a row is of."""
    frame = frame.assign(file=range(len(frame)))
    start, parts = frame[frame["kind"] == ""], []
    for kind in kinds:
        rows = pd.concat([start.assign(kind=kind), frame[frame["kind"] == kind]])
        for scheme in dict.fromkeys(rows["scheme"]):
            name = kind if scheme == "float32" else f"{kind}, {scheme}"
            parts.append(rows[rows["scheme"] == scheme].assign(kind=name).drop(columns="scheme"))
    return pd.concat(parts, ignore_index=True)


def _digest(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _keep(model, path):
    if path:
        with files.atomic_path(path) as part:
            model.save(part)


def _point_path(folder, model, lessons, photos, facts):
    """A file named by all that the point depends on."""
    norm = None if photos is None else _digest(photos)
    plan = {"model": _digest(*model.get_weights()), "lessons": lessons.key(), "norm_photos": norm, **facts}
    plan, slug = json.dumps(plan, sort_keys=True), facts["kind"].replace(", ", "-")
    return pathlib.Path(folder) / f"{slug}-{facts['level']:.0%}-{hashlib.sha256(plan.encode()).hexdigest()[:8]}.keras"


def iterative_prune(
    model, lessons, target, rounds=4, kind="weights", epochs=1, learning_rate=1e-4, score=None, folder=None,
    norm_photos=None,
):  # fmt: skip
    """Score importance, remove, fine-tune, repeat until `target` of the weights or channels are gone.

    After round i of n the share 1 - (1 - target)^(i / n) is removed.

    Args:
        model: a built Keras 3 classifier; it is copied, not changed.
        lessons: Lessons to fine-tune on.
        target: share to remove in the end, in [0, 1).
        rounds: how many, 1 or more.
        kind: "weights" (magnitudes) or "channels" (expansion channels; the target is met up to multiples of 8).
        epochs, learning_rate: of fine-tuning in each round.
        score: function of a model that returns a number (validation accuracy, say), for the table.
        folder: where every round is kept and looked for.
        norm_photos: photos by which batch-norm statistics follow each removal, see `pruning.fine_tune`.

    Returns:
        (the last round's Keras model, DataFrame with one row per round, round 0 being the model as it came: round,
        removed, parameters, nonzero_weights, macs, gzip_bytes, before_tuning and score).

    Raises:
        ValueError: target outside [0, 1), fewer than one round, unknown kind, nothing to prune.
    """
    check_share(target, "target")
    if kind not in ("weights", "channels"):
        raise ValueError(f"kind must be weights or channels, got {kind!r}")
    if rounds < 1:
        raise ValueError(f"rounds must be a positive integer, got {rounds}")
    whole, tuning = _size(model, kind), {"learning_rate": learning_rate, "norm_photos": norm_photos}
    value = _value(score, model)
    current, rows = model, [_round(0, 0.0, model, value, value)]
    for number in range(1, rounds + 1):
        due = 1 - (1 - target) ** (number / rounds)
        plan = {"kind": f"loop-{kind}", "level": due, "epochs": epochs, "learning_rate": learning_rate}
        path = _point_path(folder, current, lessons, norm_photos, plan) if folder else None
        if kind == "weights":
            smaller = prune(current, [], due, epochs=0, norm_photos=norm_photos).model
        else:
            fraction = max(1 - (1 - due) * whole / _size(current, kind), 0.0)
            smaller = prune_channels(current, fraction).model
            fine_tune(smaller, [], 0, norm_photos=norm_photos)  # trains nothing: statistics only
        before = _value(score, smaller)
        if path and path.exists():
            current = keras.saving.load_model(path, compile=False)
        else:
            if epochs and kind == "weights":
                # the masks have to hold while the weights are tuned, so the loop prunes again with training
                smaller = prune(current, lessons.stream(), due, epochs, "one_shot", **tuning).model
            elif epochs:
                fine_tune(smaller, lessons.stream(), epochs, **tuning)
            current = smaller
            _keep(current, path)
        rows.append(_round(number, 1 - _size(current, kind) / whole, current, before, _value(score, current)))
    return current, pd.DataFrame(rows)


def _size(model, kind):
    """Prunable weights that are not zero, or expansion channels."""
    if kind == "channels":
        return sum(block.channels for block in find_blocks(model))
    report = sparsity_report(model)
    return int(report.loc[report["prunable"], "nonzero"].sum())


def _round(number, removed, model, before, after):
    report = flops.count(model, unsupported="ignore")
    return {
        "round": number, "removed": float(removed), "parameters": int(model.count_params()),
        "nonzero_weights": int(sparsity_report(model)["nonzero"].sum()), "macs": int(report.total_macs),
        "gzip_bytes": gzip_bytes(model), "before_tuning": before, "score": after,
    }  # fmt: skip


def _value(score, model):
    return None if score is None else float(score(model))


def measure(run, dataset, size, seed=0):
    """The sweep and the loop of notebook 3: the metrics of `results/pruning.json`. On photos it takes hours.

    Args:
        run: finished Run with weights; dataset: its Dataset.
        size: of recipes.sizes().
        seed: of the photos and their order.

    Returns:
        dict, "pruning" and "pruning_loop" -> list of rows.
    """
    model, side, labels = run.model(), run.config.input_size, list(dataset.classes)
    parts = {name: dataset.part(name) for name in ("train", "validation", "test")}
    train, test = parts["train"], parts["test"]
    train = train.sample(min(size["prune_photos"] or len(train), len(train)), random_state=seed)
    some = np.random.default_rng(seed).permutation(len(test))[: size["prune_test_photos"] or None]
    photos, answers = pipeline.load_images(test, side)[some], test["label"].map(labels.index).to_numpy()[some]
    calibration = quantization.representative_photos(dataset.frame, size["calibration_photos"], side, seed=seed)
    lessons, rate = Lessons(train, dataset.classes, side, seed), size["prune_learning_rate"]
    keep = files.runs_dir() / "pruning" / run.run_id
    found = sweep(
        model, lessons, photos, answers, size["prune_levels"], size["channel_levels"], size["prune_kinds"],
        size["prune_epochs"], rate, calibration, keep,
    )  # fmt: skip
    found, _ = found.timed(photos[:1], rounds=size["timing_rounds"], budget_s=size["timing_budget_s"])
    held = pipeline.load_images(parts["validation"], side).astype("float32")
    right = parts["validation"]["label"].map(labels.index).to_numpy()
    _, rounds = iterative_prune(
        model, lessons, max(size["prune_levels"]), size["loop_rounds"], learning_rate=rate, norm_photos=calibration,
        folder=keep,
        score=lambda pruned: (pruned.predict(held, verbose=0).argmax(1) == right).mean(),
    )  # fmt: skip
    return {"pruning": found.frame.to_dict("records"), "pruning_loop": rounds.to_dict("records")}
