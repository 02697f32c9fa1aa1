"""A classifier for your own photos, in one command.

    python -m utils.training my_photos --out my_model [--fine-tune] [--epochs N]

`my_photos` holds one folder of photos per class. `my_model` gets an int8 `.tflite` file with its JSON, a confusion
matrix, a model card, and the training itself: stopped with Ctrl-C, the same command goes on where it was.
"""

import argparse
import os
import pathlib
import re
import shlex
import sys
import warnings

FROZEN = {"mode": "frozen", "epochs": 60, "patience": 15}
FINE_TUNE = {  # as for the study's rows: the head starts from a linear probe, a low peak rate with warm-up and cosine
    "mode": "fine_tune", "epochs": 8, "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-4,
    "weight_decay": 0.01, "schedule": "cosine", "label_smoothing": 0.1, "dropout": 0.3, "augment": "light",
}  # fmt: skip
WRITTEN = ("README.md", "model.json", "model.tflite", "confusion_matrix.png")
WIDE = 0.20  # an interval of the accuracy that is wider says too little
CARD = """# {name}

{title}, {mode}, on photos of {n_classes} classes: {classes}.

| | |
|---|--:|
| photos: training / validation / test | {counts} |
| test accuracy (95% Wilson interval) | {accuracy} |
| int8 file: test accuracy | {int8_accuracy} |
| int8 file: same answer as the float network | {agreement} |
| multiply-accumulates per photo | {macs:,} |
| parameters | {params:,} |
| size of the int8 file | {size:,} bytes |
| pretrained weights | {weights} |

![Confusion matrix on the test set](confusion_matrix.png)

| class | test photos | precision | recall |
|---|--:|--:|--:|
{per_class}

{split}

Made with `{command}`. Use it with `{classify}`.
"""


def parse(arguments=None):
    """The command line's options; TensorFlow is not imported before they are known to be right."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.training", description="A classifier for your own photos, in one command."
    )
    parser.add_argument("photos", type=pathlib.Path, help="folder with one folder of photos per class")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER", help="where the model goes")
    parser.add_argument("--fine-tune", action="store_true", help="train the whole network: better, and far slower")
    parser.add_argument("--epochs", type=int, help="passes over the training photos (60, or 8 with --fine-tune)")
    parser.add_argument(
        "--backbone", default="efficientnet_lite0", choices=("efficientnet_lite0", "mobilenet_v2", "efficientnet_b0")
    )
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels (224)")
    parser.add_argument("--senders", nargs=2, metavar=("CSV", "COLUMN"), help="who took each photo: split by person")
    parser.add_argument("--split", choices=("folders", "grouped", "random"), help="as found, by person, or at random")
    parser.add_argument("--per-class", type=int, help="at most so many photos per class and part")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the training (0)")
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.photos):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        parser.error(f"there is no folder {options.photos}; expected a folder with one folder of photos per class")
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs must be a positive integer, got {options.epochs}")
    if not 32 <= options.size <= 1024:
        parser.error(f"--size must be from 32 to 1024 pixels, got {options.size}")
    if options.photos.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        parser.error(f"--out must lie outside the photos, got {options.out}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if not os.access(options.out, os.W_OK):
            raise PermissionError(13, "Permission denied")
        theirs = [name for name in WRITTEN if (options.out / name).exists()]
        if theirs and not any(options.out.glob("training/*/run.json")):  # a folder `training` may be anybody's
            parser.error(f"--out must be new, or hold training/ of this command, got {options.out} with {theirs[0]}")
    except OSError as error:
        parser.error(f"cannot write to {options.out}: {error.strerror}; pass another folder with --out")
    return options


def main(arguments=None):
    """Command line; returns the exit code."""
    options = parse(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=UserWarning)
        warnings.showwarning = lambda message, category, *_: (
            issubclass(category, UserWarning) and print(f"Note: {message}", flush=True)
        )
        try:
            _make(options, shlex.join(["python", "-m", "utils.training", *(arguments or sys.argv[1:])]))
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on where this one was; finished epochs are kept.")
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
            print("Stopped: nothing reads the output any more. The same command goes on here.", file=sys.stderr)
            return 1
        except (ValueError, OSError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def _make(options, command):
    from utils import datasets, environment, files

    senders = options.senders
    data = datasets.from_folder(options.photos, senders, options.split, options.seed, options.per_class)
    print(data.report(), data.distribution().to_string(), sep="\n\n", end="\n\n", flush=True)
    import matplotlib

    matplotlib.use("agg")
    with environment.quiet():  # TensorFlow says something on standard error when it is imported
        from utils import evaluation, flops, plots, quantization, training

        training.train  # noqa: B018  # imports TensorFlow

    parts = {name: data.part(name) for name in ("train", "validation", "test")}
    if not senders:  # nobody said who took which photo: nothing can be said about people
        parts = {name: part.drop(columns="sender") for name, part in parts.items()}
    if not len(parts["test"]):
        raise ValueError("no photo is left for the test set; add photos, at least three per class")
    config = _config(options, data, len(parts["train"]), len(parts["validation"]))
    run = training.train(config, data, folder=options.out / "training", shipped=False)

    verdict = evaluation.evaluate(run.predict, parts["test"], data.classes, name="test set")
    print(f"\n{verdict}\n")
    if verdict.accuracy_high - verdict.accuracy_low > WIDE:
        print(
            f"Note: the accuracy may lie anywhere from {verdict.accuracy_low:.0%} to {verdict.accuracy_high:.0%}: "
            f"{verdict.n} test photos are few. Add photos before you rely on it.\n"
        )
    model = run.model()
    cost = flops.count(model)
    count = min(200, len(parts["train"]))
    print(f"Converting to int8, calibrated on {count} training photos", flush=True)
    photos = quantization.representative_photos(data.frame, count, options.size, options.seed)
    content = quantization.convert(model, "int8", photos)
    small = quantization.TFLiteModel(content)

    def answers(frame):
        return small(datasets.load_images(frame, options.size))

    judged = evaluation.evaluate(answers, parts["test"], data.classes, name="int8")
    same = float((judged.predicted == verdict.predicted).mean())
    facts = {"accuracy": judged.accuracy, "n_test": judged.n, "run_id": run.run_id}
    if len(parts["validation"]):
        seen = evaluation.evaluate(answers, parts["validation"], data.classes)
        if seen.correct.any():
            facts["low_confidence"] = quantization.confidence_threshold(seen.probabilities, seen.labels)
    path = quantization.save(
        options.out / "model.tflite", content, list(data.classes), scheme="int8",
        source=f"{run.run_id}: {run.weights_source}", **facts,
    )  # fmt: skip
    print(
        f"{cost.total_macs:,} multiply-accumulates per photo, {cost.total_params:,} parameters, {len(content):,} bytes "
        f"as int8\nint8: {judged.accuracy:.1%} on the test set; the same answer as the float network for {same:.1%} of "
        f"{judged.n} photos"
    )
    with files.atomic_path(options.out / "confusion_matrix.png") as part:
        plots.confusion_matrix(verdict).savefig(part, dpi=120, bbox_inches="tight")
    classify = shlex.join(["python", "-m", "utils.classify", "PHOTO.jpg", "--model", str(path)])
    _write_card(options, data, run, verdict, judged, same, cost, len(content), command, classify)
    print(f"\nIn {options.out}: model.tflite, model.json, README.md (model card), confusion_matrix.png, training/")
    print(classify, flush=True)


def _config(options, data, n_train, n_validation):
    """The RunConfig for a folder of this size: small sets get smaller steps, and what can be chosen by validation."""
    from utils.training import RunConfig

    choices = FINE_TUNE if options.fine_tune else FROZEN | {"batch_size": 8 if n_train < 500 else 32}
    choices = choices | ({"epochs": options.epochs} if options.epochs else {})
    choices |= {"monitor": "val_loss"} if n_validation else {"monitor": "none", "patience": None}
    if options.fine_tune and choices["epochs"] > 1:
        choices |= {"warmup_epochs": 1}
    sizes = data.frame.loc[data.frame["split"] == "train", "label"].value_counts()
    return RunConfig(
        name=options.out.name or "model", model=options.backbone, input_size=options.size, seed=options.seed,
        class_weights=bool(sizes.max() > 1.2 * sizes.min()), allow_leaks=data.allowed_leaks, **choices,
    )  # fmt: skip


def _write_card(options, data, run, verdict, judged, same, cost, size, command, classify):
    from utils import files, models

    counts = " / ".join(f"{(data.frame['split'] == part).sum():,}" for part in ("train", "validation", "test"))
    split = f"The split is {data.split}: "
    unknown = data.frame["sender"].str.startswith("unknown-").sum()
    known = f", as far as is known: nobody said who took {unknown:,} of the photos." if unknown else "."
    split += f"nobody's photos are on two sides{known}" if data.split == "grouped" else (
        "photos by one person may be on both sides, so expect less from photos by other people."
    )  # fmt: skip
    rows = "\n".join(
        f"| {_cell(name)} | {row.support:.0f} | {row.precision:.0%} | {row.recall:.0%} |"
        for name, row in verdict.per_class[verdict.per_class["support"] > 0].iterrows()
    )
    card = CARD.format(
        name=_cell(options.out.resolve().name), title=models.BACKBONES[options.backbone].title,
        mode="fine-tuned" if options.fine_tune else "frozen below a new head", n_classes=len(data.classes),
        classes=", ".join(map(_cell, data.classes)), counts=counts, weights=run.weights_source, per_class=rows,
        split=split, accuracy=f"{verdict.accuracy:.1%} ({verdict.accuracy_low:.1%} to {verdict.accuracy_high:.1%})",
        int8_accuracy=f"{judged.accuracy:.1%}", agreement=f"{same:.1%} of {judged.n} photos", macs=cost.total_macs,
        params=cost.total_params, size=size, command=command, classify=classify,
    )  # fmt: skip
    files.write_text(options.out / "README.md", card)


def _cell(name):
    return re.sub(r"([\\`*_<|#~\[])", r"\\\1", name)  # the characters of a name are text, not Markdown


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names of any characters are printed
    sys.exit(main())
