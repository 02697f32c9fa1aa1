"""Judging against closed forms, hand-counted cases and independent formulas."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from study import records
from utils import evaluation
from utils.evaluation import sender_interval, wilson

CLASSES = ("hat", "shirt", "shoes")


def photos(labels, senders=None):
    frame = pd.DataFrame({"label": labels, "id": [f"photo{i}" for i in range(len(labels))]})
    return frame if senders is None else frame.assign(sender=senders)


def sure(predicted, classes=CLASSES, top=0.8):
    """Probabilities that name `predicted`, the rest shared evenly."""
    rest = (1 - top) / (len(classes) - 1)
    return np.array([[top if label == name else rest for name in classes] for label in predicted])


HAND = photos(["hat"] * 4 + ["shirt"] * 3 + ["shoes"] * 3, list("aaabbbbccc"))
HAND_PREDICTED = ["hat", "hat", "hat", "shirt", "shirt", "shirt", "hat", "shoes", "shirt", "shirt"]


@pytest.fixture
def hand():
    return evaluation.evaluate(sure(HAND_PREDICTED), HAND, CLASSES, name="by hand")


def test_counts_precision_recall_and_f1_as_counted_by_hand(hand):
    assert hand.confusion.tolist() == [[3, 1, 0], [1, 2, 0], [0, 2, 1]]
    assert (hand.n, hand.accuracy) == (10, 0.6)
    table = hand.per_class
    assert table["precision"].tolist() == pytest.approx([3 / 4, 2 / 5, 1])
    assert table["recall"].tolist() == pytest.approx([3 / 4, 2 / 3, 1 / 3])
    assert table["f1"].tolist() == pytest.approx([3 / 4, 1 / 2, 1 / 2])
    assert table["support"].tolist() == [4, 3, 3] and table["predicted"].tolist() == [4, 5, 1]
    assert hand.macro_f1 == pytest.approx((3 / 4 + 1 / 2 + 1 / 2) / 3)
    assert hand.macro_recall == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert hand.confusion_normalised[1].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert hand.cross_entropy == pytest.approx((-math.log(0.8) * 6 - math.log(0.1) * 4) / 10)


def test_predictions_may_be_a_function_of_the_frame_or_named_columns(hand):
    turned = pd.DataFrame(sure(HAND_PREDICTED), columns=CLASSES)[["shoes", "hat", "shirt"]]
    for given_ in (lambda frame: sure(HAND_PREDICTED[: len(frame)]), turned):
        assert evaluation.evaluate(given_, HAND, CLASSES).accuracy == hand.accuracy
    with pytest.raises(TypeError, match="by me as an array"):
        evaluation.evaluate([["a", "b", "c"]] * 10, HAND, CLASSES, name="me")
    rounded = np.rint(sure(HAND_PREDICTED) * 256) / 256  # as an int8 file answers
    assert not np.allclose(rounded.sum(axis=1), 1, atol=1e-4)
    assert evaluation.evaluate(rounded, HAND, CLASSES).accuracy == 0.6


def test_accuracy_by_sender(hand):
    table = hand.per_sender.set_index("sender")
    assert list(table[["n", "correct"]].itertuples(name=None)) == [("b", 4, 2), ("a", 3, 3), ("c", 3, 1)]
    assert tuple(table.loc["b", ["accuracy_low", "accuracy_high"]]) == pytest.approx(wilson(2, 4))
    assert hand.n_senders == 3 and hand.sender_low < 0.6 < hand.sender_high
    without = evaluation.evaluate(sure(HAND_PREDICTED), HAND.drop(columns="sender"), CLASSES)
    assert without.n_senders is without.sender_low is None and len(without.per_sender) == 0
    missing = photos(["hat"] * 4, ["a", None, float("nan"), pd.NA])  # one unknown person
    judged = evaluation.evaluate(sure(["hat"] * 4), missing, CLASSES)
    assert judged.per_sender.set_index("sender")["n"].to_dict() == {"unknown": 3, "a": 1}


def test_wilson_is_the_score_interval():
    z = stats.norm.ppf(0.975)
    for right, n in ((0, 5), (324, 372), (7, 7)):
        share = right / n
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        assert wilson(right, n) == pytest.approx((max(0, centre - half), min(1, centre + half)))
    # The published sentence of the project's findings: 87 % of 372 is 83.3 to 90.1.
    assert [round(100 * bound, 1) for bound in wilson(324, 372)] == [83.3, 90.1]
    assert wilson(0, 6)[0] == 0 and wilson(6, 6)[1] == 1, "the interval holds the share, also when rounded"
    for right, n in ((1, 0), (3, 2), (-1, 2), (math.nan, 2), ([1, 3], [2, 2])):
        with pytest.raises(ValueError, match="correct answers out of n"):
            wilson(right, n)


def test_sender_interval_widens_when_people_differ_and_weighs_them_by_their_photos():
    correct = np.random.default_rng(1).random(400) < 0.8  # everyone sent one photo: the interval of a mean
    error = 1.96 * correct.std() / 20
    expected = (correct.mean() - error, correct.mean() + error)
    assert sender_interval(correct, np.arange(400)) == pytest.approx(expected, abs=0.004)
    senders = np.repeat(np.arange(20), 20)
    alike = np.tile([1] * 16 + [0] * 4, 20)  # everyone 80 %
    apart = np.repeat([1] * 16 + [0] * 4, 20)  # four people always wrong
    assert sender_interval(alike, senders) == pytest.approx((0.8, 0.8))
    low, high = sender_interval(apart, senders)
    assert high - low > 0.3
    # One person sent ninety photos, all right; ten sent one each, all wrong: the mean over people would be 0.09.
    low, high = sender_interval([1] * 90 + [0] * 10, ["many"] * 90 + [f"few{i}" for i in range(10)])
    assert low == 0 and high > 0.9
    assert sender_interval(correct, np.arange(400)) == sender_interval(correct, np.arange(400)), "seeded"
    for senders, message in (("aa", "two photographers"), ("aab", "2 answers and 3 senders")):
        with pytest.raises(ValueError, match=message):
            sender_interval([1, 0], senders)


def test_interval_of_macro_recall_weighs_classes_equally_and_draws_photographers():
    # Everyone sent one photo: the mean of two recalls, 0.9 of 400 and 0.5 of 40, has the variance of its two parts.
    labels = np.repeat(["common", "rare"], [400, 40])
    correct = np.r_[np.arange(400) % 10 > 0, np.arange(40) % 2 > 0]
    error = 1.96 * np.sqrt(0.9 * 0.1 / 400 + 0.5 * 0.5 / 40) / 2
    assert sender_interval(correct, np.arange(440), labels) == pytest.approx((0.7 - error, 0.7 + error), abs=0.006)
    # One of two people sent the rare class: a draw without it has the other class' recall, never 0 or NaN.
    assert sender_interval([1, 1, 0], ["a", "b", "b"], ["hat", "hat", "body"]) == (0.5, 1.0)
    with pytest.raises(ValueError, match="2 answers and 1 labels"):
        sender_interval([1, 0], "ab", ["hat"])
    with pytest.raises(ValueError, match="got NaN for 1; leave these out"):  # it would leave its class out of the mean
        sender_interval([1, math.nan, 0], "abc", ["hat", "body", "hat"])
    photos = pd.DataFrame({"label": ["hat", "hat", "body"], "sender": ["a", "b", "b"]})
    judged = evaluation.evaluate([[0.9, 0.1]] * 3, photos, ["hat", "body"])
    assert (judged.recall_low, judged.macro_recall, judged.recall_high) == (0.5, 0.5, 1.0)


def test_calibration_error_by_hand():
    # Four photos at 0.8 (bin 0.7 to 0.8, three right), two at 0.6 (bin 0.5 to 0.6, none right); bins are (low, high].
    judged = evaluation.evaluate([[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 2, photos(list("aaabbb")), ("a", "b"), bins=10)
    assert judged.ece == pytest.approx(4 / 6 * abs(0.75 - 0.8) + 2 / 6 * abs(0 - 0.6))
    assert judged.reliability["n"].tolist() == [2, 4]
    assert judged.reliability["high"].tolist() == pytest.approx([0.6, 0.8])


def test_a_class_without_photos_is_left_out_of_the_averages_and_one_never_predicted_counts_as_zero():
    judged = evaluation.evaluate(sure(["hat", "shirt", "shoes"]), photos(["hat", "shirt", "shirt"]), CLASSES)
    assert judged.absent == ("shoes",) and np.isnan(judged.confusion_normalised[2]).all()
    assert judged.per_class.loc["shoes", ["precision", "recall", "f1"]].isna().all()
    assert judged.macro_recall == pytest.approx((1 + 0.5) / 2)
    assert "shoes" in repr(judged) and "shoes" in judged._repr_html_()
    json.dumps(judged.to_dict(), allow_nan=False)
    numbered = evaluation.evaluate([[0.9, 0.1]], pd.DataFrame({"label": [0]}), np.arange(2))
    assert json.loads(json.dumps(numbered.to_dict()))["absent"] == [1]
    judged = evaluation.evaluate(sure(["hat", "hat", "hat"]), photos(["hat", "shirt", "shoes"]), CLASSES)
    assert judged.per_class["f1"].tolist() == pytest.approx([0.5, 0, 0])
    assert judged.macro_recall == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: np.where(np.arange(30).reshape(10, 3) == 10, np.nan, p), r"for 1 of 10 photos \(first: row 3\)"),
        (lambda p: p * np.inf, "NaN or infinity"),
        (lambda p: 8 * p - 2, "apply softmax"),
        (lambda p: p * 1.2, "sums to 1.2"),
        (lambda p: p[:9], r"got \(9, 3\)"),
        (lambda p: p[:, :2], r"of shape \(10, 3\)"),
        (lambda p: p[0], "shape"),
    ],
)
def test_what_is_not_a_probability_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(change(sure(HAND_PREDICTED)), HAND, CLASSES)


@pytest.mark.parametrize(
    ("frame", "classes", "message"),
    [
        (photos([]), CLASSES, "the frame is empty"),
        (photos(["hat"]), ("hat",), "two or more different classes"),
        (photos(["hat"]), ("hat", "hat"), "two or more different classes"),
        (photos(["sock"]), CLASSES, "unknown label sock: the model has 3 other classes"),
        (photos([None]), CLASSES, "unknown label None"),
        (pd.DataFrame({"name": ["hat"]}), CLASSES, "a column 'label'"),
    ],
)
def test_frames_that_cannot_be_judged_are_named(frame, classes, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(sure(["hat"] * len(frame)), frame, classes)


def test_results_print_themselves(hand):
    assert "10 photos by 3 photographers" in repr(hand) and "60.0%" in repr(hand)
    assert "<script" not in evaluation.evaluate(sure(["hat"]), photos(["hat"]), CLASSES, name="<script>")._repr_html_()
    flat = records.plain(hand.to_dict())
    assert json.loads(json.dumps(flat)) == flat and flat["per_class"][0]["class"] == "hat"


@settings(max_examples=25)
@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 10_000))
def test_properties_on_random_predictions(classes, n, seed):
    rng = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(classes))
    frame = photos(rng.choice(names, n), rng.integers(0, 4, n).astype(str))
    judged = evaluation.evaluate(rng.dirichlet(np.ones(classes), n), frame, names)
    assert judged.confusion.sum() == n == judged.per_class["support"].sum() == judged.per_sender["n"].sum()
    assert judged.accuracy == pytest.approx(np.trace(judged.confusion) / n)
    assert judged.accuracy_low <= judged.accuracy <= judged.accuracy_high
    assert judged.reliability["n"].sum() == n and 0 <= judged.ece <= 1
    # Accuracy is recall weighted by support: an identity that ties two independent columns.
    weighted = (judged.per_class["recall"] * judged.per_class["support"]).sum() / n
    assert weighted == pytest.approx(judged.accuracy)


def pair(a_right, b_right):
    """Two evaluations of the same photos that are right where the strings have a 1."""
    frame = photos(["hat"] * len(a_right))
    for name, right in (("a", a_right), ("b", b_right)):
        predicted = ["hat" if mark == "1" else "shirt" for mark in right]
        yield evaluation.evaluate(sure(predicted), frame, CLASSES, name=name)


def test_mcnemar_is_the_exact_binomial_and_the_interval_is_agresti_and_mins():
    paired = evaluation.compare(*pair("1" * 5 + "0" * 13, "1" + "0" * 9 + "1" * 8))
    assert (paired.both_right, paired.only_a, paired.only_b, paired.both_wrong) == (1, 4, 8, 5)
    assert paired.p_value == pytest.approx(stats.binomtest(4, 12, 0.5).pvalue)
    assert paired.difference == pytest.approx(4 / 18) and paired.agreement == pytest.approx(6 / 18)
    assert paired.largest_change == pytest.approx(0.7)
    shares = np.array([1.5, 4.5, 8.5, 5.5]) / 20  # both right, only a, only b, both wrong; half a photo added to each
    difference = shares[2] - shares[1]
    error = 1.959964 * math.sqrt((shares[1] + shares[2] - difference**2) / 20)
    found = (paired.difference_low, paired.difference_high)
    assert found == pytest.approx((difference - error, difference + error), abs=1e-6)
    assert "McNemar" in repr(paired) and json.dumps(paired.to_dict())
    frame = photos(["hat"] * 4, list("xxyy"))  # photos in another order are matched by id
    a = evaluation.evaluate(sure(["hat", "hat", "shirt", "shirt"]), frame, CLASSES)
    turned = evaluation.evaluate(sure(["shirt", "shirt", "hat", "hat"]), frame.iloc[::-1], CLASSES)
    paired = evaluation.compare(a, turned)
    assert (paired.both_right, paired.both_wrong) == (2, 2)
    assert (paired.sender_low, paired.sender_high) == (0, 0)
    better = evaluation.compare(a, evaluation.evaluate(sure(["hat"] * 4), frame, CLASSES))  # of two people, y alone
    assert (better.sender_low, better.sender_high) == (0, 1)


@pytest.mark.parametrize(
    ("frame", "classes", "message"),
    [
        (photos(["hat"] * 3), CLASSES, "2 photos and b on 3"),
        (photos(["hat"] * 2).assign(id=["x", "y"]), CLASSES, "different photos"),
        (photos(["hat", "shirt"]), CLASSES, "other photos or labels"),
        (photos(["hat"] * 2), CLASSES[:2], "different classes"),
    ],
)
def test_models_of_other_photos_classes_or_labels_are_not_compared(frame, classes, message):
    a, _ = pair("11", "11")
    b = evaluation.evaluate(sure(["hat"] * len(frame), classes), frame, classes)
    with pytest.raises(ValueError, match=message):
        evaluation.compare(a, b)


def test_the_most_confident_mistakes_come_first(hand):
    probabilities = [[0.1, 0.5, 0.4], [0.9, 0.05, 0.05], [0.02, 0.9, 0.08], [0.2, 0.7, 0.1]]
    frame = photos(["hat", "hat", "shoes", "hat"])
    worst = evaluation.worst_mistakes(evaluation.evaluate(probabilities, frame, CLASSES), frame, n=2)
    assert worst[["id", "true", "predicted", "true_probability", "position"]].to_numpy().tolist() == [
        ["photo2", "shoes", "shirt", 0.08, 2], ["photo3", "hat", "shirt", 0.2, 3]
    ]  # fmt: skip
    for other in (HAND.iloc[::-1], HAND.head(3), HAND.assign(id=HAND["id"][::-1].to_numpy())):
        with pytest.raises(ValueError, match="in the same order"):
            evaluation.worst_mistakes(hand, other)


def test_a_temperature_that_was_put_in_is_found_again():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (true.cumsum(1) > rng.random((len(true), 1))).argmax(1)
    assert evaluation.fit_temperature(evaluation.rescale(true, 0.5), labels) == pytest.approx(2.0, rel=0.03)
    np.testing.assert_allclose(evaluation.rescale(true, 1.0), true, atol=1e-9)
    softer = evaluation.rescale(true, 3.0)
    assert (softer.argmax(1) == true.argmax(1)).all() and (softer.max(1) < true.max(1)).all()
    with pytest.raises(ValueError, match="above 0, got 0"):
        evaluation.rescale([0.5, 0.5], 0)


@pytest.mark.parametrize("judge", [evaluation.fit_temperature, evaluation.reliability])
@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.5], [0.1, 0.9]], [0, 1, 1], r"got \(2, 2\) and \(3,\)"),
        ([[0.5, 0.5], [0.1, 0.9]], [1], r"got \(2, 2\) and \(1,\)"),
        ([[0.5, 0.5], [0.1, 0.9]], [[1, 0], [0, 1]], r"got \(2, 2\) and \(2, 2\)"),
        ([[0.5, 0.5], [0.1, 0.9]], ["hat", "body"], r"class numbers from 0 to 1, got \['body', 'hat'\]"),
        ([[0.5, 0.5], [0.1, 0.9]], [0, 2], r"class numbers from 0 to 1, got \['0', '2'\]"),
        ([[0.5, 0.5], [0.1, 0.9]], [0, -1], r"class numbers from 0 to 1, got \['-1', '0'\]"),
        ([[4.0, -3.0], [0.1, 0.9]], [0, 1], "apply softmax to logits first"),
        ([[np.nan, 1.0], [0.1, 0.9]], [0, 1], "NaN or infinity for 1 of 2 photos"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(judge, probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        judge(probabilities, labels)
    rows = np.reshape(probabilities, (1, 2, 2))
    if "softmax" in message or "NaN" in message:
        with pytest.raises(ValueError, match=message):
            evaluation.rescale(rows, 2)
    else:
        assert evaluation.rescale(rows, 1) == pytest.approx(rows)
