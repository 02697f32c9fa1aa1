"""Experiments on frozen features: what a protocol does to a number, with the model held still."""

import pandas as pd

from utils import evaluation, models
from utils.datasets import splits
from utils.training import features

STAND_IN_BACKBONE = "efficientnet_lite0"  # its weights come with a package, so that it is always at hand


def backbone_at_hand(backbone):
    """`backbone` where its pretrained weights can be had, else EfficientNet-Lite0, and a printed sentence says so."""
    try:
        models.feature_extractor(backbone, 96)
    except models.WeightsUnavailable as missing:
        print(f"{models.BACKBONES[STAND_IN_BACKBONE].title} takes the place of {backbone}: {missing}")
        return STAND_IN_BACKBONE
    return backbone


def probe_recipe(backbone, classes, input_size=224):
    """A recipe for ``evaluation.grouped_cv``: a linear probe of fixed strength on frozen features."""

    def fit_predict(train, test):
        probe = features.linear_probe(
            features.extract(backbone, train, input_size), train["label"], classes=list(classes)
        )
        return probe.predict(features.extract(backbone, test, input_size))

    return fit_predict


def random_against_grouped(dataset, backbone, input_size=224, k=5, seed=0):
    """The same probe judged by k-fold cross-validation of all photos twice: "random" and "grouped" -> GroupedCV."""
    recipe = probe_recipe(backbone_at_hand(backbone), dataset.classes, input_size)
    return {
        protocol: evaluation.grouped_cv(
            recipe, dataset.frame, dataset.classes, k, seed, f"{dataset.name}, {protocol}", protocol
        )
        for protocol in ("random", "grouped")
    }


def balancing_order(dataset, backbone, input_size=224, at_most=500, seed=0):
    """What balancing *before* splitting does to the number: three protocols, one probe, one set of photos.

    1. split by sender, then balance the training part; 2. split at random, then balance the training part;
    3. balance everything by transformed copies, then split at random (copies of a training photo are tested on).

    Returns:
        DataFrame, one row per protocol: `protocol`, `n`, `accuracy`, `accuracy_low`, `accuracy_high` (Wilson, 95%),
        `macro_recall`, `recall_low`, `recall_high` (over photographers, 95%), `shared_photos` (test photos of which a
        copy was trained on), `shared_senders` (senders of test photos who also have photos in train).
    """
    backbone = backbone_at_hand(backbone)
    at_random = dataset.frame.assign(split=splits.random_split(dataset.frame, seed=seed))
    protocols = {
        "split by sender, then balance": splits.balance(dataset.frame, at_most, seed),
        "split at random, then balance": splits.balance(at_random, at_most, seed),
        "balance, then split at random": splits.balance(dataset.frame, at_most, seed, before_split=True),
    }
    rows = []
    for name, frame in protocols.items():
        parts = {part: frame[frame["split"] == part].reset_index(drop=True) for part in splits.PARTS}
        inputs = {part: features.extract(backbone, rows_, input_size) for part, rows_ in parts.items()}
        probe = features.linear_probe(
            inputs["train"], parts["train"]["label"], inputs["validation"], parts["validation"]["label"],
            classes=list(dataset.classes), strengths=(3e-4, 3e-3, 3e-2),
        )  # fmt: skip
        judged = evaluation.evaluate(probe.predict(inputs["test"]), parts["test"], dataset.classes, name=name)
        trained = {column: set(parts["train"][column]) for column in ("id", "sender")}
        numbers = ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_recall", "recall_low", "recall_high")
        rows.append(
            {"protocol": name}
            | {number: getattr(judged, number) for number in numbers}
            | {"shared_photos": int(parts["test"]["id"].isin(trained["id"]).sum())}
            | {"shared_senders": len(set(parts["test"]["sender"]) & trained["sender"])}
        )
    return pd.DataFrame(rows)
