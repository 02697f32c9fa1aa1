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


def random_against_grouped(dataset, backbone, input_size=224, k=5, seed=0):
    """A linear probe judged by k-fold cross-validation of all photos twice: "random" and "grouped" -> GroupedCV."""
    backbone, classes = backbone_at_hand(backbone), dataset.classes

    def fit_predict(train, test):
        probe = features.linear_probe(features.extract(backbone, train, input_size), train["label"], classes=classes)
        return probe.predict(features.extract(backbone, test, input_size))

    return {
        kind: evaluation.grouped_cv(fit_predict, dataset.frame, classes, k, seed, f"{dataset.name}, {kind}", kind)
        for kind in ("random", "grouped")
    }


def balancing_order(dataset, backbone, input_size=224, at_most=500, seed=0):
    """What balancing *before* splitting does to the number: three protocols, one probe, one set of photos.

    The third tests on copies of training photos. In the DataFrame, one row per protocol, `accuracy_low` and
    `accuracy_high` are Wilson's (95%), `recall_low` and `recall_high` are over photographers (95%), `shared_photos` are
    test photos of which a copy was trained on, and `shared_senders` senders of test photos who also have photos in
    train.
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
            classes=dataset.classes, strengths=(3e-4, 3e-3, 3e-2),
        )  # fmt: skip
        judged = evaluation.evaluate(probe.predict(inputs["test"]), parts["test"], dataset.classes, name=name)
        trained = {column: set(parts["train"][column]) for column in ("id", "sender")}
        numbers = ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_recall", "recall_low", "recall_high")
        rows.append({
            "protocol": name, **{number: getattr(judged, number) for number in numbers},
            "shared_photos": int(parts["test"]["id"].isin(trained["id"]).sum()),
            "shared_senders": len(set(parts["test"]["sender"]) & trained["sender"]),
        })  # fmt: skip
    return pd.DataFrame(rows)
