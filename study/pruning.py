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
from utils.pruning import fine_tune, gzip_bytes, prune, prune_channels, sparsity_report
from utils.quantization.runtimes import litert_candidates


@dataclasses.dataclass(frozen=True)
class Lessons:
    """The training photos of a fine-tuning: a frame with path and label, and how batches are drawn from it.

    Each point gets a fresh stream, so that all of them see the same batches.
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


def sweep(model, lessons, photos, labels, levels, representative, folder, epochs=1, learning_rate=1e-4):
    """Prune copies of a trained model to several levels by each kind, fine-tune, convert, and judge every file.

    Args:
        photos: uint8 (n, height, width, 3) to judge on; labels: int (n,), class numbers.
        levels: "weights" (removed gradually), "weights, one-shot" or "channels" -> shares to remove.
        representative: photos for calibration, and for batch-norm statistics that follow what was removed.
        folder: where finished points are kept and looked for.

    Returns:
        (DataFrame, one row per point and scheme: kind ("weights", "channels, int8" ...), removed (share asked for),
        accuracy with accuracy_low and accuracy_high (Wilson, 95%), nonzero_weights, file_mb, gzip_mb, macs_m; list of
        .tflite bytes, one per row). The first rows of each kind are the model as it came.
    """
    tuning = {"epochs": epochs, "learning_rate": learning_rate}
    rows, contents = [], []
    for kind, level in [("", 0.0), *((kind, level) for kind, shares in levels.items() for level in shares)]:
        pruned = model
        if kind:
            path = _point_path(folder, model, lessons, representative, {"kind": kind, "level": level, **tuning})
            pruned = _kept(path, _point, model, lessons, kind, level, tuning | {"norm_photos": representative})
        for scheme, content in quantization.convert_all(pruned, ("float32", "int8"), representative).items():
            rows.append(_judged(kind, level, scheme, pruned, content, photos, labels))
            contents.append(content)
    frame = _with_starts(pd.DataFrame(rows), levels)
    return frame, [contents[place] for place in frame.pop("file")]


def timed(frame, contents, photo, **settings):
    """The rows of a sweep with each file's time relative to the unpruned float32 file: ratio, ratio_low, ratio_high."""
    places = {content: contents.index(content) for content in contents}  # curves share their start
    listed = {str(place): content for content, place in places.items()}
    ways = litert_candidates(listed, photo, 1, more_threads=(), detailed=())
    ratios = latency.measure(ways, baseline="LiteRT 0", **settings).ratios()
    ratios = ratios.loc[[f"LiteRT {places[content]}" for content in contents], ["ratio", "ratio_low", "ratio_high"]]
    return pd.concat([frame, ratios.reset_index(drop=True)], axis="columns")


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
        rows = pd.concat([start, frame[frame["kind"] == kind]])
        for scheme, name in (("float32", kind), ("int8", f"{kind}, int8")):
            parts.append(rows[rows["scheme"] == scheme].assign(kind=name).drop(columns="scheme"))
    return pd.concat(parts, ignore_index=True)


def _digest(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _kept(path, make, *arguments):
    """The model at `path`; where there is none, it is made and kept there."""
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    model = make(*arguments)
    with files.atomic_path(path) as part:
        model.save(part)
    return model


def _point_path(folder, model, lessons, photos, facts):
    """A file named by all that the point depends on."""
    plan = {"model": _digest(*model.get_weights()), "lessons": lessons.key(), "norm_photos": _digest(photos), **facts}
    plan, slug = json.dumps(plan, sort_keys=True), facts["kind"].replace(", ", "-")
    return pathlib.Path(folder) / f"{slug}-{facts['level']:.0%}-{hashlib.sha256(plan.encode()).hexdigest()[:8]}.keras"


def iterative_prune(model, lessons, target, rounds, score, norm_photos, folder, learning_rate=1e-4):
    """Score importance, remove, fine-tune, repeat until `target` (a share below 1) of a model's weights are gone.

    After round i of n the share 1 - (1 - target)^(i / n) is removed, and one pass over the lessons follows. `score` is
    a function of a model, such as its validation accuracy; `norm_photos` as for `pruning.fine_tune`; every round is
    kept in `folder`, and looked for there.

    Returns:
        (the last round's Keras model, DataFrame with one row per round, as `_round` makes it; round 0 is the model as
        it came).
    """
    tuning = {"epochs": 1, "learning_rate": learning_rate, "norm_photos": norm_photos}
    whole, value = _size(model), score(model)
    current, rows = model, [_round(0, 0.0, model, value, value)]
    for number in range(1, rounds + 1):
        due = 1 - (1 - target) ** (number / rounds)
        facts = {"kind": "loop-weights", "level": due, "epochs": 1, "learning_rate": learning_rate}
        path = _point_path(folder, current, lessons, norm_photos, facts)
        smaller = prune(current, [], due, epochs=0, norm_photos=norm_photos).model
        # the masks have to hold while the weights are tuned, so this prunes again with training
        current = _kept(path, _point, smaller, lessons, "weights, one-shot", due, tuning)
        rows.append(_round(number, 1 - _size(current) / whole, current, score(smaller), score(current)))
    return current, pd.DataFrame(rows)


def _size(model):
    """Prunable weights that are not zero."""
    report = sparsity_report(model)
    return int(report.loc[report["prunable"], "nonzero"].sum())


def _round(number, removed, model, before, after):
    return {
        "round": number, "removed": float(removed), "parameters": int(model.count_params()),
        "nonzero_weights": int(sparsity_report(model)["nonzero"].sum()),
        "macs": int(flops.count(model, unsupported="ignore").total_macs), "gzip_bytes": gzip_bytes(model),
        "before_tuning": before, "score": after,
    }  # fmt: skip


def measure(run, dataset, size, seed=0):
    """The sweep and the loop of notebook 3: the metrics of `results/pruning.json`. On photos it takes hours.

    `run` has its weights, `size` is of recipes.sizes(), and `seed` of the photos and their order.
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
    levels = {kind: size["channel_levels" if kind == "channels" else "prune_levels"] for kind in size["prune_kinds"]}
    frame, contents = sweep(model, lessons, photos, answers, levels, calibration, keep, size["prune_epochs"], rate)
    timing = {"rounds": size["timing_rounds"], "budget_s": size["timing_budget_s"]}
    held = pipeline.load_images(parts["validation"], side).astype("float32")
    right = parts["validation"]["label"].map(labels.index).to_numpy()
    _, rounds = iterative_prune(
        model, lessons, max(size["prune_levels"]), size["loop_rounds"], norm_photos=calibration, folder=keep,
        score=lambda pruned: (pruned.predict(held, verbose=0).argmax(1) == right).mean(), learning_rate=rate,
    )  # fmt: skip
    return {
        "pruning": timed(frame, contents, photos[:1], **timing).to_dict("records"),
        "pruning_loop": rounds.to_dict("records"),
    }
