"""The runs of the study: which model is trained on which photos, with which choices.

Notebooks and commands take their :class:`RunConfig` objects from here, so that a notebook finds finished what a command
has trained in the background. Rows are named by study and model: ``a-baseline``, ``b-lite0-fine``.
"""

import dataclasses

from utils.training import RunConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the study's tables: a run, the photos it belongs to, and the published number that it answers."""

    id: str  # also the name of the run
    title: str
    study: str  # "A" (17 classes) or "B" (10 classes)
    dataset: str  # name for datasets.load
    run: RunConfig
    published: float | None = None  # accuracy, 0..1; None where the study has no such row
    note: str = ""  # conditions that belong beside the number
    split: str | None = None  # for datasets.load; None is the dataset's own honest one
    tie: tuple = ("sha256",)  # columns whose equal values tie photographers together in folds


# Fine-tuning for small data on CPUs: a head from a linear probe, batch normalization frozen, a low peak rate with
# warm-up and cosine, light augmentation.
FINE_TUNE = {
    "mode": "fine_tune", "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01,
    "schedule": "cosine", "warmup_epochs": 1, "label_smoothing": 0.1, "dropout": 0.3, "augment": "light",
}  # fmt: skip
FROZEN = {"mode": "frozen", "epochs": 60, "learning_rate": 1e-3, "dropout": 0.2, "patience": 15, "monitor": "val_loss"}
SCRATCH = {"model": "baseline_cnn", "mode": "scratch", "batch_size": 16}
LEAKS = ("sender",)  # the official validation set of ten classes shares senders with its training set
BASELINE_NOTE = (
    "Adam 1e-4, photos as they are, until four epochs bring validation nothing, at most 30; "
    "best checkpoint on validation"
)
TITLES = {
    "baseline_cnn": "Baseline CNN", "mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNetB0",
    "efficientnet_lite0": "EfficientNet-Lite0",
}  # fmt: skip


def _row(name, model, what, note, published=None, **choices):
    title = TITLES[model] + (f", {what}" if what else "")
    study, dataset = ("A", "clothing-17") if name.startswith("a-") else ("B", "clothing-10")
    if study == "B":
        choices["allow_leaks"] = LEAKS
    return Row(name, title, study, dataset, RunConfig(name=name, model=model, **choices), published, note)


def rows(stand_in=False):
    """The rows of the study by id, in the order in which a reader meets them; `stand_in`: four small ones on drawings.

    Example:
        >>> rows()["a-baseline"].run.input_size
        224
    """
    return {row.id: row for row in (_drawn() if stand_in else _photos())}


def _drawn():
    # Few drawings: small batches, for batch normalization's averages need some hundred steps to settle.
    base = {"input_size": 48, "epochs": 6, "batch_size": 8, "learning_rate": 1e-3}
    said, frozen = "drawings: input 48, 6 epochs", FROZEN | {"input_size": 96, "epochs": 30}
    listed = [
        _row("a-baseline", what="", note=said, published=0.46, **SCRATCH | base),
        _row("a-weighted", what="class weights", note=said, published=0.49, class_weights=True, **SCRATCH | base),
        _row("a-lite0-frozen", "efficientnet_lite0", "frozen", said, class_weights=True, **frozen),
        # MobileNetV2's weights need a network connection, these come with a Python package
        _row("b-lite0-frozen", "efficientnet_lite0", "frozen", said, **frozen),
    ]
    plain = [dataclasses.replace(row.run, allow_leaks=()) for row in listed]
    return [dataclasses.replace(row, dataset="sketches", run=run) for row, run in zip(listed, plain, strict=True)]


def _photos():
    # The rate was chosen on validation (results/trials.json): at 1e-3 the baseline hardly learns its training photos.
    base = SCRATCH | {"epochs": 30, "learning_rate": 1e-4, "patience": 4}
    head, weighted = "head on frozen features", "head on frozen features, class weights"
    return [
        _row("a-baseline", what="", note=BASELINE_NOTE, published=0.46, **base),
        _row("a-weighted", what="class weights", note=BASELINE_NOTE, published=0.49, class_weights=True, **base),
        _row("a-lite0-frozen", "efficientnet_lite0", "frozen", f"{weighted}; the study fine-tuned EfficientNetB0",
             class_weights=True, **FROZEN),
        _row("b-mobilenet-frozen", "mobilenet_v2", "frozen", head, 0.8548, **FROZEN),
        _row("b-lite0-frozen", "efficientnet_lite0", "frozen", head, **FROZEN),
        # Study B draws a new flip and rotation of each photo in every epoch: 200 passes through the backbone. Here nine
        # are drawn once per photo, and an epoch takes one of them or the plain photo: ten passes.
        _row("b-mobilenet-published", "mobilenet_v2", "frozen, study B's recipe",
             "as published: Adam 1e-4, 200 epochs, best checkpoint; ours: nine variants of a photo, dropout 0.2",
             0.8548, mode="frozen", epochs=200, batch_size=32, learning_rate=1e-4, dropout=0.2, augment="study_b",
             views=9),
        _row("a-b0-frozen", "efficientnet_b0", "frozen", weighted, class_weights=True, **FROZEN),
        _row("b-b0-frozen", "efficientnet_b0", "frozen", head, **FROZEN),
        _row("b-mobilenet-fine", "mobilenet_v2", "fine-tuned", "all layers, 6 epochs", epochs=6, **FINE_TUNE),
        _row("b-lite0-fine", "efficientnet_lite0", "fine-tuned", "all layers, 8 epochs", epochs=8, **FINE_TUNE),
        _row("a-lite0-fine", "efficientnet_lite0", "fine-tuned",
             "all layers, 6 epochs, class weights, gradients at most 1 long, of three seeds the best on validation",
             epochs=6, class_weights=True, clip_norm=1.0, seed=2, **FINE_TUNE),
        _row("a-b0-fine", "efficientnet_b0", "fine-tuned",
             "all layers, 6 epochs, class weights, gradients at most 1 long", 0.92,
             epochs=6, class_weights=True, clip_norm=1.0, **FINE_TUNE),
        # Study A's 500 per class, after the split. Three passes over 8,500 are a few more steps than six over 3,374.
        _row("a-lite0-frozen-balanced", "efficientnet_lite0", "frozen, 500 per class",
             "head on frozen features, balanced to 500 per class", balance_to=500, **FROZEN),
        _row("a-lite0-fine-balanced", "efficientnet_lite0", "fine-tuned, 500 per class",
             "all layers, 3 epochs, balanced to 500 per class", epochs=3, balance_to=500, **FINE_TUNE),
    ]  # fmt: skip


def at_random(row):
    """The same row on study A's kind of split: blind to senders, so that its test photos are of people in training."""
    run = dataclasses.replace(row.run, allow_leaks=("file", "sender"))
    return dataclasses.replace(row, split="random", run=run)


def trials():
    """Recipes among which the rows were chosen, on validation and never on test; the first is ``b-lite0-fine``.

    Others that were tried stand in results/trials.json alone: their options are gone from RunConfig.
    """
    known = rows()
    listed = [known[name] for name in ("b-lite0-fine", "a-lite0-fine", "a-lite0-fine-balanced", "a-b0-fine")]
    for row in (known["a-baseline"], known["a-weighted"]):
        listed.append(row)
        for rate in ("1e-4", "1e-3"):
            # the name of the run stays that of the row: the finished runs are found by it
            run = dataclasses.replace(row.run, epochs=5, patience=None, learning_rate=float(rate))
            listed.append(dataclasses.replace(row, id=f"{row.id}-{rate}", run=run))
    b0 = known["a-b0-fine"]
    # trained and published before gradients were kept short
    listed.append(dataclasses.replace(b0, id="try-a-b0-unclipped", run=dataclasses.replace(b0.run, clip_norm=None)))
    # study B names no dropout
    published = known["b-mobilenet-published"]
    plain = dataclasses.replace(published.run, name="try-b-published-no-dropout", dropout=0.0)
    listed += [published, dataclasses.replace(published, id=plain.name, run=plain)]
    wide = known["a-lite0-fine"]
    for name, choices in {
        "try-a-clipped": {"name": "a-lite0-fine"},  # the names of runs stay
        "try-a-unclipped": {"name": "a-lite0-fine", "clip_norm": None},  # shipped before
        "try-a-stretched": {"learning_rate": 1e-4, "warmup_epochs": 0.5, "augment": "stretched", "clip_norm": None},
        "try-a-clipped-plain": {"class_weights": False},
        "try-a-gentle": {"warmup_epochs": 3},  # the rate rises to 1e-4 in the first epoch
        "try-a-longer": {"epochs": 15},
    }.items():
        listed.append(
            dataclasses.replace(wide, id=name, run=dataclasses.replace(wide.run, **{"name": name, "seed": 0} | choices))
        )
    return {row.id: row for row in listed}


def folds():
    """Recipes of sender-grouped cross-validation by name, fixed beforehand; the last epoch is kept.

    Ten classes: the rows' recipes, shortened. 17 classes: the row's.

    Example:
        >>> {name: row.run.epochs for name, row in folds().items()}
        {'b-lite0-folds': 4, 'b-mobilenet-folds': 4, 'a-lite0-folds': 6}
    """
    ten, short = {"epochs": 4, "warmup_epochs": 0.5}, "fine-tuned, folds"
    listed = [
        _row("b-lite0-folds", "efficientnet_lite0", short, "4 epochs", **FINE_TUNE | ten),
        _row("b-mobilenet-folds", "mobilenet_v2", short, "4 epochs", **FINE_TUNE | ten),
        _row("a-lite0-folds", "efficientnet_lite0", short, "6 epochs, class weights, gradients at most 1 long",
             epochs=6, class_weights=True, clip_norm=1.0, **FINE_TUNE),
    ]  # fmt: skip
    twins = dataclasses.replace(listed[-1], tie=("sha256", "twin"))
    return {row.id: row for row in [*listed[:-1], twins]}


def longer_folds():
    """The ten-class folds with the best of :func:`candidates`; two were trained, and did no better than four epochs."""
    row = folds()["b-lite0-folds"]
    run = dataclasses.replace(row.run, epochs=6, warmup_epochs=1, clip_norm=1.0)
    return dataclasses.replace(row, id="b-lite0-folds-longer", run=run, note="6 epochs, gradients at most 1 long")


def candidates():
    """Recipes of ten classes among which the folds' was chosen, on an assignment of photographers of their own.

    The first is the one that the others are compared with.
    """
    short = FINE_TUNE | {"epochs": 6, "clip_norm": 1.0}
    listed = [
        _row("try-b-clipped", "efficientnet_lite0", "fine-tuned", "6 epochs, gradients at most 1 long", **short),
        _row("try-b-stretched", "efficientnet_lite0", "fine-tuned",
             "the same, width against height changed up to 1.8 times", **short | {"augment": "stretched"}),
    ]  # fmt: skip
    return {row.id: dataclasses.replace(row, tie=("sha256", "twin")) for row in listed}


def sizes(stand_in=False):
    """How much work each experiment of the notebooks does; 0 photos: all; on drawings the least that runs all of it."""
    full = {
        "balance_to": 500, "folds": 5, "calibration_photos": 200, "calibration_counts": [1, 10],
        "blame_layers": 8, "mixed_counts": (0, 1, 4), "qat_photos": 400, "qat_epochs": 2,
        "timing_rounds": 20, "timing_budget_s": 15,
        "latency_backbones": ["mobilenet_v2", "efficientnet_b0"],
        "prune_levels": [0.5, 0.8], "channel_levels": [0.25, 0.5],
        "prune_kinds": ["weights", "weights, one-shot", "channels"], "prune_photos": 0, "prune_epochs": 1,
        "prune_learning_rate": 3e-4, "prune_test_photos": 0, "loop_rounds": 2,
    }  # fmt: skip
    small = {
        "balance_to": 60, "folds": 3, "calibration_photos": 20, "blame_layers": 2,
        "mixed_counts": (0, 2), "qat_photos": 20, "qat_epochs": 1,
        "timing_rounds": 5, "timing_budget_s": 4, "loop_rounds": 1, "latency_backbones": [], "prune_levels": [0.8],
        "channel_levels": [0.25], "prune_kinds": ["weights", "channels"], "prune_photos": 48,
        "prune_learning_rate": 1e-4, "prune_test_photos": 40,
    }  # fmt: skip
    return full | (small if stand_in else {})
