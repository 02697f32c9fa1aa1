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
    rng = np.random.default_rng(seed)
    sender = np.repeat(np.arange(senders), each)
    label = np.array(CLASSES)[sender % 2]
    frame = pd.DataFrame({"label": label, "sender": sender.astype(str), "id": [str(i) for i in range(len(sender))]})
    return frame.iloc[rng.permutation(len(frame))]


def rememberer(train, test):
    """Knows the label of each sender whom it has seen, and guesses "hat" for strangers."""
    known = train.groupby("sender")["label"].first()
    return np.array([[0.9, 0.1] if known.get(sender, "hat") == "hat" else [0.1, 0.9] for sender in test["sender"]])


def test_memory_of_people_is_worth_nothing_on_strangers():
    frame = people()
    random = evaluation.grouped_cv(rememberer, frame, CLASSES, protocol="random")
    grouped = evaluation.grouped_cv(rememberer, frame, CLASSES)
    assert random.accuracy == 1.0
    assert grouped.accuracy == 0.5
    assert (random.folds["shared_senders"] > 0).all()
    assert (grouped.folds["shared_senders"] == 0).all()


def test_every_photo_is_predicted_once_by_a_model_that_has_not_seen_it():
    frame = people()
    seen = []

    def check(train, test):
        assert not set(train["sender"]) & set(test["sender"])
        assert len(train) + len(test) == len(frame)
        seen.extend(test["id"])
        return np.full((len(test), 2), 0.5)

    judged = evaluation.grouped_cv(check, frame, CLASSES, k=4, name="coin")
    assert sorted(seen) == sorted(frame["id"])
    assert judged.folds["n"].sum() == judged.n == len(frame)
    assert set(judged.fold) == {1, 2, 3, 4}
    assert "coin, 4 folds grouped by photographer" in repr(judged)
    assert "<table" in judged._repr_html_()


def test_probabilities_come_back_in_the_order_of_the_frame():
    frame = people()
    truth = np.where((frame["label"] == "hat").to_numpy()[:, None], [[0.9, 0.1]], [[0.2, 0.8]])
    table = pd.DataFrame(truth, index=frame.index)
    judged = evaluation.grouped_cv(lambda train, test: table.loc[test.index].to_numpy(), frame, CLASSES)
    assert np.array_equal(judged.evaluation.probabilities, truth)
    assert judged.accuracy == 1.0


def test_the_interval_is_over_senders():
    frame = people()
    judged = evaluation.grouped_cv(rememberer, frame, CLASSES)
    low, high = evaluation.sender_interval(judged.evaluation.correct, frame["sender"])
    assert (judged.accuracy_low, judged.accuracy_high) == (low, high)
    # Six people all right, six all wrong: far wider than 72 independent photos would say.
    assert high - low > 1.3 * (judged.evaluation.accuracy_high - judged.evaluation.accuracy_low)


def test_an_interval_with_one_photographer_is_said_to_be_over_photos():
    judged = evaluation.grouped_cv(rememberer, people().assign(sender="only"), CLASSES, protocol="random")
    assert judged.accuracy_low == judged.evaluation.accuracy_low
    assert "over photos)" in repr(judged)
    assert "over photographers)" in repr(evaluation.grouped_cv(rememberer, people(), CLASSES))


def test_seeds_decide_the_folds():
    frame = people(20)
    first, again, other = (evaluation.grouped_cv(rememberer, frame, CLASSES, seed=s).fold for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_one_sender_is_named_where_it_is_missing():
    frame = pd.concat(
        [people(), pd.DataFrame({"label": "shoes", "sender": "lone", "id": ["x", "y"]})], ignore_index=True
    )
    judged = evaluation.grouped_cv(
        lambda train, test: np.full((len(test), 3), 1 / 3), frame, (*CLASSES, "shoes"), name="three"
    )
    in_train = [entry for entry in judged.absent if entry[1] == "train"]
    assert len(in_train) == 1
    assert in_train[0][2] == "shoes"
    assert f"fold {in_train[0][0]}: no photo of shoes in train" in repr(judged)
    flat = records.plain(judged.to_dict())
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 1}, "k must lie between 2 and the number of photos"),
        ({"k": 13}, "13 folds need 13 senders or more, got 12"),
        ({"k": 80, "protocol": "random"}, "number of photos .72., got 80"),
        ({"protocol": "lucky"}, "protocol must be grouped or random, got 'lucky'"),
    ],
)
def test_impossible_folds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.grouped_cv(rememberer, people(), CLASSES, **arguments)


def test_bad_predictions_name_their_fold():
    def bad(train, test):
        return np.full((len(test), 2), np.nan)

    with pytest.raises(ValueError, match="of fold 1 contain NaN"):
        evaluation.grouped_cv(bad, people(), CLASSES)
    with pytest.raises(ValueError, match="a column 'sender'"):
        evaluation.grouped_cv(rememberer, people().drop(columns="sender"), CLASSES)
