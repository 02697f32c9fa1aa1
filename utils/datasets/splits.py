"""Who may stand on which side: splits by sender, the check that guards them, balancing.

People photograph their own clothes in their own rooms, so two photos by one sender are not independent. A split that
puts a sender on two sides measures memory of rooms as well as knowledge of clothes.
"""

import warnings

import numpy as np
import pandas as pd

from utils._checks import whole

PARTS = ("train", "validation", "test")


class SplitLeak(ValueError):
    """A sender or a file stands on two sides of a split."""


def check(frame, allow=()):
    """Refuse a split in which a sender or a file stands on two sides.

    A file is the same if its id, its path, or its content (column `sha256`, where there is one) is the same.

    Args:
        frame: DataFrame with `split` and at least one of `sender`, `id`, `path`, `sha256`.
        allow: {"sender"} and / or {"file"}: leaks that are wanted, by name (the studies' own protocols need them).

    Raises:
        SplitLeak: names what leaks, how much of it, and between which parts.
        ValueError: an unknown name in `allow`, or missing columns.

    Example:
        >>> leaky = pd.DataFrame({"split": ["train", "test"], "sender": ["7", "7"], "id": ["a", "b"]})
        >>> check(leaky, allow={"sender"})
        >>> check(leaky)
        Traceback (most recent call last):
        ...
        utils.datasets.splits.SplitLeak: 1 sender stands on two sides (sender 7 in test and train); split by sender, ...
    """
    allow = {allow} if isinstance(allow, str) else set(allow)
    if unknown := allow - {"sender", "file"}:
        raise ValueError(f"allow must hold 'sender' and 'file' only, got {', '.join(map(repr, sorted(unknown)))}")
    require(frame, ["split"], "a split to check")
    kinds = {"sender": "sender", "id": "file", "path": "file", "sha256": "file"}
    if not any(column in frame for column in kinds):
        raise ValueError(f"a split to check needs one of {', '.join(kinds)}, got {', '.join(map(str, frame.columns))}")
    for column, kind in kinds.items():
        if kind not in allow and column in frame and (leaks := _on_two_sides(frame, column)):
            value, parts = next(iter(leaks.items()))
            stand = "s stand" if len(leaks) > 1 else " stands"
            raise SplitLeak(
                f"{len(leaks)} {kind}{stand} on two sides ({column} {value} in {' and '.join(parts)}); "
                f"split by sender, or allow it by name with allow={{'{kind}'}} (RunConfig: allow_leaks)"
            )


def _on_two_sides(frame, column):
    pairs = frame[[column, "split"]].replace({column: ""}, pd.NA).dropna().drop_duplicates()
    pairs = pairs[pairs[column].duplicated(keep=False)]
    return {value: sorted(group) for value, group in pairs.groupby(column)["split"]}


def random_split(frame, fractions=(0.70, 0.15, 0.15), seed=0):
    """Study A's kind of split: stratified by label, blind to senders.

    Args:
        frame: DataFrame with `label`.
        fractions: shares of train, validation, test; they sum to 1.
        seed: another seed, another split.

    Returns:
        Series of "train" / "validation" / "test", index of `frame`. A class with a single photo goes to train.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat"] * 20})
        >>> [int((random_split(photos) == part).sum()) for part in PARTS]
        [14, 3, 3]
    """
    _check_fractions(fractions)
    require(frame, ["label"], "a frame to split")
    rng = np.random.default_rng([seed, 1])
    parts = np.empty(len(frame), dtype=object)
    labels = frame["label"].to_numpy()
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(fractions) * len(rows)).astype(int)
        ends[0] = max(ends[0], 1)
        for part, some in zip(PARTS, np.split(rows, ends[:2]), strict=True):
            parts[some] = part
    return pd.Series(parts, index=frame.index, name="split")


def grouped_split(frame, fractions=(0.70, 0.15, 0.15), seed=0, test_senders=(), closed_test=False, tie=("sha256",)):
    """Split by sender, so that no sender stands on two sides, as near to `fractions` in every class as can be.

    How it is chosen: senders are taken from the largest to the smallest (equal ones in seeded order) and each goes
    where the class shares come nearest to their targets, as scikit-learn's StratifiedGroupKFold does, which knows only
    equal folds; then single senders are moved for as long as a move improves it. The measure is the squared deviation
    of the part's share of each class from its target, summed over classes and parts, plus that of all photos. A
    byte-identical twin (column `sha256`) ties its two senders together.

    Args:
        frame: DataFrame with `label` and `sender`.
        fractions: shares of train, validation, test; they sum to 1.
        seed: another seed, another split.
        test_senders: senders who must be in test; if they are more than its share already, few or none join them.
        closed_test: nobody joins them.
        tie: columns whose equal values tie senders together; with "twin" pictures that were saved again tie them too.

    Returns:
        Series of "train" / "validation" / "test", index of `frame`.

    Raises:
        ValueError: fewer than three senders, or than two beside `test_senders`; columns or values missing; bad shares.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "shoes"] * 30, "sender": [str(i // 4) for i in range(60)]})
        >>> parts = grouped_split(photos)
        >>> bool(photos.groupby("sender").apply(lambda some: parts[some.index].nunique() == 1).all())
        True
    """
    _check_fractions(fractions)
    require(frame, ["label", "sender"], "a frame to split by sender")
    if isinstance(test_senders, str):
        raise ValueError(f"test_senders must be a list of senders, got {test_senders!r}; pass [{test_senders!r}]")
    groups = _groups(frame, tie)
    counts = pd.crosstab(groups, frame["label"])
    if len(counts) < len(PARTS):
        raise ValueError(f"a split by sender needs 3 senders or more, got {len(counts)}; use the random split")
    fixed = set(groups[frame["sender"].isin(set(map(str, test_senders))).to_numpy()])
    rng = np.random.default_rng([seed, 2])
    order = np.lexsort((rng.permutation(len(counts)), -counts.sum(axis=1).to_numpy()))
    table = np.column_stack([counts.to_numpy(), counts.sum(axis=1).to_numpy()]).astype(float)
    table /= table.sum(axis=0)  # shares of each class, and of all photos, that each group brings
    movable = [i for i in order if counts.index[i] not in fixed]
    if closed_test and not fixed:
        raise ValueError("closed_test needs test_senders who are in the frame, got none")
    if fixed and len(movable) < 2:
        raise ValueError(
            f"it needs 2 senders or more beside those of the test part, got {len(movable)}; use fewer there"
        )
    place = np.where(counts.index.isin(fixed), 2, -1)
    shares = np.zeros((3, table.shape[1]))
    shares[2] = table[place == 2].sum(axis=0)
    # where the fixed senders bring more than test's share of a class, train and validation divide what is left
    target = np.stack([np.maximum(shares[2], 0 if closed_test else fractions[2])] * 3)
    target[:2] = (1 - target[2]) * np.reshape(fractions[:2], (2, 1)) / sum(fractions[:2])

    def cost_of_adding(row):
        costs = [(((shares[p] + row - target[p]) ** 2) - (shares[p] - target[p]) ** 2).sum() for p in range(3)]
        return [*costs[:2], np.inf] if closed_test else costs

    for i in movable:
        place[i] = int(np.argmin(cost_of_adding(table[i])))
        shares[place[i]] += table[i]
    for _ in range(100):
        moved = False
        for i in movable:
            shares[place[i]] -= table[i]
            costs = cost_of_adding(table[i])
            best = int(np.argmin(costs))
            if costs[best] < costs[place[i]] - 1e-12:
                place[i], moved = best, True
            shares[place[i]] += table[i]
        if not moved:
            break
    for part in range(2 if closed_test else 3):
        if part not in place:  # only with a handful of senders: the smallest one of the best filled part moves
            spare = np.where(np.bincount(place, minlength=3) > 1, np.bincount(place[movable], minlength=3), 0)
            most = spare.argmax()
            place[[i for i in movable if place[i] == most][-1]] = part
    by_group = dict(zip(counts.index, place, strict=True))
    return pd.Series([PARTS[by_group[g]] for g in groups], index=frame.index, name="split")


def grouped_folds(frame, k=5, seed=0, tie=("sha256",)):
    """Folds in which no sender stands on two sides, stratified as well as senders allow (StratifiedGroupKFold).

    Args:
        frame: DataFrame with `label` and `sender` (and `sha256`: twins stay together).
        k: folds.
        seed: another seed, other folds.
        tie: as in `grouped_split`.

    Returns:
        list of k pairs of int arrays (train rows, test rows), positions in `frame`; each row is in test once.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat", "shoes"] * 10, "sender": [str(i // 2) for i in range(20)]})
        >>> [len(test) for _, test in grouped_folds(photos, k=5)]
        [4, 4, 4, 4, 4]
    """
    from sklearn.model_selection import StratifiedGroupKFold

    require(frame, ["label", "sender"], "a frame to fold by sender")
    k = whole("k", k, 2)
    groups = _groups(frame, tie)
    if len(set(groups)) < k:
        raise ValueError(f"{k} folds need {k} senders or more, got {len(set(groups))}; use fewer folds")
    labels = pd.factorize(frame["label"], sort=True)[0]
    with warnings.catch_warnings():  # a class with fewer photos than folds is reported by the audit, not here
        warnings.simplefilter("ignore", UserWarning)
        folds = StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(labels, labels, groups)
        return [(train, test) for train, test in folds]


def balance(frame, at_most=500, seed=0, before_split=False):
    """Bring every class of the training part to `at_most` photos, by sampling with random transforms (study A's 500).

    Classes above it are sampled down. Classes below it are topped up with copies: each is a photo of the class under a
    random transform that is fixed by the photo and the number of the copy, so that it is the same in every epoch.

    Args:
        frame: DataFrame with `label` and `split`.
        at_most: photos per class afterwards.
        seed: of the sampling.
        before_split: the wrong order, on purpose: balance everything, then split the result at random, so that copies
            of one photo fall on both sides. `check` refuses it unless {"sender", "file"} is allowed.

    Returns:
        DataFrame like `frame` with a column `copy`: 0 the photo itself, k > 0 its k-th random transform.

    Example:
        >>> photos = pd.DataFrame({"label": ["hat"] * 3 + ["shoes"], "split": "train", "id": list("abcd")})
        >>> balance(photos, at_most=2)[["label", "copy"]].value_counts().to_dict()
        {('hat', 0): 2, ('shoes', 0): 1, ('shoes', 1): 1}
    """
    at_most = whole("at_most", at_most)
    require(frame, ["label", "split"], "a frame to balance")
    chosen = frame if before_split else frame[frame["split"] == "train"]
    if chosen.empty:
        raise ValueError("balancing needs training photos, got none; check the split")
    rng = np.random.default_rng([seed, 3])
    rows, copies = [], []
    labels = chosen["label"].to_numpy()
    for label in sorted(set(labels)):
        own = rng.permutation(np.flatnonzero(labels == label))
        copy, position = np.divmod(np.arange(at_most), len(own))
        rows.append(own[position])
        copies.append(copy)
    balanced = chosen.iloc[np.concatenate(rows)].assign(copy=np.concatenate(copies))
    if before_split:
        balanced = balanced.reset_index(drop=True)
        return balanced.assign(split=random_split(balanced, seed=seed))
    rest = frame[frame["split"] != "train"].assign(copy=0)
    return pd.concat([balanced, rest], ignore_index=True)


def require(frame, columns, what):
    """Raise an error unless `frame` has rows and `columns` without a gap; `what` names it in the message."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{what} must be a DataFrame with {' and '.join(columns)}, got {type(frame).__name__}")
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"{what} needs the column {' and '.join(missing)}, got {', '.join(map(str, frame.columns))}")
    if len(frame) == 0:
        raise ValueError(f"{what} needs rows, got none; check what it was filtered by")
    for column in columns:
        if gaps := int(frame[column].isna().sum()):
            raise ValueError(f"{what} needs a {column} in every row, got {gaps} without; fill them in or drop the rows")


def _groups(frame, tie):
    """Sender of every row as an array; senders who share a value in one of the columns `tie` count as one."""
    senders = frame["sender"].astype(str).to_numpy()
    parent = {sender: sender for sender in senders}

    def find(sender):
        while parent[sender] != sender:
            sender = parent[sender]
        return sender

    for column in [column for column in ([tie] if isinstance(tie, str) else tie) if column in frame]:
        known = pd.DataFrame({"value": frame[column].to_numpy(), "sender": senders})
        known = known[known["value"].notna() & known["value"].ne("")].drop_duplicates()
        for _, group in known[known["value"].duplicated(keep=False)].groupby("value")["sender"]:
            first, *others = sorted(map(find, group))
            for other in others:
                parent[other] = first
    return np.array([find(sender) for sender in senders])


def _check_fractions(fractions):
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be three positive shares that sum to 1, got {tuple(fractions)}")
