"""Save a converted model, and compare what each scheme costs with what it keeps: accuracy, bytes, memory, time."""

import functools
import gzip
import hashlib
import json
import pathlib
import warnings

import numpy as np
import pandas as pd

from utils import files, latency
from utils.classify import PIXELS, TFLiteModel, description_path, open_interpreter, read_photo

from . import calibration
from .convert import SCHEMES, convert, find_scheme, float_tflite, open_file
from .inputs import as_representative, collect, wanted_range

PREPROCESSING = "RGB 0..255; scaling is inside the model"


def representative_photos(frame, count=100, input_size=224, seed=0):
    """Calibration photos from the training set of a `Dataset.frame`, classes taking turns.

    Returns:
        uint8 (count, input_size, input_size, 3), in an order whose beginnings are balanced too.

    Raises:
        ValueError: fewer training photos than `count`.
    """
    train = frame[frame["split"] == "train"]
    if not 1 <= count <= len(train):
        raise ValueError(f"count must be between 1 and the {len(train)} photos of the training set, got {count}")
    shuffled = train.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("label").cumcount()
    chosen = shuffled.assign(_turn=turn).sort_values(["_turn", "label"], kind="stable").head(count)
    return np.stack([read_photo(path, input_size) for path in chosen["path"]])


def save(path, data, labels=None, scheme=None, source=None, input_range=None, **facts):
    """Write a .tflite file and, beside it, the JSON that says how to use it; each whole or not at all.

    Args:
        path: of the file; ".tflite" at its end.
        data: bytes from :func:`convert`.
        labels: class names in the order of the output.
        scheme: its key of `SCHEMES`.
        source: one phrase: which model, which weights, trained on what.
        input_range: (low, high) that callers' pixels are scaled to, as given to :func:`convert`; None: what the file
            itself says, else 0..255.
        facts: anything else worth keeping that JSON can hold (accuracy, low_confidence=0.45, …).

    Returns:
        pathlib.Path of the .tflite file.

    Raises:
        ValueError: another ending, damaged data, an unknown scheme, or labels that do not fit. Nothing is written then.

    Example:
        >>> save("models/mine.tflite", data, labels=["dress", "hat"], scheme="int8")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"path must end in .tflite, so that runtimes know the file, got {path}")
    model = TFLiteModel(data, num_threads=1, labels=labels, input_range=input_range)
    labels = list(map(str, model.labels)) if model.labels is not None else None
    if labels is not None and None in model.labels:
        raise ValueError(f"labels must be names, got {labels}")
    input_range = None if input_range is None and model.input_range == PIXELS else list(model.input_range)
    height, width = model.input_size
    description = {
        "labels": labels,
        "input_size": [height, width],
        "input": str(model.input_dtype),
        "output": str(model.output_dtype),
        "preprocessing": PREPROCESSING if input_range is None else f"pixels 0..255, scaled to {input_range}",
        **({} if input_range is None else {"input_range": input_range}),
        "scheme": find_scheme(scheme).name if scheme is not None else None,
        "source": source,
        "sha256": hashlib.sha256(model.content).hexdigest(),
    }
    clash = sorted(facts.keys() & {*description, "input_range"})
    if clash:
        raise ValueError(f"facts must have names of their own, got {', '.join(clash)}, which the file itself says")
    description |= {name: value.item() if isinstance(value, np.generic) else value for name, value in facts.items()}
    try:
        json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"source and facts must be what JSON can hold, got another thing ({error})") from error
    # The JSON first: its digest tells if the disk was full, or the process killed, before the new model came.
    files.write_json(description_path(path), description)
    files.write_bytes(path, model.content)
    return path


def confidence_threshold(probabilities, labels, keep=0.95):
    """The probability below which `utils.classify` says that a photo may show none of the classes.

    Chosen so that the right answers on validation photos mostly stay above it.

    Args:
        probabilities: (n, classes) of validation photos, by the model that will be shipped.
        labels: (n,) class indices.
        keep: share of the right answers that must not be doubted.

    Returns:
        float, rounded down to two digits.

    Raises:
        ValueError: no right answer to choose it from, labels that do not fit, or a share outside 0..1.

    Example:
        >>> confidence_threshold([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], [0, 1, 1], keep=1.0)
        0.7
    """
    probabilities = np.asarray(probabilities, dtype=float)
    labels = _checked_labels(labels, probabilities)
    if probabilities.min() < -0.01 or probabilities.max() > 1.01:
        got = f"{probabilities.min():.3g}..{probabilities.max():.3g}"
        raise ValueError(f"expected probabilities, got {got}; apply the softmax first")
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share above 0 and up to 1, got {keep}")
    right = probabilities.max(1)[probabilities.argmax(1) == labels]
    if len(right) == 0:
        raise ValueError("no answer is right, so no threshold can be chosen; check the labels' order")
    return float(np.floor(np.quantile(right, 1 - keep) * 100 + 1e-6) / 100)


def gzip_bytes(data):
    """Bytes that a download takes: the size of `data` after gzip at its highest level."""
    return len(gzip.compress(data, 9, mtime=0))


def evaluate_schemes(models, images, labels=None, reference="float32", num_threads=None, input_range=None):
    """Every scheme's price list on the same photos.

    Args:
        models: dict, name -> bytes or path of a .tflite; :func:`convert_all` makes one.
        images: (n, height, width, channels) test photos in 0..255.
        labels: (n,) class indices; None, or a model without classes (one output): no accuracy.
        reference: the name whose answers the others are compared with.
        num_threads: threads of the interpreter.
        input_range: (low, high) that the pixels are scaled to, as given to :func:`convert`.

    Returns:
        DataFrame indexed by name: "accuracy", "accuracy_low", "accuracy_high" (95 % Wilson interval), "macro_f1",
        "agreement" (share of photos with the reference's first class), "largest_change" (of a probability),
        "size_bytes", "gzip_bytes", "times_smaller", "weights_bytes", "arena_bytes" (activations at batch 1),
        "unpacked_bytes" (float copies of packed weights in memory), "macs_m" (millions, counted from the file); where
        an operator could not be counted also "macs_note" ("at least …").

    Raises:
        ValueError: no photos, labels of another length or out of range, no model named as the reference, or files that
            want their pixels in different ranges.
    """
    from utils.flops import count_tflite

    if not isinstance(models, dict):
        raise TypeError(f"expected a dict, name -> bytes or path of a .tflite, got {type(models).__name__}")
    if reference not in models:
        raise ValueError(f"reference must be one of {', '.join(models)}, got {reference!r}")
    rows, exact, wanted = {}, None, None
    for name in sorted(models, key=lambda name: name != reference):  # the reference first, the others as they came
        model = TFLiteModel(models[name], num_threads, input_range=input_range)
        wanted = wanted or model.input_range
        if model.input_range != wanted:
            raise ValueError(
                f"expected files of one input range, got {reference} in {wanted} and {name} in {model.input_range}; "
                f"pass input_range={model.input_range if wanted == PIXELS else wanted}"
            )
        probabilities = model(images)
        exact = probabilities if exact is None else exact
        finite = bool(np.isfinite(probabilities).all())
        if not len(images) or probabilities.shape != exact.shape or not finite:
            got = f"{probabilities.shape} from {name}" + " with NaN or infinity" * (not finite)
            raise ValueError(
                f"expected finite answers to at least one photo, of as many classes as {reference}, got {got}; "
                "leave that file out, or convert it again"
            )
        counted = count_tflite(model.content, unsupported="ignore")
        rows[name] = {
            **_judged(probabilities, labels, name),
            "agreement": difference(probabilities, exact)["agreement"],
            "largest_change": float(np.abs(probabilities - exact).max()),
            "size_bytes": model.size_bytes,
            "gzip_bytes": gzip_bytes(model.content),
            "times_smaller": rows[reference]["size_bytes"] / model.size_bytes if rows else 1.0,
            "weights_bytes": open_file(model.content).stored_bytes,
            **memory(model.content),
            "macs_m": counted.total_macs / 1e6,
        }
        if counted.unsupported:
            kinds = ", ".join(sorted({one.type for one in counted.unsupported}))
            rows[name]["macs_note"] = f"at least: {kinds} not counted"
    return pd.DataFrame.from_dict(rows, orient="index").loc[list(models)].rename_axis("scheme")


def _judged(probabilities, labels, name):
    """Accuracy with its interval and F1; NaN where there are no labels, or no classes to be right about."""
    from sklearn.metrics import f1_score

    from utils.evaluation.intervals import wilson

    classes = probabilities.shape[1]
    if labels is None or classes == 1:
        return dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "macro_f1"), np.nan)
    labels = _checked_labels(labels, probabilities, name)
    answers = probabilities.argmax(1)
    right = int(np.sum(answers == labels))
    low, high = wilson(right, len(labels))
    f1 = f1_score(labels, answers, average="macro", labels=np.arange(classes), zero_division=0)
    return {"accuracy": right / len(labels), "accuracy_low": low, "accuracy_high": high, "macro_f1": f1}


def calibration_study(
    model, representative, images, labels=None, counts=(1, 3, 10, 30, 100), methods=None, input_range=None
):
    """int8 against the number of calibration photos, and against the rule that turns photos into ranges.

    Args:
        model: as for :func:`convert`.
        representative: (n, height, width, 3) training photos, in an order whose beginnings are balanced too.
        images: (m, height, width, 3) photos to judge by, of other people than the representative ones.
        labels: (m,) class indices; None leaves the accuracy out.
        counts: numbers of photos to try with min-max; those above n are left out, n itself comes last.
        methods: of `calibration.METHODS`, tried with all n photos; None: all.
        input_range: (low, high) that the model takes, as for :func:`convert`.

    Returns:
        DataFrame, a row a trial: "method", "photos", "agreement" (with the float model's first class), "mean_change",
        "largest_change" (of a probability), with labels also "accuracy", "accuracy_low", "accuracy_high" (Wilson).
    """
    photos, input_range = collect(representative), wanted_range(model, input_range)
    source = float_tflite(model)
    reference = TFLiteModel(source, input_range=input_range)
    photos = as_representative(photos, SCHEMES["int8"], (*reference.input_size, reference.channels), input_range)
    statistics, exact, rows = calibration.measure(source, photos, input_range), reference(images), []
    total = len(statistics)
    trials = [("min-max", count) for count in (*sorted({count for count in counts if count < total}), total)]
    trials += [(method, total) for method in methods or calibration.METHODS if method != "min-max"]
    for method, count in trials:
        data = convert(source, "int8", statistics=statistics.first(count), calibrate=method)
        probabilities = TFLiteModel(data, input_range=input_range)(images)
        judged = _judged(probabilities, labels, "the model") if labels is not None else {}
        rows.append({"method": method, "photos": count, **difference(probabilities, exact), **judged})
    return pd.DataFrame(rows).drop(columns="accuracy" if labels is None else "macro_f1")


def difference(probabilities, reference, labels=None):
    """What quantization did to the answers: accuracy and agreement of the first class, mean and largest change.

    Accuracy is NaN without labels, both are where there are no classes (one output).
    """
    if not len(probabilities):
        raise ValueError("expected at least one photo to compare answers on, got none; pass some")
    if labels is not None:
        labels = _checked_labels(labels, probabilities)
    change, answers, classes = np.abs(probabilities - reference), probabilities.argmax(1), probabilities.shape[1] > 1
    return {
        "accuracy": np.nan if labels is None or not classes else np.mean(answers == labels),
        "agreement": np.mean(answers == reference.argmax(1)) if classes else np.nan,
        "mean_change": change.mean(),
        "largest_change": change.max(),
    }


def time_ratios(models, image, baseline):
    """Time of one photo, as the ratio to the baseline's: dict of name -> number."""
    runs = {str(place): functools.partial(model, image) for place, model in enumerate(models.values())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", latency.LoadedMachine)  # interleaved, so a busy moment hits all of them
        timings = latency.measure(
            runs, rounds=15, warmup=2, calls=1, baseline=str(list(models).index(baseline)), machine=None
        )
    return dict(zip(models, timings.ratios()["ratio"], strict=True))


def memory(content):
    """Memory that a .tflite needs beside its own bytes, at batch 1.

    arena_bytes: what LiteRT's planner reserves for all activations together, read from the addresses that it gave out
    for the built-in kernels (XNNPACK's own workspace, of the same order, does not show). unpacked_bytes: float32
    copies of the weights of float16 and weight-only files.
    """
    interpreter = open_interpreter(content, 1, "builtin")
    ops = interpreter._get_ops_details()
    computed = {interpreter.get_input_details()[0]["index"]} | {int(index) for op in ops for index in op["outputs"]}
    starts, ends, unpacked = [], [], 0
    for op in ops:
        constant = op["op_name"] == "DEQUANTIZE" and int(op["inputs"][0]) not in computed
        for index in op["outputs"][op["outputs"] >= 0]:
            view = interpreter.tensor(int(index))()
            if constant:
                unpacked += view.nbytes
            else:
                starts.append(view.__array_interface__["data"][0])
                ends.append(starts[-1] + view.nbytes)
            del view  # the interpreter refuses to run while a view of its memory is alive
    return {"arena_bytes": max(ends) - min(starts), "unpacked_bytes": unpacked}


def _checked_labels(labels, probabilities, name="the model"):
    if probabilities.ndim != 2 or not np.isfinite(probabilities).all():
        got = probabilities.shape if probabilities.ndim != 2 else "NaN or infinity"
        raise ValueError(f"probabilities must be finite, of shape (n, classes), got {got}; check {name}")
    labels, (count, classes) = np.asarray(labels), probabilities.shape
    if count == 0 or labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        got = f"shape {labels.shape} of {labels.dtype}"
        raise ValueError(f"labels must hold one class index for each of {count} photos, got {got}")
    if labels.min() < 0 or labels.max() >= classes:
        got = f"{labels.min()}..{labels.max()}"
        raise ValueError(f"labels must be in 0..{classes - 1}, the classes of {name}, got {got}")
    return labels
