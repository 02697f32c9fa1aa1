"""The runs of the study: which models are trained on which photos, with which choices, in which profile.

The notebooks take their :class:`RunConfig` objects from here, and ``python -m study`` trains the same runs in the
background, so that a notebook finds them finished. Rows are named by study and model: ``a-baseline``, ``b-lite0-fine``.

    python -m study                        # what there is, and what is finished
    python -m study --profile full b-lite0-fine a-lite0-fine
    python -m study --folds 5 b-lite0-folds            # sender-grouped cross-validation of fine-tuning
    python -m study --seeds 3 b-lite0-fine             # the same with seeds 0, 1, 2, into results/seeds.json
    python -m study --splits a-lite0-fine              # with its own and a random split, into results/splits.json
    python -m study --record                           # results/trials.json from the finished trials
    python -m study --keep a-baseline                  # what a finished run predicted, into models/
    python -m study --data sketches a-lite0-frozen     # the same way on drawn garments, in a minute or two
"""

import argparse
import dataclasses

from utils.training.config import RunConfig

PROFILES = ("quick", "full")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the study's tables: a run, the photos it belongs to, and the published number that it answers.

    Attributes:
        id: short name, also the name of the run.
        title: what a reader calls it.
        study: "A" (17 classes) or "B" (10 classes).
        dataset: name for datasets.load.
        split: split for datasets.load; None is the dataset's own honest one.
        run: the RunConfig.
        published: accuracy in the published study, 0..1, or None where it has no such row.
        note: conditions that belong beside the number.
    """

    id: str
    title: str
    study: str
    dataset: str
    split: str | None
    run: RunConfig
    published: float | None = None
    note: str = ""


# Fine-tuning as FINDINGS of the project's first measurements suggest for small data on CPUs: a head from a linear
# probe, batch normalization frozen, a low peak rate with warm-up and cosine, light augmentation.
FINE_TUNE = {
    "mode": "fine_tune",
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "label_smoothing": 0.1,
    "dropout": 0.3,
    "augment": "light",
}
FROZEN = {"mode": "frozen", "epochs": 60, "learning_rate": 1e-3, "dropout": 0.2, "patience": 15, "monitor": "val_loss"}


def rows(profile="quick", stand_in=False, baselines=None):
    """The rows of the study, in the order in which a reader meets them.

    Args:
        profile: "quick" (minutes on two cores) or "full" (hours).
        stand_in: drawn garments take the place of both datasets, and inputs shrink with them.
        baselines: profile of the two baseline networks, which take hours in "full"; None: that of all rows; "finished":
            "full" for photos, where finished runs can be shown, "quick" for drawings, which have none.

    Returns:
        dict, row id -> Row.

    Raises:
        ValueError: unknown profile.

    Example:
        >>> rows("full")["a-baseline"].run.input_size
        224
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is unknown; choose one of {', '.join(PROFILES)}")
    if baselines not in (None, "finished", *PROFILES):
        raise ValueError(f"baselines is {baselines!r}; choose None, finished or one of {', '.join(PROFILES)}")
    if baselines == "finished":
        baselines = "quick" if stand_in else "full"
    quick = (baselines or profile) == "quick"
    seventeen, ten = ("sketches", "sketches") if stand_in else ("clothing-17", "clothing-10")
    leaks = () if stand_in else ("sender",)  # the official validation part shares senders with train
    if quick:
        # Nothing is balanced here: on balanced classes, class weights would all be one and the two rows the same run.
        base = {"input_size": 32, "epochs": 4, "batch_size": 16, "balance_to": None, "learning_rate": 1e-3}
        said = "quick: input 32, 4 epochs"
        if stand_in:
            # Few drawings: small batches, for batch normalization's averages need some hundred steps to settle.
            base |= {"input_size": 48, "epochs": 10, "batch_size": 8}
            said = "quick: input 48, 10 epochs"
    else:
        # Chosen on validation (results/trials.json): at Adam's usual 1e-3 it hardly learns its training photos.
        base = {"input_size": 224, "epochs": 5, "batch_size": 16, "balance_to": None, "learning_rate": 1e-4}
        said = "as published, Adam 1e-4, 5 epochs; best checkpoint on validation"
    base |= {"model": "baseline_cnn", "mode": "scratch"}
    side = 96 if stand_in else 224
    frozen = FROZEN | {"input_size": side} | ({"epochs": 30} if stand_in else {})

    listed = [
        Row("a-baseline", "Baseline CNN", "A", seventeen, None, RunConfig(name="a-baseline", **base), 0.46, said),
        Row(
            "a-weighted", "Baseline CNN, class weights", "A", seventeen, None,
            RunConfig(name="a-weighted", class_weights=True, **base), 0.49, said,
        ),
        Row(
            "a-lite0-frozen", "EfficientNet-Lite0, frozen", "A", seventeen, None,
            RunConfig(name="a-lite0-frozen", model="efficientnet_lite0", class_weights=True, **frozen), 0.92,
            "head on frozen features, class weights; the study fine-tuned EfficientNetB0",
        ),
        Row(
            "b-mobilenet-frozen", "MobileNetV2, frozen", "B", ten, None,
            RunConfig(name="b-mobilenet-frozen", model="mobilenet_v2", allow_leaks=leaks, **frozen), 0.8548,
            "head on frozen features",
        ),
        Row(
            "b-lite0-frozen", "EfficientNet-Lite0, frozen", "B", ten, None,
            RunConfig(name="b-lite0-frozen", model="efficientnet_lite0", allow_leaks=leaks, **frozen), None,
            "head on frozen features",
        ),
    ]  # fmt: skip
    if profile == "full" and not stand_in:
        listed += [
            # Study B draws a new flip and rotation of each photo in every epoch: 200 passes through the backbone. Here
            # nine are drawn once a photo, and an epoch takes one of them or the plain photo: ten passes.
            Row(
                "b-mobilenet-published", "MobileNetV2, frozen, study B's recipe", "B", ten, None,
                RunConfig(
                    name="b-mobilenet-published", model="mobilenet_v2", mode="frozen", epochs=200, batch_size=32,
                    learning_rate=1e-4, dropout=0.2, augment="study_b", views=9, allow_leaks=leaks,
                ), 0.8548,
                "as published: Adam 1e-4, 200 epochs, best checkpoint, flips and rotations (nine drawn once a photo)",
            ),
            Row(
                "a-b0-frozen", "EfficientNetB0, frozen", "A", seventeen, None,
                RunConfig(name="a-b0-frozen", model="efficientnet_b0", class_weights=True, **frozen), 0.92,
                "head on frozen features, class weights",
            ),
            Row(
                "b-b0-frozen", "EfficientNetB0, frozen", "B", ten, None,
                RunConfig(name="b-b0-frozen", model="efficientnet_b0", allow_leaks=leaks, **frozen), None,
                "head on frozen features",
            ),
        ]  # fmt: skip
    if not stand_in:
        # The same in both profiles: quick uses them where they are finished (they ship in models/), full trains them.
        fine = FINE_TUNE | {"model": "efficientnet_lite0"}
        mobile = FINE_TUNE | {"model": "mobilenet_v2"}
        listed += [
            Row(
                "b-mobilenet-fine", "MobileNetV2, fine-tuned", "B", ten, None,
                RunConfig(name="b-mobilenet-fine", epochs=6, allow_leaks=leaks, **mobile), None, "all layers, 6 epochs",
            ),
            Row(
                "b-lite0-fine", "EfficientNet-Lite0, fine-tuned", "B", ten, None,
                RunConfig(name="b-lite0-fine", epochs=8, allow_leaks=leaks, **fine), None, "all layers, 8 epochs",
            ),
            Row(
                "a-lite0-fine", "EfficientNet-Lite0, fine-tuned", "A", seventeen, None,
                RunConfig(name="a-lite0-fine", epochs=6, class_weights=True, **fine), 0.92,
                "all layers, 6 epochs, class weights",
            ),
            Row(
                "a-b0-fine", "EfficientNetB0, fine-tuned", "A", seventeen, None,
                RunConfig(
                    name="a-b0-fine", epochs=6, class_weights=True, **FINE_TUNE | {"model": "efficientnet_b0"}
                ), 0.92, "all layers, 6 epochs, class weights",
            ),
            # Study A's 500 a class, after the split. Three passes over 8,500 are a few more steps than six over 3,374.
            Row(
                "a-lite0-frozen-balanced", "EfficientNet-Lite0, frozen, 500 a class", "A", seventeen, None,
                RunConfig(name="a-lite0-frozen-balanced", model="efficientnet_lite0", balance_to=500, **frozen), 0.92,
                "head on frozen features, train balanced to 500 a class",
            ),
            Row(
                "a-lite0-fine-balanced", "EfficientNet-Lite0, fine-tuned, 500 a class", "A", seventeen, None,
                RunConfig(name="a-lite0-fine-balanced", epochs=3, balance_to=500, **fine), 0.92,
                "all layers, 3 epochs, train balanced to 500 a class",
            ),
        ]  # fmt: skip
    return {row.id: row for row in listed}


def at_random(row):
    """The same row on study A's kind of split: blind to senders, so that its test photos are of people in train.

    Example:
        >>> at_random(rows("full")["a-baseline"]).split
        'random'
    """
    leaks = ("file", "sender")
    return dataclasses.replace(row, split="random", run=dataclasses.replace(row.run, allow_leaks=leaks))


def trials():
    """Recipes that were tried, by study: what the rows do was chosen among them on validation, never on test.

    B: fine-tuning EfficientNet-Lite0 on ten classes, each one change from another; the first is ``b-lite0-fine``.
    A: the baselines' learning rate; the study does not print its own.

    Returns:
        dict, trial id -> RunConfig.

    Example:
        >>> list(trials())[0]
        'b-lite0-fine'
    """
    common = FINE_TUNE | {"model": "efficientnet_lite0", "allow_leaks": ("sender",)}
    listed = {"b-lite0-fine": common | {"epochs": 8}}
    ten = {name: RunConfig(name=name, **choices) for name, choices in listed.items()}
    baselines = {name: rows("full")[name].run for name in ("a-baseline", "a-weighted")}
    faster = {f"{name}-1e-3": dataclasses.replace(run, learning_rate=1e-3) for name, run in baselines.items()}
    return ten | baselines | faster


def fold_recipe():
    """What sender-grouped cross-validation of fine-tuning trains in each fold: the chosen recipe, shortened."""
    shortened = FINE_TUNE | {"epochs": 4, "warmup_epochs": 0.5}
    return RunConfig(name="b-lite0-folds", model="efficientnet_lite0", **shortened)


def deployment_scale(profile="quick", stand_in=False):
    """How much work each section of notebook 3 does.

    Args:
        profile: "quick" or "full".
        stand_in: drawn garments: the smallest sizes that still run every section.

    Returns:
        dict of numbers of photos, rounds and epochs; 0 photos means all.

    Example:
        >>> deployment_scale("full")["timing_rounds"]
        20
    """
    full = {
        "calibration_photos": 200, "calibration_counts": [1, 3, 10, 30, 100], "tool_schemes": None, "tool_photos": 40,
        "error_photos": 16, "blame_layers": 16, "mixed_counts": (0, 1, 2, 4), "qat_photos": 400, "qat_epochs": 2,
        "timing_rounds": 20, "timing_budget_s": 15, "latency_backbones": ["mobilenet_v2", "efficientnet_b0"],
        "prune_levels": [0.5, 0.8], "channel_levels": [0.25, 0.5],
        "prune_kinds": ["weights", "weights, one-shot", "channels"], "prune_photos": 0, "prune_epochs": 1,
        "prune_learning_rate": 3e-4, "prune_test_photos": 0, "loop_rounds": 2,
    }  # fmt: skip
    quick = {
        "calibration_photos": 50, "calibration_counts": [1, 10], "tool_schemes": ["int8"], "tool_photos": 60,
        "error_photos": 8, "blame_layers": 8, "mixed_counts": (0, 4), "qat_photos": 48, "qat_epochs": 1,
        "timing_rounds": 8, "timing_budget_s": 15, "latency_backbones": [],
        "prune_levels": [0.8], "channel_levels": [0.25], "prune_kinds": ["weights", "channels"], "prune_photos": 96,
        "prune_epochs": 1, "prune_learning_rate": 1e-4, "prune_test_photos": 100, "loop_rounds": 2,
    }  # fmt: skip
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is unknown; choose one of {', '.join(PROFILES)}")
    if profile == "full":
        return full
    if stand_in:
        quick |= {"calibration_photos": 20, "tool_photos": 30, "blame_layers": 4, "qat_photos": 20, "prune_photos": 48}
        quick |= {"prune_test_photos": 40, "timing_rounds": 6, "timing_budget_s": 8}
    return quick


def main(argv=None):
    """Command line: train rows in order, or list them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study", description="Train runs of the study.")
    parser.add_argument("ids", nargs="*", help="row ids; none: list them")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--data", choices=("photos", "sketches"), default="photos", help="sketches: drawn garments")
    parser.add_argument("--folds", type=int, default=0, help="judge the recipes by sender-grouped folds instead")
    parser.add_argument("--seeds", type=int, default=0, help="train with so many seeds and record what each gives")
    parser.add_argument("--splits", action="store_true", help="train on a random split too and record both verdicts")
    parser.add_argument("--keep", action="store_true", help="ship what finished runs predicted, without their weights")
    parser.add_argument("--record", action="store_true", help="write what the finished trials gave to results/")
    options = parser.parse_args(argv)
    known = rows(options.profile, stand_in=options.data == "sketches")
    records = [name for name in ("folds", "seeds", "splits", "keep", "record") if getattr(options, name)]
    if options.data == "sketches" and records:
        parser.error(f"--data sketches does not go with --{records[0]}: records are of photos; leave one of them out")
    for name, config in trials().items() if options.data == "photos" else ():
        study, photos = ("A", "clothing-17") if name.startswith("a-") else ("B", "clothing-10")
        known.setdefault(name, Row(name, name, study, photos, None, config, None, "a recipe that was tried"))
    if options.record:
        from study import tables as study_tables
        from utils import datasets

        print(study_tables.record_trials({name: datasets.load(name) for name in ("clothing-10", "clothing-17")}, known))
        return 0
    folds = fold_recipe()
    if options.data == "photos":
        known[folds.name] = Row(folds.name, folds.name, "B", "clothing-10", None, folds, None, "for --folds")
    unknown = [name for name in options.ids if name not in known]
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(known)}")
    if not options.ids:
        for row in known.values():
            print(f"{row.id:22} study {row.study}  {row.title:34} {row.note}")
        return 0
    # TensorFlow takes seconds to import; the list above does without.
    from study import folds as fold_runs
    from study import tables as study_tables
    from utils import datasets, training

    for name in options.ids:
        row = known[name]
        dataset = datasets.load(row.dataset, split=row.split)
        if options.folds:
            for judged in fold_runs.cross_validate(row.run, dataset, k=options.folds, verbose=2).values():
                print(judged, flush=True)
            continue
        if options.keep:
            run = training.load(row.run.run_id_for(dataset.fingerprint))
            print(f"{name}: {training.export_record(run, dataset).name}", flush=True)
            continue
        if options.splits:
            for judged in (row, at_random(row)):
                dataset = datasets.load(judged.dataset, split=judged.split)
                run = training.train(judged.run, dataset, verbose=2)
                print(f"{run.run_id}: {dataset.split}, {study_tables.record_split(row, dataset, run).name}", flush=True)
            continue
        if options.seeds:
            configs = [dataclasses.replace(row.run, seed=seed) for seed in range(options.seeds)]
            runs = [training.train(config, dataset, verbose=2) for config in configs]
            print(f"{name}: {options.seeds} seeds in {study_tables.record_seeds(row, dataset, runs).name}", flush=True)
            continue
        run = training.train(row.run, dataset, verbose=2)
        print(f"{name}: {run.run_id}, best epoch {run.best_epoch}, {run.duration_s / 60:.0f} minutes", flush=True)
    return 0
