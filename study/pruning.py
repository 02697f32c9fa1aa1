"""What pruning buys: a sweep over both kinds and several levels, each judged as float and as int8, then timed.

Every point is a model pruned from the same start and fine-tuned on the same batches; what is reported of it is read
from its .tflite files: accuracy on the given photos, bytes, bytes after gzip, MACs, time relative to the unpruned file.
"""

import dataclasses
import hashlib
import json
import pathlib

import keras
import numpy as np
import pandas as pd

from utils import files, flops, latency, quantization
from utils.evaluation.intervals import wilson
from utils.pruning import fine_tune, gzip_bytes, prune, sparsity_report, steps_of
from utils.pruning.channels import prune_channels
from utils.quantization.runtimes import litert_candidates

KINDS = ("weights", "weights, one-shot", "channels")


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep:
    """The points of a sweep.

    Attributes:
        frame: DataFrame, one row a point and scheme: kind ("weights", "channels, int8" ...), removed (share asked for),
            accuracy with accuracy_low and accuracy_high (Wilson, 95 %), nonzero_weights, file_mb, gzip_mb, macs_m;
            after :meth:`timed` also ratio, ratio_low, ratio_high.
        files: list of .tflite bytes, one a row.
        models: {(kind, level): Keras model}.
    """

    frame: pd.DataFrame
    files: list
    models: dict

    def to_frame(self):
        """The table of points."""
        return self.frame

    def timed(self, photo, threads=1, **settings):
        """The same sweep with each file's time relative to the unpruned float32 file.

        Args:
            photo: (1, height, width, 3) in 0..255.
            threads: of the interpreter.
            settings: rounds, budget_s ... for `latency.measure`.

        Returns:
            (Sweep, latency.Timings).
        """
        places = {
            content: place for place, content in reversed(list(enumerate(self.files)))
        }  # curves share their start
        rows = {str(place): content for content, place in sorted(places.items(), key=lambda pair: pair[1])}
        found = litert_candidates(rows, photo, threads, more_threads=(), detailed=())
        timings = latency.measure(found, baseline="LiteRT 0", **settings)
        names = [f"LiteRT {places[content]}" for content in self.files]
        ratios = timings.ratios().loc[names, ["ratio", "ratio_low", "ratio_high"]].reset_index(drop=True)
        return dataclasses.replace(self, frame=pd.concat([self.frame, ratios], axis="columns")), timings

    def __repr__(self):
        return self.frame.round(3).to_string(index=False)

    def _repr_html_(self):
        return self.frame.round(3).to_html(index=False)


def sweep(
    model,
    train_batches,
    photos,
    labels,
    levels=(0.5, 0.7, 0.8),
    channel_levels=(0.25, 0.5),
    kinds=KINDS,
    epochs=1,
    learning_rate=1e-4,
    representative=None,
    importance="l1",
    folder=None,
    steps_per_epoch=None,
    verbose=0,
):
    """Prune one model to several levels by each kind, fine-tune, convert, and judge every file.

    Args:
        model: a trained Keras 3 classifier; it is copied, not changed.
        train_batches: (images, labels) batches, see `pruning.fine_tune`.
        photos: uint8 (n, height, width, 3) to judge on.
        labels: int (n,), class numbers.
        levels: shares of weights; channel_levels: shares of expansion channels.
        kinds: of KINDS; "weights" is pruned gradually.
        epochs, learning_rate, steps_per_epoch, verbose: of the fine-tuning after each removal.
        representative: calibration photos; with them every point is also converted to int8, and batch-norm statistics
            follow what was removed.
        importance: of channels, "l1" or "gamma".
        folder: where finished points are kept and looked for.

    Returns:
        Sweep; its first rows are the model as it came.

    Raises:
        ValueError: unknown kind, a level outside [0, 1), photos and labels of different number, nothing to prune.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"kind {sorted(unknown)[0]!r} is unknown; choose of {', '.join(KINDS)}")
    labels = np.asarray(labels)
    if len(photos) != len(labels) or not len(labels):
        raise ValueError(f"there are {len(photos)} photos and {len(labels)} labels; give one label a photo")
    tuning = {"epochs": epochs, "learning_rate": learning_rate, "steps_per_epoch": steps_per_epoch}
    base, steps = _fingerprint(model), steps_of(train_batches, steps_per_epoch) if epochs else 0
    rows, contents, models = [], [], {}
    for kind in ("", *kinds):
        for level in (0.0,) if not kind else channel_levels if kind == "channels" else levels:
            normalized = 0 if representative is None else len(representative)
            plan = {
                "model": base,
                "norm_photos": normalized,
                "kind": kind,
                "level": level,
                "steps": steps,
                "importance": importance,
                **tuning,
            }
            path = None if folder is None else _point_path(folder, kind, level, plan)
            if not kind:
                pruned = model
            elif path is not None and path.exists():
                pruned = keras.saving.load_model(path, compile=False)
            else:
                pruned = _point(model, train_batches, kind, level, importance, verbose, tuning, representative)
                if path is not None:
                    with files.atomic_path(path) as part:
                        pruned.save(part)
            models[kind or "unpruned", level] = pruned
            schemes = ("float32",) if representative is None else ("float32", "int8")
            converted = quantization.convert_all(pruned, schemes, representative)
            for scheme, content in converted.items():
                rows.append(_row(kind, level, scheme, pruned, content, photos, labels))
                contents.append(content)
    frame = _with_starts(pd.DataFrame(rows), kinds)
    return Sweep(frame, [contents[place] for place in frame.pop("file")], models)


def _point(model, train_batches, kind, level, importance, verbose, tuning, photos):
    tuning = {**tuning, "verbose": verbose, "norm_photos": photos}
    if kind == "channels":
        smaller = prune_channels(model, level).model
        fine_tune(smaller, train_batches, **tuning)
        return smaller
    schedule = "one_shot" if "one-shot" in kind else "gradual"
    return prune(model, train_batches, level, schedule=schedule, **tuning).model


def _row(kind, level, scheme, model, content, photos, labels):
    right = int((quantization.TFLiteModel(content)(photos).argmax(axis=1) == labels).sum())
    low, high = wilson(right, len(labels))
    report = sparsity_report(model)
    return {
        "kind": kind, "scheme": scheme, "removed": level, "accuracy": right / len(labels), "accuracy_low": low,
        "accuracy_high": high, "nonzero_weights": int(report["nonzero"].sum()), "file_mb": len(content) / 1e6,
        "gzip_mb": gzip_bytes(content) / 1e6, "macs_m": flops.count_tflite(content).total_macs / 1e6,
    }  # fmt: skip


def _with_starts(frame, kinds):
    """Every kind's curve starts at the unpruned model, whose rows are repeated; `file` says which file a row is of."""
    frame = frame.assign(file=range(len(frame)))
    start = frame[frame["kind"] == ""]
    parts = []
    for kind in kinds:
        rows = pd.concat([start.assign(kind=kind), frame[frame["kind"] == kind]])
        for scheme in dict.fromkeys(rows["scheme"]):
            name = kind if scheme == "float32" else f"{kind}, {scheme}"
            parts.append(rows[rows["scheme"] == scheme].assign(kind=name).drop(columns="scheme"))
    return pd.concat(parts, ignore_index=True)


def _point_path(folder, kind, level, plan):
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]
    slug = kind.replace(", ", "-")
    return pathlib.Path(folder) / f"{slug}-{round(100 * level)}-{digest}.keras"


def _fingerprint(model):
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]
