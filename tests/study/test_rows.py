"""Rows of a record: what is compared with what."""

import numpy as np
import pandas as pd

from study import rows
from utils import evaluation

PHOTOS = pd.DataFrame({"label": ["hat", "shirt", "hat", "shirt"], "sender": list("aabb"), "id": list("1234")})


def judged(name, right):
    """An Evaluation of four photos of which the first `right` are answered correctly."""
    labels = PHOTOS["label"].map(["hat", "shirt"].index).to_numpy()
    labels = np.where(np.arange(4) < right, labels, 1 - labels)
    return evaluation.evaluate(np.eye(2)[labels], PHOTOS, ["hat", "shirt"], name=name)


def test_each_model_is_compared_with_the_next_better_one_on_the_same_photos():
    verdicts = {name: judged(name, right) for name, right in (("best", 3), ("worst", 1), ("middle", 2))}
    lines = rows.neighbours(verdicts, {("clothing-10", "mobilenet_v2"): None}, {})
    assert [(line["name_a"], line["name_b"], line["difference"]) for line in lines] == [
        ("worst", "middle", 0.25),  # one photo of four
        ("middle", "best", 0.25),
    ]
    assert {line["photos"] for line in lines} == {"2 classes, test set"}
