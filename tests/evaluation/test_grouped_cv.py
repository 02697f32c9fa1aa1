"""Cross-validation by sender: nobody stands on two sides, and a model that remembers people is found out."""

import json

import numpy as np
import pandas as pd
import pytest

from study import records
from utils import evaluation

CLASSES = ("hat", "shirt")


def people(senders=12, each=6, seed=0):
    """Photos whose only trace of the label is who took them: every sender photographs one class."""
    sender = np.repeat(np.arange(senders), each)
    label = np.array(CLASSES)[sender % 2]
    frame = pd.DataFrame({"label": label, "sender": sender.astype(str), "id": [str(i) for i in range(len(sender))]})
    return frame.iloc[np.random.default_rng(seed).permutation(len(frame))]


def rememberer(train, test):
    """Knows the label of each sender whom it has seen, and guesses "hat" for strangers."""
    known = train.groupby("sender")["label"].first()
    return np.array([[0.9, 0.1] if known.get(sender, "hat") == "hat" else [0.1, 0.9] for sender in test["sender"]])


def test_memory_of_people_is_worth_nothing_on_strangers_and_the_interval_is_over_senders():
    frame = people()
    random = evaluation.grouped_cv(rememberer, frame, CLASSES, protocol="random")
    grouped = evaluation.grouped_cv(rememberer, frame, CLASSES)
    assert (random.accuracy, grouped.accuracy) == (1.0, 0.5)
    assert (random.folds["shared_senders"] > 0).all() and (grouped.folds["shared_senders"] == 0).all()
    low, high = evaluation.sender_interval(grouped.evaluation.correct, frame["sender"])
    assert (grouped.accuracy_low, grouped.accuracy_high) == (low, high)
    # Six people all right, six all wrong: far wider than 72 independent photos would say.
    assert high - low > 1.3 * (grouped.evaluation.accuracy_high - grouped.evaluation.accuracy_low)
    alone = evaluation.grouped_cv(rememberer, frame.assign(sender="only"), CLASSES, protocol="random")
    assert alone.accuracy_low == alone.evaluation.accuracy_low
    assert "over photos)" in repr(alone) and "over photographers)" in repr(grouped)


def test_every_photo_is_predicted_once_by_a_model_that_has_not_seen_it_in_the_order_of_the_frame():
    frame, seen = people(), []
    truth = np.where((frame["label"] == "hat").to_numpy()[:, None], [[0.9, 0.1]], [[0.2, 0.8]])
    table = pd.DataFrame(truth, index=frame.index)

    def look_up(train, test):
        assert not set(train["sender"]) & set(test["sender"]) and len(train) + len(test) == len(frame)
        seen.extend(test["id"])
        return table.loc[test.index].to_numpy()

    judged = evaluation.grouped_cv(look_up, frame, CLASSES, k=4, name="known")
    assert sorted(seen) == sorted(frame["id"]) and judged.folds["n"].sum() == judged.n == len(frame)
    assert set(judged.fold) == {1, 2, 3, 4} and judged.accuracy == 1.0
    assert np.array_equal(judged.evaluation.probabilities, truth)
    assert "known, 4 folds grouped by photographer" in repr(judged) and "<table" in judged._repr_html_()
    for protocol in ("grouped", "random"):
        first, again, other = (evaluation.grouped_cv(rememberer, people(20), CLASSES, seed=seed, protocol=protocol).fold
                               for seed in (1, 1, 2))  # fmt: skip
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_class_of_one_sender_is_named_where_it_is_missing():
    lone = pd.DataFrame({"label": "shoes", "sender": "lone", "id": ["x", "y"]})
    frame = pd.concat([people(), lone], ignore_index=True)
    judged = evaluation.grouped_cv(lambda train, test: np.full((len(test), 3), 1 / 3), frame, (*CLASSES, "shoes"))
    ((fold, _, label),) = [entry for entry in judged.absent if entry[1] == "train"]
    assert label == "shoes" and f"fold {fold}: no photo of shoes in train" in repr(judged)
    flat = records.plain(judged.to_dict())
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat


def test_photos_without_a_photographer_stay_in_one_fold():
    frame = people()
    frame["sender"] = frame["sender"].where(np.arange(len(frame)) % 9 > 1, None)
    judged = evaluation.grouped_cv(rememberer, frame, CLASSES, k=3)
    assert len(set(judged.fold[frame["sender"].isna()])) == 1 and (judged.folds["shared_senders"] == 0).all()


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        (people(), {"k": 1}, "k must be an integer from 2 to 72, got 1"),
        (people(), {"k": 2.5}, "k must be an integer from 2 to 72, got 2.5"),
        (people(), {"k": 13}, "13 folds need 13 senders or more, got 12"),
        (people(), {"k": 80, "protocol": "random"}, "k must be an integer from 2 to 72, got 80"),
        (people(), {"protocol": "lucky"}, "protocol must be grouped or random, got 'lucky'"),
        (people().drop(columns="sender"), {}, "a column 'sender'"),
    ],
)
def test_impossible_folds_are_refused(frame, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.grouped_cv(rememberer, frame, CLASSES, **arguments)
    with pytest.raises(ValueError, match="of fold 1 contain NaN"):
        evaluation.grouped_cv(lambda train, test: np.full((len(test), 2), np.nan), people(), CLASSES)
