"""Splits: nobody on two sides, shares kept, balancing after the split, and the wrong order by name only."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.datasets import splits


def people(senders=40, classes=6, seed=0):
    """Photos by senders of very different diligence, classes of very different size."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, rng.lognormal(2, 1, senders).astype(int))
    rows = [(f"s{s}", f"c{rng.zipf(1.7) % classes}") for s, size in enumerate(sizes) for _ in range(size)]
    frame = pd.DataFrame(rows, columns=["sender", "label"])
    return frame.assign(id=[f"p{i}" for i in frame.index])


def shares(frame, parts):
    return parts.value_counts(normalize=True).reindex(splits.PARTS, fill_value=0.0)


@settings(max_examples=50)
@given(st.integers(3, 6) | st.integers(7, 60), st.integers(1, 12), st.integers(0, 10**6), st.booleans())
def test_grouped_split_keeps_senders_together_and_fills_every_part(senders, classes, seed, named):
    frame = people(senders, classes, seed)
    parts = splits.grouped_split(frame, seed=seed, test_senders=["s0"] * named)
    splits.check(frame.assign(split=parts))
    assert set(parts) == set(splits.PARTS)


def test_grouped_split_is_near_its_shares_in_every_class_with_enough_senders():
    frame = people(300, 4, 3)
    parts = splits.grouped_split(frame)
    assert shares(frame, parts).to_numpy() == pytest.approx([0.7, 0.15, 0.15], abs=0.02)
    table = pd.crosstab(frame["label"], parts, normalize="index")
    assert (table.sub([0.15, 0.7, 0.15]).abs() < 0.05).all(axis=None)  # columns: test, train, validation


@pytest.mark.parametrize("seed", range(4))
def test_grouped_split_cannot_be_bettered_by_moving_one_sender(seed):
    frame = people(15, 6, seed)
    parts = splits.grouped_split(frame, seed=seed)

    def deviation(parts):
        classes = pd.crosstab(frame["label"], parts, normalize="index").reindex(columns=splits.PARTS, fill_value=0)
        both = np.vstack([classes, parts.value_counts(normalize=True).reindex(splits.PARTS, fill_value=0)])
        return ((both - [0.7, 0.15, 0.15]) ** 2).sum()

    best = deviation(parts)
    for sender in set(frame["sender"]):
        for part in splits.PARTS:
            assert deviation(parts.where(frame["sender"] != sender, part)) > best - 1e-9


def test_grouped_split_is_fixed_by_its_seed_and_not_by_the_order_of_rows():
    frame = people()
    parts = splits.grouped_split(frame, seed=1)
    assert parts.equals(splits.grouped_split(frame, seed=1))
    assert not parts.equals(splits.grouped_split(frame, seed=2))
    shuffled = frame.sample(frac=1, random_state=0)
    assert splits.grouped_split(shuffled, seed=1).sort_index().equals(parts)


def test_grouped_split_keeps_named_senders_in_test():
    frame = people()
    big = frame["sender"].value_counts().index[:3]
    for closed in (False, True):
        parts = splits.grouped_split(frame, test_senders=big, closed_test=closed)
        assert (parts[frame["sender"].isin(big)] == "test").all()
    assert set(frame.loc[parts == "test", "sender"]) == set(big)


def test_any_column_can_tie_senders():
    frame = people().assign(twin="", sha256=lambda f: f["id"])
    frame.loc[frame["sender"].isin(["s1", "s2", "s3"]), "sha256"] = "same"
    frame.loc[frame["sender"].isin(["s4", "s5"]), "twin"] = "one picture"
    for seed in range(5):
        assert len(set(splits.grouped_split(frame, seed=seed)[frame["sha256"] == "same"])) == 1
        parts = splits.grouped_split(frame, seed=seed, tie=("sha256", "twin"))
        assert len(set(parts[frame["twin"].ne("")])) == len(set(parts[frame["sha256"] == "same"])) == 1
    for train, test in splits.grouped_folds(frame, 5, tie=("twin",)):
        assert not frame["twin"].iloc[train].any() or not frame["twin"].iloc[test].any()
    assert splits.grouped_split(frame).equals(splits.grouped_split(frame.drop(columns="twin")))


@pytest.mark.parametrize("closed", [False, True])
def test_too_few_senders_beside_the_named_ones_are_refused(closed):
    frame = people(4)
    for named in (["s0", "s1", "s2", "s3"], ["s0", "s1", "s2"]):
        with pytest.raises(ValueError, match=f"2 senders or more beside those of the test part, got {4 - len(named)}"):
            splits.grouped_split(frame, test_senders=named, closed_test=closed)
    assert set(splits.grouped_split(frame, test_senders=["s0", "s1"], closed_test=closed)) == set(splits.PARTS)
    with pytest.raises(ValueError, match="closed_test needs test_senders who are in the frame"):
        splits.grouped_split(frame, test_senders=["nobody"], closed_test=True)


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(0, 10**6))
def test_random_split_is_stratified(n, seed):
    frame = pd.DataFrame({"label": ["hat"] * n + ["shoes"] * 2 * n})
    parts = splits.random_split(frame, seed=seed)
    for _, some in parts.groupby(frame["label"]):
        counts = some.value_counts().reindex(splits.PARTS, fill_value=0).to_numpy()
        assert np.abs(counts - np.array([0.7, 0.15, 0.15]) * len(some)).max() <= 1
        assert counts[0] >= 1


@settings(max_examples=10)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_grouped_folds_partition_the_photos(k, seed):
    frame = people(20, 5, seed)
    folds = splits.grouped_folds(frame, k, seed)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(frame)))
    for train, test in folds:
        assert not set(frame["sender"].iloc[train]) & set(frame["sender"].iloc[test])


LEAKY = pd.DataFrame({
    "split": ["train", "test", "validation", "train"],
    "sender": ["7", "7", "8", "9"],
    "id": ["a", "b", "c", "d"],
    "sha256": ["1", "2", "3", "3"],
})  # fmt: skip


def test_check_names_the_leak_and_takes_it_by_name():
    with pytest.raises(splits.SplitLeak, match=r"1 sender stands on two sides \(sender 7 in test and train\)"):
        splits.check(LEAKY)
    with pytest.raises(splits.SplitLeak, match=r"1 file stands on two sides \(sha256 3 in train and validation\)"):
        splits.check(LEAKY, allow="sender")
    with pytest.raises(splits.SplitLeak, match="sender"):
        splits.check(LEAKY, allow={"file"})
    splits.check(LEAKY, allow={"sender", "file"})
    splits.check(LEAKY[1:3])


UNSPLIT = people(3)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: splits.grouped_split(people(2)), "needs 3 senders or more, got 2"),
        (lambda: splits.grouped_split(UNSPLIT, (0.7, 0.3)), "fractions must be three positive shares"),
        (lambda: splits.random_split(UNSPLIT, (0.7, 0.2, 0.2)), "fractions must be three positive shares"),
        (lambda: splits.random_split(UNSPLIT, (1.0, 0.1, -0.1)), "fractions must be three positive shares"),
        (lambda: splits.grouped_folds(UNSPLIT, 5), "5 folds need 5 senders or more, got 3"),
        (lambda: splits.check(LEAKY, allow={"people"}), "allow must hold .*, got 'people'"),
        (lambda: splits.check(LEAKY.drop(columns="split")), "needs the column split"),
        (lambda: splits.check(LEAKY[:0]), "needs rows, got none"),
        (lambda: splits.balance(photos().assign(split="test")), "needs training photos"),
        (lambda: splits.balance(photos(), at_most=0), "at_most must be a positive integer, got 0"),
        (lambda: splits.balance(photos(), at_most=5.0), "at_most must be a positive integer, got 5.0"),
        (lambda: splits.grouped_folds(UNSPLIT, 1), "k must be an integer from 2 up, got 1"),
        (lambda: splits.grouped_split(people(), test_senders="12"), r"test_senders must be a list .*pass \['12'\]"),
        (lambda: splits.check(LEAKY[["split"]].assign(photographer="7")), "needs one of sender, id, path, sha256, got"),
        (lambda: splits.random_split(["hat", "shoes"]), "a frame to split must be a DataFrame with label, got list"),
    ],
)
def test_what_cannot_be_split_is_refused(ask, says):
    with pytest.raises((ValueError, TypeError), match=says):
        ask()


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
def test_a_photo_without_a_label_or_a_sender_is_refused_and_never_waited_for(gap):
    frame = people()
    for column in ("label", "sender"):
        torn = frame.assign(**{column: frame[column].astype(object).where(frame.index > 2, gap)})
        for split in (splits.grouped_split, splits.grouped_folds):
            with pytest.raises(ValueError, match=f"needs a {column} in every row, got 3 without"):
                split(torn)
    numbers = pd.DataFrame({"label": [1.0, 2.0, np.nan] * 4})
    with pytest.raises(ValueError, match="needs a label in every row, got 4 without"):
        splits.random_split(numbers)


def test_one_column_that_ties_may_be_given_by_its_name():
    frame = people().assign(twin="")
    frame.loc[[0, len(frame) - 1], "twin"] = "one picture"
    assert splits.grouped_split(frame, tie="twin").equals(splits.grouped_split(frame, tie=("twin",)))
    assert splits.grouped_split(frame, tie="twin")[0] == splits.grouped_split(frame, tie="twin")[len(frame) - 1]


def test_unknown_contents_are_no_twins():
    splits.check(LEAKY.assign(sha256="", sender=list("abcd")))
    frame = people()
    assert splits.grouped_split(frame.assign(sha256="")).equals(splits.grouped_split(frame))
    assert len(splits.grouped_folds(frame.assign(sha256=""), 5)) == 5


def photos():
    frame = people(60, 5, 1)
    return frame.assign(split=splits.grouped_split(frame))


def test_balance_brings_every_training_class_to_the_cap_and_touches_nothing_else():
    frame = photos()
    balanced = splits.balance(frame, at_most=40)
    train = balanced[balanced["split"] == "train"]
    assert set(train["label"].value_counts()) == {40}
    assert not train.duplicated(["id", "copy"]).any()
    splits.check(balanced)
    rest = balanced[balanced["split"] != "train"].drop(columns="copy").reset_index(drop=True)
    assert rest.equals(frame[frame["split"] != "train"].reset_index(drop=True))
    assert (balanced.loc[balanced["split"] != "train", "copy"] == 0).all()
    assert balanced.equals(splits.balance(frame, at_most=40))
    assert not balanced.equals(splits.balance(frame, at_most=40, seed=2))
    # a class below the cap keeps every photo of its own
    for label, own in frame[frame["split"] == "train"].groupby("label")["id"]:
        kept = train[(train["label"] == label) & (train["copy"] == 0)]
        assert len(kept) == min(40, len(own))


def test_balance_in_the_wrong_order_leaks_and_is_refused():
    wrong = splits.balance(photos(), at_most=100, before_split=True)
    assert set(wrong["label"].value_counts()) == {100}
    for allowed in ((), "sender", "file"):
        with pytest.raises(splits.SplitLeak):
            splits.check(wrong, allow=allowed)
    splits.check(wrong, allow={"sender", "file"})
